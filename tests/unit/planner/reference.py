"""Reference data beside the repository, where there is any; tests that need it skip without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

_REPOSITORY = Path(__file__).resolve().parents[3]


def reference(name: str) -> Path:
    """A file or folder of the reference data. Skips the test where it is absent."""
    for beside in _REPOSITORY.parents[:2]:  # of the repository, or of a worktree
        path = beside / "shared" / "reference" / name
        if path.exists():
            return path
    pytest.skip(f"the reference data ({name}) is not beside the repository")


def reference_yaml(name: str) -> dict[str, Any]:
    tree = yaml.safe_load(reference(name).read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def roofline_reference(name: str) -> Any:
    """A YAML file of worked numbers. Skips the test where it is absent."""
    return yaml.safe_load(reference(f"roofline/{name}").read_text(encoding="utf-8"))
