"""A model directory with one token a byte and two special ones: a test knows what a text costs."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

END, START = 0, 1
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def write_tokenizer(directory: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """The files of a model directory that a router reads."""
    vocab = {"<e>": END, "<s>": START}
    vocab.update({character: 2 + i for i, character in enumerate(_BYTES)})
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<e>", "<s>"])
    backend.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<e>"} | ({"chat_template": chat_template} if chat_template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def ids_of(text: str) -> tuple[int, ...]:
    """The tokens of a text without special ones."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = "".join(piece for piece, _ in pieces.pre_tokenize_str(text)) if text else ""
    return tuple(2 + _BYTES.index(character) for character in spelled)
