"""What every command that writes a file says where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.errors import ConfigError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes `path`. Raises `ConfigError` where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
