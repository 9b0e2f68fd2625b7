"""Fixtures that more than one tier of tests uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from eastwest.testing.engine import VOCAB

# Machines that run the tests are busy; no example may fail for being slow. `make test` tries the
# same examples each time, so that it fails for a change only; `make chaos` looks for new ones.
settings.register_profile("eastwest", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("eastwest")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a byte-level tokenizer for the simulated engine, and a chat template."""
    directory = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<end>", *alphabet]
    words += [f"<{i}>" for i in range(VOCAB - len(words))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% if message.role == 'assistant' %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    config = {"chat_template": template, "eos_token": "<end>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
