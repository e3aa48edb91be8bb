"""Gives uv the settings of pip, which uv does not read. Who uses a mirror of packages has set up pip for it.

Standard library only: it runs before any environment exists.
"""

import ast
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# A later one overrules an earlier one, as for pip.
_SECTIONS: Final = ("global", "install", ":env:")
_VARIABLES: Final = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
# pip ignores a folder of these that does not exist; uv fails for `find-links`.
_MAY_BE_MISSING: Final = ("extra-index-url", "find-links")


def environment_for_uv(python: Path, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for uv: `inherited` (our own, if not given), and one for each setting of pip that
    `inherited` does not set for uv. `python`: one that has pip.
    """
    inherited = os.environ if inherited is None else inherited
    told = subprocess.run(
        [str(python), "-m", "pip", "config", "list"],
        env=dict(inherited), capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Like pip, take the best version of all indexes, and trust what this machine trusts.
    usual = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
    return usual | _as_variables(_settings(told.stdout)) | dict(inherited)


def _settings(listed: str) -> dict[str, str]:
    """Of `pip config list`: a line is `section.name='value'`."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        where, _, value = line.partition("=")
        section, _, name = where.rpartition(".")
        if section in found:
            found[section][name] = str(ast.literal_eval(value))
    return {name: value for section in _SECTIONS for name, value in found[section].items()}


def _as_variables(settings: Mapping[str, str]) -> dict[str, str]:
    variables = {}
    for name, variable in _VARIABLES.items():
        values = settings.get(name, "").split()
        if name in _MAY_BE_MISSING:
            values = [each for each in values if _is_there(each)]
        if values:
            variables[variable] = ("," if name == "find-links" else " ").join(values)
    return variables


def _is_there(place: str) -> bool:
    """False for a folder of this machine that does not exist."""
    path = place.removeprefix("file://")
    return "://" in path or os.path.exists(path)
