"""A configuration as YAML that explains itself: every field with what it means."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from eastwest.config import Config

_WIDTH = 96


def explained_yaml(config: Config) -> str:
    """YAML that `eastwest serve --config` takes as it is, with comments."""
    return "\n".join(_section(config, config.model_dump(mode="json"), indent="")) + "\n"


def _section(section: BaseModel, values: dict[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, BaseModel)
        about = (type(value).__doc__ or "") if nested else (field.description or "")
        if nested and not indent:
            lines.append("")
        if about:
            lines += textwrap.wrap(
                about.strip(), _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if nested:
            lines.append(f"{indent}{name}:")
            lines += _section(value, values[name], indent + "  ")
        else:
            value = yaml.safe_dump(
                values[name], width=10_000, default_flow_style=True, explicit_end=False
            ).removesuffix("...\n")
            lines.append(f"{indent}{name}: {value.strip()}")
    return lines
