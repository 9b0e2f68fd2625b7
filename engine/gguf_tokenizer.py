"""The tokenizer inside a GGUF file, written as the files that Hugging Face models come with.

Byte-level BPE only. A GGUF names its way of splitting text before the merges apply instead of
describing it; `_SPLITS` describes those that are known, and any other is refused, since a wrong
split gives a model text that it was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from eastwest.errors import ModelError
from engine.gguf_file import GGUFFile

_CONTROL, _USER_DEFINED = 3, 4

# Contractions, words with the space before them, numbers, punctuation, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Split:
    """How text is cut before the merges apply.

    pattern: what one piece looks like; None for GPT-2's own, built into the byte-level step.
    lone_digits: each digit is cut off first. nfc: text is brought to NFC before anything.
    whole_words: a piece that is a token is taken as it is, whatever the merges say.
    bos: a text begins with the begin token where the file does not say.
    """

    pattern: str | None = None
    lone_digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


_SPLITS: dict[str, _Split] = {
    "gpt-2": _Split(),
    "smollm": _Split(lone_digits=True),
    "qwen2": _Split(_WORDS.replace("NUMBER", r"\p{N}"), nfc=True),
    "llama-bpe": _Split(_WORDS.replace("NUMBER", r"\p{N}{1,3}"), whole_words=True, bos=True),
}


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What the model's config repeats of its tokenizer. eos: tokens that end a turn or a text."""

    size: int
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def write_tokenizer(source: GGUFFile, directory: Path) -> TokenizerFacts:
    """Write tokenizer.json and tokenizer_config.json. Raises `ModelError` as in the module."""
    model = source.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise ModelError(
            f"{source.path}: the tokenizer is of type {model!r}; allowed in a GGUF: 'gpt2' "
            f"(byte-level BPE). Use the model's Hugging Face directory instead"
        )
    pre = source.text("tokenizer.ggml.pre", "gpt-2")
    split = _SPLITS.get(pre)
    if split is None:
        raise ModelError(
            f"{source.path}: the pre-tokenizer is {pre!r}; allowed in a GGUF: "
            f"{', '.join(sorted(_SPLITS))}. Use the model's Hugging Face directory instead"
        )
    tokens: list[str] = source.items("tokenizer.ggml.tokens", str)
    facts = TokenizerFacts(
        len(tokens),
        _special(source, "bos", len(tokens)),
        _eos(source, len(tokens)),
        _special(source, "padding", len(tokens)),
    )
    tokenizer = _byte_level_bpe(source, tokens, split)
    add_bos = source.boolean("tokenizer.ggml.add_bos_token", split.bos)
    add_eos = source.boolean("tokenizer.ggml.add_eos_token", False)
    _frame(tokenizer, tokens, facts.bos if add_bos else None, facts.eos if add_eos else ())
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = _special(source, key, len(tokens))
        config[f"{name}_token"] = None if token is None else tokens[token]
    if template := source.text("tokenizer.chat_template", ""):
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return facts


def _byte_level_bpe(source: GGUFFile, tokens: list[str], split: _Split) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ModelError(f"{source.path}: tokenizer.ggml.tokens holds a token twice")
    kinds: list[int] = source.items("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        raise ModelError(f"{source.path}: {len(tokens)} tokens have {len(kinds)} token types")
    merges = []
    for merge in source.items("tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise ModelError(f"{source.path}: the merge {merge!r} is not of known tokens")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.whole_words))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts: list[pre_tokenizers.PreTokenizer] = []
    if split.lone_digits:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        cuts.append(pre_tokenizers.Split(Regex(split.pattern), "isolated"))
    by_words = split.pattern is None
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    named = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([_added(t, special=True) for t, k in named if k == _CONTROL])
    tokenizer.add_tokens([_added(t, special=False) for t, k in named if k == _USER_DEFINED])
    return tokenizer


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)


def _frame(
    tokenizer: Tokenizer, tokens: Sequence[str], bos: int | None, eos: tuple[int, ...]
) -> None:
    """Let the tokenizer put the begin and end tokens around a text where the file asks for it."""
    before = [] if bos is None else [bos]
    after = list(eos[:1])
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(tokens[i] for i in before), "$A", *(tokens[i] for i in after)],
            special_tokens=[(tokens[i], i) for i in {*before, *after}],
        )


def _eos(source: GGUFFile, size: int) -> tuple[int, ...]:
    ends = [_special(source, name, size) for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(token for token in ends if token is not None))


def _special(source: GGUFFile, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in source.metadata:
        return None
    token = source.integer(key)
    if not 0 <= token < size:
        raise ModelError(f"{source.path}: {key} is {token}; allowed: below {size}")
    return token
