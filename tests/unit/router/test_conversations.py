"""What is kept of an answer that a stop string cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.clock import SystemClock
from kv_store.sessions import MemorySessionStore, SessionRecord
from router.chat_template import load_chat_template
from router.conversations import Conversations
from router.session_book import SessionBook
from router.text import load_tokenizer
from tests.byte_tokenizer import ids_of, write_tokenizer


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Conversations:
    directory: Path = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    clock = SystemClock()

    async def erase(record: SessionRecord) -> None:
        raise AssertionError("nothing is deleted here")

    return Conversations(
        load_tokenizer(directory),
        load_chat_template(directory, clock),
        SessionBook(None, MemorySessionStore(1, 1.0, clock)),
        erase,
        clock,
    )


@settings(deadline=None)
@given(text=st.text("aé€😀 .", max_size=20), stop=st.text("aé€ .", max_size=5))
def test_the_tokens_kept_spell_the_text_kept(
    conversations: Conversations, text: str, stop: str
) -> None:
    kept = conversations.output_before(ids_of(text + stop), text)
    assert kept == ids_of(text)


def test_text_that_no_tokens_spell_is_encoded_anew(conversations: Conversations) -> None:
    assert conversations.output_before(ids_of("xyz"), "abc") == ids_of("abc")
    assert conversations.output_before((), "abc") == ids_of("abc")
