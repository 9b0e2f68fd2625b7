"""Configurations of any kind: from a file, from variables, from flags.

1. A configuration is loaded, or `ConfigError` says in one short line what is wrong.
2. What is loaded can be shown, and loaded again as it was.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from deploy.settings import explained_yaml
from eastwest.config import Config, load_config
from eastwest.errors import ConfigError

LINE_CHARS_MAX = 4000


def _names(section: type[BaseModel]) -> set[str]:
    names = set()
    for name, field in section.model_fields.items():
        names.add(name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= _names(kind)
    return names


NAMES = st.sampled_from(sorted(_names(Config))) | st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 9)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["auto", "none", "grpc", "x" * 5000, "2020-99-99", "~", "<<", "!!set", "\0"])
    | st.dates()
    | st.binary(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)
TREES = st.dictionaries(
    st.sampled_from(sorted(Config.model_fields)), st.dictionaries(NAMES, VALUES, max_size=4)
)
# Text that YAML makes something odd of.
SNIPPETS = st.sampled_from(
    [
        "2020-99-99", "router: 2020-99-99", "a: &a [*a]", "&a {kv: *a}", "? [1]\n: 2", "1" * 5000,
        "router: {port: 0x" + "f" * 4000 + "}", "[" * 400, "{" * 400, "- " * 400, "!!python/none",
        "<<: 1", "a: !!binary x", "!!timestamp 1", "!!int ''", "!!float x", "!!omap [a]",
        "kv: &x {frame_bytes: 1}\nmodel: *x", "\x7f", "key: !!bool maybe", "=", "router: =",
        "&a [&b [*a, *b], *a]", "190:20:30", "1:2:3.4", "!!map [1]", "!!seq {a: 1}", "!!set [1]",
    ]
)  # fmt: skip
untimed = settings(deadline=None, derandomize=True)


def loaded(path: Path | None, environ: dict[str, str], overrides: Any = None) -> None:
    """See the module."""
    refusal = ""
    try:
        config = load_config(path, environ, overrides)
    except ConfigError as error:
        refusal = error.message
    else:
        assert Config.model_validate(yaml.safe_load(explained_yaml(config))) == config
        return
    assert 0 < len(refusal) < LINE_CHARS_MAX, len(refusal)
    assert refusal.isprintable(), refusal


def of_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "eastwest.yaml"
        path.write_bytes(data)
        loaded(path, {})


@untimed
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | SNIPPETS.map(str.encode))
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    of_file(data)


@settings(untimed, max_examples=300)
@given(TREES | VALUES)
def test_any_tree_is_a_configuration_or_refused(tree: Any) -> None:
    of_file(yaml.safe_dump(tree, allow_unicode=True).encode())


@untimed
@given(
    st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map(
            lambda keys: "EASTWEST_" + "__".join(keys).upper()
        ),
        st.text(max_size=12) | SNIPPETS | st.integers().map(str),
        max_size=3,
    )
)
def test_any_variables_are_a_configuration_or_refused(environ: dict[str, str]) -> None:
    loaded(None, environ)


@untimed
@given(TREES)
def test_any_flags_are_a_configuration_or_refused(overrides: dict[str, Any]) -> None:
    loaded(None, {}, overrides)
