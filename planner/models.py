"""The catalogue of models, and how a model is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from eastwest.errors import ModelError
from planner.hf_config import read_model, shape_of
from planner.model_shape import ModelShape
from planner.nearest import nearest


def model_names() -> tuple[str, ...]:
    """Names of the catalogue, sorted."""
    return tuple(sorted(_catalogue()))


def find_model(source: str) -> ModelShape:
    """A model of the catalogue by name, or that of a config.json or model directory.

    Raises `ModelError` naming the nearest models.
    """
    name = source.strip().lower().rsplit("/", 1)[-1]
    entry = _catalogue().get(name)
    if entry is not None:
        return shape_of(name, entry)
    if os.path.exists(source):  # False, too, for what cannot be a path
        return read_model(Path(source))
    raise ModelError(
        f"model {source!r} is neither in the catalogue nor a file; {nearest(name, _catalogue())}, "
        f"or the path of a config.json or model directory"
    )


@cache
def _catalogue() -> Mapping[str, Mapping[str, Any]]:
    text = files("planner").joinpath("catalogue/models.yaml").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = yaml.safe_load(text)
    same = {name: entry["same_as"] for name, entry in models.items() if "same_as" in entry}
    return {
        name: {**models[same[name]], **entry} if name in same else entry
        for name, entry in models.items()
    }
