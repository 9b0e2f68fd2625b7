"""A GGUF file as typed metadata and dequantised tensors, read by the `gguf` library.

The library trusts the file; here every read is held inside it, and what is absent or of another
type than a GGUF should have is a `ModelError` that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
import torch

from eastwest.errors import ModelError

MAGIC = b"GGUF"
_T = TypeVar("_T", int, float, bool, str, list[Any])
_WIDE = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
}


class GGUFFile:
    """One opened file. Values are checked when they are asked for.

    tensors: name to shape, in PyTorch's order (rows first).
    """

    def __init__(self, path: Path, reader: gguf.GGUFReader, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self._tensors = {t.name: t for t in reader.tensors}
        self.tensors = {
            name: tuple(reversed([int(n) for n in t.shape])) for name, t in self._tensors.items()
        }

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; `default` where the key is absent."""
        return self._typed(key, int, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A real number: the shortest decimal that means the stored float32."""
        value = self._typed(key, float, default)
        return float(str(np.float32(value)))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        return self._typed(key, bool, default)

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, str, default)

    def items(self, key: str, kind: type[int] | type[str]) -> list[Any]:
        """An array whose elements are all of `kind`."""
        values = self._typed(key, list, None)
        if not all(type(value) is kind for value in values):
            raise ModelError(f"{self.path}: {key} holds other elements than {kind.__name__}")
        return values

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in the smallest float type that keeps what the file says of it.

        float32 and float16 stay as they are, and so do vectors (norms, biases: kilobytes).
        Quantised matrices become bfloat16: the rounding is far below their quantisation error
        (60 times for Q4_1), and engines that compute in bfloat16 can use the mapped file as is.
        """
        source = self._tensors[name]
        try:
            values = gguf.dequantize(source.data, source.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                f"{self.path}: {name} is of type {source.tensor_type.name}, which cannot be "
                f"dequantised: {error}"
            ) from error
        wide = torch.float32 if values.ndim == 1 else torch.bfloat16
        tensor = torch.from_numpy(np.array(values, order="C"))
        tensor = tensor.to(_WIDE.get(source.tensor_type, wide))
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{self.path}: {name} holds values that are not finite")
        return tensor

    def _typed(self, key: str, kind: type[_T], default: _T | None) -> _T:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path} has no {key}; a GGUF model needs it")
        if type(value) is not kind:
            raise ModelError(
                f"{self.path}: {key} is a {type(value).__name__}; allowed: {kind.__name__}"
            )
        return value


def is_gguf(path: Path) -> bool:
    """Whether the file begins like one. Raises `ModelError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def read_gguf(path: Path) -> GGUFFile:
    """Open a file and read all its metadata; the tensors stay on disk.

    Raises `ModelError` where it is no GGUF, truncated or inconsistent.
    """
    if not is_gguf(path):
        raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    try:
        reader = _BoundedReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is truncated or not a sound GGUF file: {error}") from error
    return GGUFFile(path, reader, metadata)


class _BoundedReader(gguf.GGUFReader):
    """Ends at the end of the file.

    The library's own `_get` returns less than asked there, so that a count which a broken header
    claims would keep it reading nothing for a very long time.
    """

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self.data.size:
            raise ValueError(f"byte {end} is needed, and the file has {self.data.size}")
        return super()._get(offset, dtype, count, override_order)
