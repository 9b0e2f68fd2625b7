"""Reports of a plan: a page that needs nothing beside itself, and a picture.

What draws is imported where it is used: the command line works without the `plan` extra.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from deploy import plan_looks as looks
from deploy.plan_figures import figures
from deploy.writing import writing
from eastwest.errors import ConfigError
from planner.advice import describe
from planner.planning import LEVEL, Plan
from planner.quantity import seconds_text


def write_html(plan: Plan, path: Path) -> None:
    """Write the interactive report: one file of about 5 MB, which loads nothing from anywhere.

    Raises `ConfigError` where plotly is not installed, or `path` cannot be written.
    """
    page = html(plan)
    with writing(path):
        path.write_text(page, encoding="utf-8")


def write_png(plan: Plan, path: Path) -> None:
    """Write frontier, roofline and sensitivity as a picture of 1600 x 900 pixels.

    Raises `ConfigError` where matplotlib is not installed, or `path` cannot be written.
    """
    _required("matplotlib", "the picture of a plan")
    from deploy.plan_picture import picture

    png = picture(plan)
    with writing(path):
        path.write_bytes(png)


def html(plan: Plan) -> str:
    """The report's page. Raises `ConfigError` where plotly is not installed."""
    plotly_js: str = _required("plotly.offline", "the HTML report of a plan").get_plotlyjs()
    drawn = figures(plan)
    page = _environment().from_string(
        files("deploy").joinpath("plan_report.html.j2").read_text(encoding="utf-8")
    )
    return page.render(
        plan=plan,
        q=plan.question,
        best=plan.best,
        needs=plan.needs,
        at=looks.percentile(plan.question),
        level=looks.share(LEVEL),
        figures=_inline(drawn),
        step_count=len(drawn["steps"]["data"][0]["y"]),
        plotly_js=Markup(plotly_js),
    )


def _environment() -> Environment:
    """Where the page is rendered: text is escaped, and a name that is absent is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": looks.number,
        "seconds": seconds_text,
        "share": looks.share,
        "describe": describe,
        "hardware": looks.hardware,
        "formats": looks.formats,
        "lengths": looks.lengths,
        "targets": looks.targets,
    }
    return environment


def _inline(tree: object) -> Markup:
    """JSON that no HTML parser takes for the end of its script."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _required(module: str, what: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = module.split(".", maxsplit=1)[0]
        raise ConfigError(
            f"{what} needs {name}, which is not installed: pip install 'eastwest[plan]'"
        ) from error
