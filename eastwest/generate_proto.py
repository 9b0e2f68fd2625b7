"""Generates `eastwest/v1` from `proto/`: ``python -m eastwest.generate_proto [OUTPUT]``.

Needs grpcio-tools, pinned to the lowest grpcio that this project supports, because generated
code refuses an older runtime.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(output: Path) -> None:
    """Write the modules of every .proto below `output`/eastwest/v1."""
    from grpc_tools import protoc

    sources = sorted((ROOT / "proto").rglob("*.proto"))
    include = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}"]
    arguments += [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main([*arguments, *map(str, sources)]) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
