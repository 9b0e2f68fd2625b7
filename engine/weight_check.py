"""Whether a checkpoint has what a rank reads, in the form that config.json says, and nothing in
its layers that the rank would not read: a tensor left out would make another model of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from eastwest.errors import ModelError
from engine.architecture import ArchitectureConfig
from engine.block_scales import SUFFIX
from engine.tensor_reader import TensorSource
from engine.weight_shapes import Shape, expected_shapes

_PLAIN = ("F64", "F32", "F16", "BF16")
_SCALED = "F8_E4M3"
_SCALES = ("F32", "F16", "BF16", "F8_E8M0")
_EMBEDDING = "model.embed_tokens"
_NAMED_MAX = 3


def check_tensors(source: TensorSource, config: ArchitectureConfig, layers: range) -> None:
    """Raise `ModelError` naming the first tensor that is absent or has a wrong shape or dtype, or
    those of `layers`, embedding, norm and head that nothing reads."""
    names, read = source.names(), set()
    for name, shape in _expected(source, config, layers):
        if name not in names:
            raise ModelError(f"{config.name}: the checkpoint has no tensor {name!r}")
        found = source.shape(name)
        if found != shape:
            raise ModelError(
                f"{config.name}: {name} has shape {list(found)}; config.json makes it {list(shape)}"
            )
        read.add(name)
    unread = sorted(name for name in names - read if _matters(name, config, layers))
    if unread:
        more = f" and {len(unread) - _NAMED_MAX} more" if len(unread) > _NAMED_MAX else ""
        raise ModelError(
            f"{config.name}: the checkpoint has {', '.join(unread[:_NAMED_MAX])}{more}, which a "
            f"model with this config.json has no use for; allowed: its own tensors alone"
        )


def _expected(
    source: TensorSource, config: ArchitectureConfig, layers: range
) -> Iterator[tuple[str, Shape]]:
    """The tensors that are read, each followed by its scales where it has some."""
    for name, shape in expected_shapes(config, layers):
        yield name, shape
        dtype, blocks = source.dtype(name), config.block_scales
        scalable = blocks is not None and len(shape) == 2 and not name.startswith(_EMBEDDING)
        allowed = (*_PLAIN, _SCALED) if scalable else _PLAIN
        if dtype not in allowed:
            raise _wrong_dtype(config, name, dtype, allowed)
        if blocks is not None and dtype == _SCALED:
            yield name + SUFFIX, blocks.shape(shape)
            dtype = source.dtype(name + SUFFIX)
            if dtype not in _SCALES:
                raise _wrong_dtype(config, name + SUFFIX, dtype, _SCALES)


def _wrong_dtype(
    config: ArchitectureConfig, name: str, dtype: str, allowed: tuple[str, ...]
) -> ModelError:
    return ModelError(
        f"{config.name}: {name} is of dtype {dtype}; allowed with this config.json: "
        f"{', '.join(allowed)}"
    )


def _matters(name: str, config: ArchitectureConfig, layers: range) -> bool:
    """Whether a tensor would change what `layers`, embedding, norm or head compute.

    Rotary buffers follow from config.json, and a tied head is the embedding, whatever is stored
    of it. Layers from num_hidden_layers on predict further tokens.
    """
    if ".rotary_emb." in name:
        return False
    if name.startswith("lm_head."):
        return not config.tied_embeddings
    if name.startswith("model.layers."):
        index = name.split(".")[2]
        return index.isdecimal() and int(index) in layers
    return name.startswith((f"{_EMBEDDING}.", "model.norm."))
