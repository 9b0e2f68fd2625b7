"""``pytest tests/unit/router --rewrite`` writes what the scheduler says into the transcripts."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="rewrite transcripts instead of comparing them"
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    # The option exists only where this directory was named on the command line.
    return bool(request.config.getoption("--rewrite", default=False))
