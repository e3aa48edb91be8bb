"""Names the setting of a port on which a process cannot listen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(setting: str, port: int) -> Iterator[None]:
    """Raises OSError with a text for the operator in place of one without a name."""
    try:
        yield
    except OSError as exc:
        raise OSError(f"{setting}: port {port}: {os.strerror(exc.errno or 0)}") from exc
