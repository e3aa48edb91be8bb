"""The scrape configuration asks the route that there is, with the key that may, from the file that `make
up` writes.
"""

import re
import shutil
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from billing.accounts.roles import Role
from billing.api.rights import RIGHTS
from billing.settings import BillingSettings
from deploy.local import credentials
from deploy.local.settings import LocalSettings
from tests.source_tree import ROOT, text_of, tracked

CONFIG = "deploy/prometheus/prometheus.yml"
ALERTS_TEST = ROOT / "tests/deploy/alerts_test.yml"


def test_targets_are_asked_of_the_admin_api() -> None:
    (url,) = re.findall(r"- url: (\S+)", text_of(CONFIG))
    parts = urlsplit(url)
    assert parts.port == BillingSettings.model_fields["admin_port"].default
    assert Role.SERVICE in RIGHTS[f"GET {parts.path}"]


def test_the_key_is_read_from_the_file_that_up_writes(tmp_path: Path) -> None:
    settings = LocalSettings(home=tmp_path / ".taas")
    keys = credentials.of(settings)
    credentials.write_service_key(settings, keys)
    (named,) = re.findall(r"credentials_file: (\S+)", text_of(CONFIG))
    # Prometheus reads it relative to the folder of its configuration.
    written = settings.folder / (ROOT / CONFIG).parent.joinpath(named).resolve().relative_to(ROOT / ".taas")
    assert written.read_text() == keys.service_key
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should() -> None:
    for words in (("check", "rules", "deploy/prometheus/alerts.yml"), ("test", "rules", str(ALERTS_TEST))):
        done = subprocess.run(["promtool", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_reads_metrics_that_there_are() -> None:
    """Without promtool this still holds the names."""
    pages = "".join(text_of(path) for path in tracked() if path.endswith(".py"))
    named = set(re.findall(r"taas_[a-z_]+", text_of("deploy/prometheus/alerts.yml")))
    missing = {name for name in named if f'"{name.removesuffix("_total")}"' not in pages}
    assert missing == set()
