"""Gives uv the settings of pip, which uv does not read. Who uses a mirror of packages has set up pip for it.

Standard library only: it runs before any environment exists.
"""

import ast
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

# A later one overrules an earlier one, as for pip.
_SECTIONS: Final = ("global", "install", ":env:")


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
    written: dict[str, tuple[str, Callable[[list[str]], str]]] = {
        "index-url": ("UV_DEFAULT_INDEX", " ".join),
        "extra-index-url": ("UV_INDEX", lambda urls: " ".join(filter(_is_there, urls))),
        "find-links": ("UV_FIND_LINKS", ",".join),
        "trusted-host": ("UV_INSECURE_HOST", " ".join),
        "cert": ("SSL_CERT_FILE", " ".join),
        "proxy": ("ALL_PROXY", " ".join),
        "timeout": ("UV_HTTP_TIMEOUT", " ".join),
        "default-timeout": ("UV_HTTP_TIMEOUT", " ".join),
    }
    variables = {
        variable: write(settings[name].split())
        for name, (variable, write) in written.items()
        if name in settings
    }
    return {variable: value for variable, value in variables.items() if value}


def _is_there(url: str) -> bool:
    """False for a folder of this machine that does not exist: pip ignores such an index."""
    return not url.startswith("file://") or os.path.exists(url.removeprefix("file://"))
