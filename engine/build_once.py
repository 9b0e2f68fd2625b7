"""A directory that appears whole or not at all, however many processes want it at once.

States of a target: absent, being built by one process (its lock is held and its content grows
beside it under a dotted name), present. Nothing is ever changed in a present target.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.errors import ModelError


def build_once(
    target: Path, build: Callable[[Path], None], waiting: Callable[[], None] = lambda: None
) -> Path:
    """`target`, which `build` fills if it is absent; processes and threads build it once.

    `build` gets an empty directory that becomes `target` by one rename when it returns. When it
    raises, or its process dies, the half-made directory is removed, at the latest by the next
    caller. `waiting` is called once if another process is building. Raises `ModelError` where
    the cache cannot be written, and whatever `build` raises.
    """
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock"), waiting) as lock_file:
            if not target.is_dir():
                _remove(partial)
                partial.mkdir()
                try:
                    build(partial)
                    _flush(partial)
                    partial.rename(target)
                finally:
                    _remove(partial)
            # The lock has no more use once the target is there; who waits for it looks again.
            lock_file.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"cannot fill the model cache {target.parent}: {error}") from error
    return target


@contextmanager
def _lock(path: Path, waiting: Callable[[], None]) -> Iterator[Path]:
    """Hold an exclusive lock on `path`; the system releases it when the process dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _flush(directory: Path) -> None:
    """Bring every file to the disk, so that a power cut cannot leave a whole-looking target."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
