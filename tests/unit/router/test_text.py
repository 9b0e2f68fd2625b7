"""Tokens to text, whole and in a stream.

Invariants: (1) all deltas together are the text of all tokens; (2) they do not depend on how
tokens are split over pushes; (3) no delta holds U+FFFD unless the whole text does;
(4) with stop strings, the deltas together are the text before the one that is complete first.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from eastwest.errors import InvalidArgument, ModelError
from router.text import Detokenizer, TextDelta, Tokenizer, load_tokenizer
from tests.models import default_model_dir

SMILE = "🙂"
untimed = settings(deadline=None)  # the first example loads the tokenizer


@functools.cache
def default_tokenizer() -> Tokenizer:
    return load_tokenizer(default_model_dir())


@functools.cache
def every_byte() -> Tokenizer:
    """Byte-level, one token a byte (ids 0 to 255) and tokens across characters after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    for pair in ("ĤâĤ", "âĤ", "ĤðŁĻ", "ðŁ"):
        vocab[pair] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend)


@functools.cache
def byte_fallback() -> Tokenizer:
    """As sentencepiece vocabularies are: words with their space, bytes for all else."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "a", "b", "▁a", "▁▁", "é", "<unk>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "▁")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


def streamed(detokenizer: Detokenizer, tokens: list[int], sizes: list[int]) -> list[TextDelta]:
    """Deltas of `tokens` pushed in pieces of `sizes` (taken in turn, 1 after them)."""
    deltas, start = [], 0
    while start < len(tokens):
        size = sizes.pop(0) if sizes else 1
        deltas.append(detokenizer.push(tokens[start : start + size]))
        start += size
    return [*deltas, detokenizer.flush()]


def joined(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


SIZES = st.lists(st.integers(1, 7), max_size=20)


@untimed
@given(tokens=st.lists(st.integers(0, 49151), max_size=60), sizes=SIZES)
def test_any_tokens_in_any_pieces_give_the_text_of_all(tokens: list[int], sizes: list[int]) -> None:
    tokenizer = default_tokenizer()
    deltas = streamed(Detokenizer(tokenizer), tokens, sizes)
    assert joined(deltas) == tokenizer.decode(tokens)
    assert sum(delta.tokens for delta in deltas) == len(tokens)


@untimed
@given(tokens=st.lists(st.integers(0, 260), max_size=200), sizes=SIZES)
def test_wrong_bytes_in_any_pieces_give_the_text_of_all(
    tokens: list[int], sizes: list[int]
) -> None:
    tokenizer = every_byte()
    assert joined(streamed(Detokenizer(tokenizer), tokens, sizes)) == tokenizer.decode(tokens)


@untimed
@given(start=st.integers(0, 3), tokens=st.lists(st.sampled_from([226, 130, 172]), max_size=4))
def test_endless_wrong_bytes_do_not_pile_up(start: int, tokens: list[int]) -> None:
    tokenizer = every_byte()
    lead = tokenizer.encode("€", add_special_tokens=False)[0]
    wrong = [lead] * (300 + start)
    detokenizer = Detokenizer(tokenizer)
    emitted = "".join(detokenizer.push([token]).text for token in wrong)
    assert len(emitted) > 300 - 70
    emitted += joined(streamed(detokenizer, tokens, []))
    assert emitted == tokenizer.decode(wrong + tokens)


PIECES = st.sampled_from([" ", "  ", "a", "b", "é", "€", "🙂", "👩‍👩‍👧", "\n"])
TEXTS = st.lists(st.one_of(PIECES, PIECES, st.characters(codec="utf-8")), max_size=40).map("".join)


@untimed
@given(text=TEXTS, sizes=SIZES)
@pytest.mark.parametrize("make", [default_tokenizer, every_byte, byte_fallback])
def test_no_character_is_emitted_in_halves(
    make: functools._lru_cache_wrapper[Tokenizer], text: str, sizes: list[int]
) -> None:
    tokenizer = make()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    deltas = streamed(Detokenizer(tokenizer), tokens, sizes)
    assert joined(deltas) == tokenizer.decode(tokens)
    if "\ufffd" not in tokenizer.decode(tokens):
        assert all("\ufffd" not in delta.text for delta in deltas)


@untimed
@given(tokens=st.lists(st.integers(0, 262), max_size=200), sizes=SIZES)
@example(tokens=[225, 128, 128, 0, 0, 128], sizes=[1, 4])  # wrong bytes spoil what is out
@example(tokens=[97, 0, 262, 32, 128, 62, 257, 240], sizes=[4])  # and a space, stripped if first
def test_text_does_not_depend_on_the_pieces(tokens: list[int], sizes: list[int]) -> None:
    tokenizer = byte_fallback()
    one_by_one = joined(streamed(Detokenizer(tokenizer), tokens, []))
    assert joined(streamed(Detokenizer(tokenizer), tokens, sizes)) == one_by_one


def test_a_character_of_several_tokens_appears_with_its_last() -> None:
    tokenizer = every_byte()
    tokens = tokenizer.encode(SMILE, add_special_tokens=False)
    assert len(tokens) == 4
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token]).text for token in tokens] == ["", "", "", SMILE]


def test_an_unfinished_character_at_the_end_is_replaced_by_the_flush_only() -> None:
    tokenizer = every_byte()
    tokens = tokenizer.encode("a" + SMILE, add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokens).text == "a"
    assert detokenizer.flush().text == "\ufffd"
    assert detokenizer.flush().text == ""


def test_special_and_unknown_tokens_have_no_text() -> None:
    tokenizer = default_tokenizer()
    hello = tokenizer.encode("Hello there")
    tokens = [1, *hello, 2, 49152, 10**9]
    assert joined(streamed(Detokenizer(tokenizer), tokens, [])) == "Hello there"
    assert tokenizer.decode(tokens) == "Hello there"
    assert tokenizer.token_text(2) == "<|im_end|>"
    assert tokenizer.token_text(10**9) == ""
    assert tokenizer.token_text(hello[1]) == " there"
    assert not tokenizer.has_text(2)


def before_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The obvious way: the first end of any stop string, the longest of those."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("ab🙂", max_size=30),
    stops=st.lists(st.text("ab🙂", min_size=1, max_size=6), max_size=4),
    sizes=SIZES,
)
@example(text="aaab", stops=["aab"], sizes=[])
@example(text="aabaaabaaaa", stops=["aabaaaa"], sizes=[])
@example(text="ababababac", stops=["ababac"], sizes=[])
@example(text="xab", stops=["b", "ab"], sizes=[])
def test_text_ends_before_the_first_complete_stop_string(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    tokenizer = every_byte()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    deltas = streamed(Detokenizer(tokenizer, stops), tokens, sizes)
    expected, stop = before_stop(text, stops)
    assert joined(deltas) == expected
    assert deltas[-1].stop == stop
    until_stop = expected + (stop or "")
    kept = len(tokenizer.encode(until_stop, add_special_tokens=False))
    assert sum(delta.tokens for delta in deltas) == kept


def test_the_beginning_of_a_stop_string_is_held_until_it_is_none() -> None:
    tokenizer = every_byte()
    detokenizer = Detokenizer(tokenizer, ["\nUser:"])

    def push(text: str) -> TextDelta:
        return detokenizer.push(tokenizer.encode(text, add_special_tokens=False))

    assert push("yes\nUs").text == "yes"
    assert push("ual").text == "\nUsual"
    assert push("\nUser").text == ""
    assert push(": more") == TextDelta("", 1, "\nUser:")
    assert push("more") == TextDelta("", 0, "\nUser:")
    assert detokenizer.flush() == TextDelta("", 0, "\nUser:")


def test_the_flush_releases_the_beginning_of_a_stop_string() -> None:
    tokenizer = every_byte()
    detokenizer = Detokenizer(tokenizer, ["###"])
    assert detokenizer.push(tokenizer.encode("a##", add_special_tokens=False)).text == "a"
    assert detokenizer.flush() == TextDelta("##", 0, None)


def test_encoding_refuses_half_a_surrogate_pair() -> None:
    with pytest.raises(InvalidArgument, match="surrogate"):
        default_tokenizer().encode("a\ud83d")


def test_the_vocabulary_has_the_size_of_the_model() -> None:
    assert default_tokenizer().vocab_size == 49152


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": {"type": "X"}}'])
def test_a_directory_without_a_sound_tokenizer_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
