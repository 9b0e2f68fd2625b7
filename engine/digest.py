"""The content of a large file as one hash, computed once for each version of the file."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from blake3 import blake3


def file_digest(path: Path, memo: Path) -> str:
    """BLAKE3 of the whole of `path`, in hex; about 0.5 s a gigabyte on one thread.

    `memo` is a JSON file that remembers digests by absolute path, size and modification time;
    it is a convenience: an unreadable one is ignored, and one that cannot be written is not
    needed. Raises `OSError` where `path` cannot be read.
    """
    path = path.absolute()
    stat = path.stat()
    version = [stat.st_size, stat.st_mtime_ns]
    known = _read(memo)
    match known.get(str(path)):
        case {"version": remembered, "blake3": str(digest)} if remembered == version:
            return digest
    digest = blake3(max_threads=1).update_mmap(path).hexdigest()
    known[str(path)] = {"version": version, "blake3": digest}
    _write(memo, known)
    return digest


def _read(memo: Path) -> dict[str, Any]:
    try:
        known = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(memo: Path, known: dict[str, Any]) -> None:
    draft = memo.with_name(f"{memo.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
            draft.replace(memo)
        finally:
            draft.unlink(missing_ok=True)
