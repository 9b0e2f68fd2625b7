"""Near names, for messages about names that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean a or b? Allowed: …``, in words, the nearest first."""
    names = sorted(known)
    close = get_close_matches(name.lower().replace("_", "-"), names, n=3, cutoff=0.5)
    close += [n for n in names if name.lower() in n and n not in close][: 3 - len(close)]
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}allowed: {', '.join(names)}"
