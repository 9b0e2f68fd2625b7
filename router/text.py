"""Text to token ids and back, and back again token by token while a request streams.

A `Detokenizer` belongs to one request. Its text is in one of three places: emitted; held because
it may be the beginning of a stop string; or still tokens, because their bytes may be half a
character. `flush` emits what is held when no more tokens come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from eastwest.errors import InvalidArgument, ModelError

# What the bytes of an incomplete or wrong character decode to.
_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so that no more of the last replacements can become one.
_INCOMPLETE_MAX = 3
# Tokens that may be pending, when a model goes on without one complete character, and those that
# are kept then: enough to hold any incomplete character and the text before it.
_PENDING_MAX, _PENDING_KEPT = 64, 16


class Tokenizer:
    """The tokenizer of one model. Immutable; threads may share it."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        known = backend.get_vocab(with_added_tokens=True).values()
        self._with_text = frozenset(known) - self._special

    @property
    def vocab_size(self) -> int:
        """Known tokens, added ones included; the model's own vocabulary may be padded beyond."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, framed as the model's tokenizer frames a text if asked to.

        Special tokens that are spelled out in `text` are recognised. Raises `InvalidArgument`
        where `text` is not valid Unicode.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:  # what the library makes of a str that UTF-8 cannot spell
            raise InvalidArgument(
                "the text holds half a surrogate pair; allowed: valid Unicode"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, special and unknown tokens left out; U+FFFD for wrong bytes."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """One token as text, special ones as they are spelled; "" for an unknown one."""
        if token in self._special:
            return self._backend.id_to_token(token) or ""
        return self._backend.decode([token], skip_special_tokens=False)

    def has_text(self, token: int) -> bool:
        """Whether the token is part of a decoded text: known and not special."""
        return token in self._with_text


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory. Raises `ModelError` where none is sound."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} is absent; a model directory needs it")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"{path} is not a sound tokenizer: {error}") from error


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one push adds to a request's text.

    tokens: how many of the pushed tokens belong to the output: all of them, or those up to the
    one that completed a stop string. stop: the stop string that ended the text, if one did.
    """

    text: str
    tokens: int
    stop: str | None = None


class Detokenizer:
    """Token ids to text for one request.

    All texts of pushes and of the flush together are `Tokenizer.decode` of all tokens, however
    the tokens are split over pushes; no character is emitted in halves. (Only where wrong bytes
    follow right ones in a byte-fallback vocabulary, decoding at once would spoil text that is
    out by then; it stays.) With stop strings, the text ends before the first that is complete
    (the longest, where several end together).
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        assert all(stop), "stop strings are not empty"
        self._characters = _Characters(tokenizer)
        self._stops = [_StopString(text) for text in stop]
        self._held = ""
        self._stopped_by: str | None = None

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Add tokens. After a stop string nothing more is taken."""
        if not self._stops:
            return TextDelta(self._characters.push_all(token_ids), len(token_ids))
        parts: list[str] = []
        taken = 0
        for token in token_ids:
            if self._stopped_by is not None:
                break
            parts.append(self._release(self._characters.push(token)))
            taken += 1
        return TextDelta("".join(parts), taken, self._stopped_by)

    def flush(self) -> TextDelta:
        """End of the tokens: the rest of the text, where no stop string ended it."""
        if self._stopped_by is not None:
            return TextDelta("", 0, self._stopped_by)
        text = self._release(self._characters.flush())
        if self._stopped_by is None:
            text, self._held = text + self._held, ""
        return TextDelta(text, 0, self._stopped_by)

    def _release(self, text: str) -> str:
        """The text that no stop string can claim any more, `text` being what is new."""
        if not self._stops:
            return text
        for position, character in enumerate(text):
            complete = [s.text for s in self._stops if s.advance(character)]
            if complete:
                self._stopped_by = max(complete, key=len)
                until_stop = self._held + text[: position + 1]
                self._held = ""
                return until_stop[: -len(self._stopped_by)]
        known = self._held + text
        free = len(known) - max(s.matched for s in self._stops)
        self._held = known[free:]
        return known[:free]


class _Characters:
    """Tokens to whole characters.

    Decoding looks at neighbours (bytes of one character, spaces at the very start), so a window
    is decoded: the last tokens that gave complete text, and those since, which are pending. `_out`
    is the text of the window that is out. The library's own DecodeStream fails for good on wrong
    bytes in a byte-fallback vocabulary, and cannot give back what it holds at the end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._complete = 0  # tokens at the front of the window whose text is out
        self._out = ""

    def push_all(self, tokens: Sequence[int]) -> str:
        """As `push` of each, and cheaper where all of them give whole characters."""
        known = [token for token in tokens if self._tokenizer.has_text(token)]
        if len(known) > 1:
            window = self._window + known
            text = self._tokenizer.decode(window)
            # Decoding wrong bytes together with right ones may spoil both.
            if _REPLACEMENT not in text:
                new, self._window = text[len(self._out) :], window
                self._settle()
                return new
        return "".join([self.push(token) for token in known])

    def push(self, token: int) -> str:
        if not self._tokenizer.has_text(token):
            return ""
        self._window.append(token)
        text = self._text()
        unsure = len(text) - len(text.rstrip(_REPLACEMENT))
        full = len(self._window) - self._complete > _PENDING_MAX
        end = len(text) - (min(unsure, _INCOMPLETE_MAX) if full else unsure)
        new = text[len(self._out) : end]
        self._out += new
        if new and not unsure:
            self._settle()
        elif full:
            unfinished = len(text) - len(self._out)
            del self._window[:-_PENDING_KEPT]
            kept = self._tokenizer.decode(self._window)
            self._out = kept[: max(0, len(kept) - unfinished)]
            self._complete = 0
        return new

    def flush(self) -> str:
        new = self._text()[len(self._out) :]
        self._out += new
        return new

    def _text(self) -> str:
        """The text of the window. Wrong bytes spoil right ones before them, in a byte-fallback
        vocabulary; what is out by then stays as it is, and pending tokens are decoded alone."""
        text = self._tokenizer.decode(self._window)
        if self._complete and not text.startswith(self._out):
            settled = self._tokenizer.decode(self._window[: self._complete])
            text = settled + self._tokenizer.decode(self._window[self._complete :])
        return text

    def _settle(self) -> None:
        """All of the window is out as whole characters. What was complete before is not needed,
        unless the rest has no text at the start of a text (a space that is stripped there)."""
        rest = self._tokenizer.decode(self._window[self._complete :])
        if rest:
            del self._window[: self._complete]
        self._out = rest or self._tokenizer.decode(self._window)
        self._complete = len(self._window)


class _StopString:
    """How much of one stop string the text ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._border = [0] * len(text)  # longest proper border of text[:i + 1]
        length = 0
        for i in range(1, len(text)):
            while length and text[i] != text[length]:
                length = self._border[length - 1]
            length += text[i] == text[length]
            self._border[i] = length

    def advance(self, character: str) -> bool:
        """Take the next character of the text; whether the stop string is complete."""
        while self.matched and character != self.text[self.matched]:
            self.matched = self._border[self.matched - 1]
        self.matched += character == self.text[self.matched]
        return self.matched == len(self.text)
