"""What is made for every request: immutable values, made five times as fast as a frozen dataclass."""

import msgspec


class Value(msgspec.Struct, frozen=True, gc=False):
    """The base of such values. Subclasses declare fields as dataclasses do, and `kw_only=True` where they
    mean it; `msgspec.structs.replace` makes a changed copy.

    The garbage collector does not look at them, so none may hold what refers back to it.
    """
