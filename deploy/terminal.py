"""Where the `eastwest` command prints: answers on standard output, failures on standard error."""

from __future__ import annotations

import sys

from rich.console import Console

# Wide enough for the tables where there is no terminal to ask.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True, highlight=False)
