"""The form of names and ids. Pure: it knows no table.

Operators choose names, and names get into URLs, Redis keys and metric labels. So they are plain ASCII,
contain no braces (a Redis hash tag must not close early), and are paths that no client rewrites. Ids are
ours: a prefix for the kind, and 96 random bits.
"""

import re
import secrets
from typing import Final

NAME_CHARS_MAX: Final = 128
# Between the name of a model and that of an adapter of it: no other model's name holds it.
ADAPTER_SEPARATOR: Final = ":"
_NAME: Final = re.compile(r"[A-Za-z0-9._/-]{1,128}", re.ASCII)
# 12 bytes: ids never collide by chance, and cannot be guessed.
_ID_BYTES: Final = 12

TENANT_PREFIX: Final = "ten_"
PROJECT_PREFIX: Final = "prj_"
KEY_PREFIX: Final = "key_"
BUDGET_PREFIX: Final = "bud_"
INSTANCE_PREFIX: Final = "ins-"


def new_id(prefix: str) -> str:
    """A fresh id, such as `ten_0f…` (24 hex digits)."""
    return prefix + secrets.token_hex(_ID_BYTES)


def check_name(name: str) -> str:
    """The name itself. Raises ValueError, saying what is wrong, when it is not one."""
    if _NAME.fullmatch(name) is None:
        raise ValueError("a name is 1 to 128 of the characters A-Z a-z 0-9 . _ / -")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError("a name must not begin or end with '/', nor hold '//', '/./' or '/../'")
    return name


def check_model_name(name: str) -> str:
    """As `check_name`; an adapter's name is `BASE:ADAPTER`, two names."""
    if len(name) > NAME_CHARS_MAX:
        raise ValueError(f"a name has at most {NAME_CHARS_MAX} characters")
    for part in name.split(ADAPTER_SEPARATOR, 1):
        check_name(part)
    return name


def check_tenant_name(name: str) -> str:
    """As `check_name`; a tenant's name must not look like an id, because both are accepted in the same
    places.
    """
    if name.startswith(TENANT_PREFIX):
        raise ValueError(f"a tenant's name must not begin with {TENANT_PREFIX!r}: that is how ids look")
    if name.startswith("-"):
        raise ValueError("a tenant's name must not begin with '-': that is how options look")
    return check_name(name)
