"""Pages that need nothing beside themselves: text, tables, and plots that one can look into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from eastwest.errors import ConfigError

Figure = dict[str, Any]


def render(
    template: str,
    what: str,
    figures: Mapping[str, Figure],
    filters: Mapping[str, Callable[..., Any]],
    **names: object,
) -> str:
    """A template of this package, that extends ``page.html.j2``. what: is drawn, for the message.
    figures: as plotly takes them, by the place on the page.

    Raises `ConfigError` where plotly is not installed.
    """
    plotly_js: str = required("plotly.offline", what).get_plotlyjs()
    # Text is escaped, and a name that is absent is an error.
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= filters
    page = environment.get_template(template)
    return page.render(figures=_inline(figures), plotly_js=Markup(plotly_js), **names)


def required(module: str, what: str) -> ModuleType:
    """A module of the `plan` extra. Raises `ConfigError` where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = module.split(".", maxsplit=1)[0]
        raise ConfigError(
            f"{what} needs {name}, which is not installed: pip install 'eastwest[plan]'"
        ) from error


def axes(x: str, y: str) -> Figure:
    """A layout: axes with their titles, legend on top, and margins that grow with the labels."""
    return {
        "xaxis": {"title": {"text": x, "standoff": 12}, "automargin": True},
        "yaxis": {"title": {"text": y, "standoff": 8}, "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
        "hoverlabel": {"align": "left"},
    }


def _template(name: str) -> str:
    return files("deploy").joinpath(name).read_text(encoding="utf-8")


def _inline(tree: object) -> Markup:
    """JSON that no HTML parser takes for the end of its script."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
