"""The scrape configuration asks the route that there is, with the key that may, from the file that `make
up` writes.
"""

import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

from billing.api.rights import RIGHTS, Right
from billing.settings import BillingSettings
from deploy.local import credentials
from deploy.local.settings import LocalSettings
from tests.source_tree import ROOT, text_of

CONFIG = "deploy/prometheus/prometheus.yml"


def test_targets_are_asked_of_the_admin_api() -> None:
    (url,) = re.findall(r"- url: (\S+)", text_of(CONFIG))
    parts = urlsplit(url)
    assert parts.port == BillingSettings.model_fields["admin_port"].default
    assert RIGHTS[f"GET {parts.path}"] is Right.SERVICE


def test_the_key_is_read_from_the_file_that_up_writes(tmp_path: Path) -> None:
    settings = LocalSettings(home=tmp_path / ".taas")
    keys = credentials.of(settings)
    credentials.write_service_key(settings, keys)
    (named,) = re.findall(r"credentials_file: (\S+)", text_of(CONFIG))
    # Prometheus reads it relative to the folder of its configuration.
    written = settings.folder / (ROOT / CONFIG).parent.joinpath(named).resolve().relative_to(ROOT / ".taas")
    assert written.read_text() == keys.service_key
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
