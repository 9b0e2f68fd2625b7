"""The reference figures beside the repository, where they are present."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


def roofline_reference(name: str) -> Any:
    """A YAML file of worked numbers; skips the test where it is absent."""
    for above in ROOT.parents:  # one level up, or more from a worktree
        path = above / "shared" / "reference" / "roofline" / name
        if path.is_file():
            return yaml.safe_load(path.read_text(encoding="utf-8"))
    pytest.skip(f"the reference figures are not beside the repository: no {name}")
