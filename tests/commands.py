"""The `eastwest` command in this process."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from deploy.cli import main


class Told(NamedTuple):
    """Exit code, output and errors of one command."""

    code: int
    out: str
    err: str


def eastwest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> Told:
    """Run a command to its end."""
    monkeypatch.setattr("sys.argv", ["eastwest", *words])
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    said = capsys.readouterr()
    return Told(code, said.out, said.err)
