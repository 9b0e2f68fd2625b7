"""eastwest: disaggregated prefill/decode serving for large language models.

``from eastwest import Client`` talks to a running deployment; `AsyncClient` is the same for
asyncio. Both load on first use, so that importing the shared words stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eastwest.client import AsyncClient
    from eastwest.sync_client import Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"

_LAZY = {"AsyncClient": "eastwest.client", "Client": "eastwest.sync_client"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
