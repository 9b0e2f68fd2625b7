"""Real models for tests, resolved once into the default cache."""

from __future__ import annotations

import functools
from pathlib import Path

from eastwest.config import ModelConfig
from engine.catalog import resolve_model


@functools.cache
def default_model_dir() -> Path:
    """The default model as a Hugging Face directory; downloaded and converted where needed."""
    return resolve_model(ModelConfig())
