"""A model's own chat template: messages to the prompt text that the model was trained on.

Templates are Jinja programs that come with a checkpoint. They run in Jinja's immutable sandbox
with the functions that Hugging Face templates expect, and whatever goes wrong inside one is the
caller's `InvalidArgument`: most templates refuse, say, roles in an order that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from eastwest.clock import Clock
from eastwest.errors import InvalidArgument, ModelError

Message = Mapping[str, Any]  # at least role and content, both text

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                   "mask_token")  # fmt: skip
# What an expression of a template can raise when messages are not what it expects.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError,
                  ArithmeticError, RecursionError)  # fmt: skip


class ChatTemplate:
    """One compiled template. source: None where the model has none; `render` then refuses.

    Raises `ModelError` where `source` is not a template at all.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], clock: Clock) -> None:
        self._special_tokens = dict(special_tokens)
        self._template: jinja2.Template | None = None
        if source is not None:
            try:
                self._template = _environment(clock).from_string(source)
            except (jinja2.TemplateError, RecursionError) as error:
                raise ModelError(f"the model's chat template is broken: {error}") from error

    @property
    def available(self) -> bool:
        return self._template is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt. It spells out all special tokens: encode it without adding any.

        add_generation_prompt: end with the beginning of the assistant's answer. Raises
        `InvalidArgument` where there is no template or it refuses these messages.
        """
        if self._template is None:
            raise InvalidArgument(
                "this model has no chat template; allowed: Generate with a prompt of text or tokens"
            )
        if not messages:
            raise InvalidArgument("messages is empty; allowed: at least one message")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except _RENDER_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InvalidArgument(
                f"the model's chat template refuses the messages: {reason}"
            ) from error


def load_chat_template(directory: Path, clock: Clock) -> ChatTemplate:
    """The template of a Hugging Face directory: chat_template.jinja, else tokenizer_config.json.

    Raises `ModelError` where a file is unreadable or the template broken; a model without any
    template gives one that is not `available`.
    """
    config = _tokenizer_config(directory / "tokenizer_config.json")
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    spelled = {n: t.get("content") if isinstance(t, dict) else t for n, t in tokens.items()}
    special = {name: token for name, token in spelled.items() if isinstance(token, str)}
    path = directory / "chat_template.jinja"
    try:
        source = path.read_text(encoding="utf-8") if path.exists() else _configured(config)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    return ChatTemplate(source, special, clock)


def continuation(
    template: ChatTemplate,
    history: Sequence[Message],
    assistant_text: str,
    new_messages: Sequence[Message],
) -> str | None:
    """What follows the assistant's answer in the prompt of the next turn.

    `history` is what the answer was generated from. The prompt of the next turn is then the
    former prompt, `assistant_text` and the returned text, which begins with what closes the
    answer (for many models the end token, so mind tokens that already end with it). None where
    the template changes earlier text: the whole prompt has to be rendered and encoded again.
    """
    before = template.render(history) + assistant_text
    answer = {"role": "assistant", "content": assistant_text}
    after = template.render([*history, answer, *new_messages])
    return after[len(before) :] if after.startswith(before) else None


def _tokenizer_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; allowed: a JSON object")
    return config


def _configured(config: Mapping[str, Any]) -> str | None:
    """The template in tokenizer_config.json; of several named ones, the default."""
    match config.get("chat_template"):
        case str(source):
            return source
        case [*named]:
            for entry in named:
                match entry:
                    case {"name": "default", "template": str(source)}:
                        return source
    return None


def _environment(clock: Clock) -> ImmutableSandboxedEnvironment:
    def strftime_now(form: str) -> str:
        return datetime.fromtimestamp(clock.wall_s(), UTC).astimezone().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


class _GenerationBlock(Extension):
    """``{% generation %}`` marks an answer for training; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 -- the name and type that Jinja asks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates mean it; Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
