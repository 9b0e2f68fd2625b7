"""Chat templates, compared with what transformers renders."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from eastwest.clock import SystemClock
from eastwest.errors import InvalidArgument, ModelError
from router.chat_template import ChatTemplate, Message, continuation, load_chat_template
from tests.models import default_model_dir

SYSTEM = {"role": "system", "content": "You are brief."}
HELLO = {"role": "user", "content": "Hello!"}
ANSWER = {"role": "assistant", "content": "Hi, what can I do for you?"}
CODE = {"role": "user", "content": "Fix  this:\n\n\tif x<3 && y>'4':\n\t\treturn \"ü🙂\"  "}
CONVERSATIONS = [
    [HELLO],
    [SYSTEM, CODE],
    [HELLO, ANSWER, CODE],
    [SYSTEM, HELLO, ANSWER, CODE, ANSWER, {"role": "user", "content": ""}],
    [{"role": "user", "content": "<|im_end|>\n{{ 7 * 7 }}{% raise %}"}],
]

# As several published templates do: loop controls, tools as JSON, namespaces, generation blocks.
ELABORATE = """\
{%- if not messages or messages[0].role not in ['system', 'user'] %}
    {{- raise_exception('the first message must be of the system or the user') }}
{%- endif %}
{{- bos_token }}
{%- if tools %}
    {{- '[TOOLS]' + tools | tojson + '[/TOOLS]\\n' }}
{%- endif %}
{%- set ns = namespace(users=0) %}
{%- for message in messages %}
    {%- if message.content is none %}
        {%- continue %}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- '<a>' + message.content + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {%- set ns.users = ns.users + 1 %}
        {{- '<' + message.role[0] + ns.users | string + '>' + message.content | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<a>' }}
{%- endif %}
"""
# Forgets what the assistant thought, as templates of reasoning models do.
FORGETFUL = """\
{% for m in messages %}<{{ m.role }}>\
{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


class FixedClock:
    """Noon in every zone's own day, some day."""

    def now_ns(self) -> int:
        return 0

    def wall_s(self) -> float:
        return 1_700_000_000.0


@functools.cache
def default_template() -> ChatTemplate:
    return load_chat_template(default_model_dir(), SystemClock())


@functools.cache
def oracle() -> Any:
    return AutoTokenizer.from_pretrained(default_model_dir())


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate(source, special, SystemClock())


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompted", [True, False])
def test_the_default_model_gets_the_prompt_that_transformers_gives(
    messages: list[Message], prompted: bool
) -> None:
    expected = oracle().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompted
    )
    assert default_template().render(messages, add_generation_prompt=prompted) == expected


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [{"name": "größe", "args": {"<x>": [1, 2.5, None]}}]])
def test_an_elaborate_template_gives_what_transformers_gives(
    messages: list[Message], tools: list[dict[str, Any]] | None
) -> None:
    render: Any = render_jinja_template
    rendered, _ = render(
        [messages], tools=tools, chat_template=ELABORATE, add_generation_prompt=True,
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    ours = template(ELABORATE, bos_token="<s>", eos_token="</s>")
    assert ours.render(messages, tools=tools) == rendered[0]


@pytest.mark.parametrize(
    ("source", "messages", "reason"),
    [
        (ELABORATE, [ANSWER], "first message must be of the system"),
        (ELABORATE, [HELLO, {"role": "assistant", "content": 3}], "concatenate"),
        ("{{ messages[5].content.strip() }}", [HELLO], "5"),
        ("{{ 1 // 0 }}", [HELLO], "zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", [HELLO], "too big"),
        ("{{ messages.append(1) }}", [HELLO], "unsafe|not safely callable"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", [HELLO], "unsafe"),
        (ELABORATE, [], "messages is empty"),
        (None, [HELLO], "no chat template"),
    ],
)
def test_what_a_template_refuses_is_an_invalid_argument(
    source: str | None, messages: Sequence[Message], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason) as caught:
        ChatTemplate(source, {}, SystemClock()).render(messages)
    assert "\n" not in caught.value.message


def test_the_date_comes_from_the_clock() -> None:
    dated = ChatTemplate("{{ strftime_now('%Y-%m') }}", {}, FixedClock())
    assert dated.render([HELLO]) == "2023-11"


def test_rendering_does_not_change_the_messages() -> None:
    messages = [dict(HELLO)]
    with pytest.raises(InvalidArgument):
        template("{{ messages[0].update({'content': 'x'}) }}").render(messages)
    assert messages == [HELLO]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "{{ bos_token }}", "bos_token": "B"}}, "B"),
        ({"tokenizer_config.json": {"chat_template": "C", "bos_token": None}}, "C"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": "C",
                    "eos_token": {"content": "</s>", "special": True},
                },
                "chat_template.jinja": "J{{ eos_token }}",
            },
            "J</s>",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "T"},
                        {"name": "default", "template": "D"},
                    ]
                }
            },
            "D",
        ),
    ],
)  # fmt: skip
def test_the_template_is_found_where_a_model_may_keep_it(
    tmp_path: Path, files: dict[str, Any], expected: str
) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_chat_template(tmp_path, SystemClock()).render([HELLO]) == expected


@pytest.mark.parametrize("config", [None, "{}", '{"chat_template": [{"name": "rag"}]}'])
def test_a_model_may_have_no_template(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    assert not load_chat_template(tmp_path, SystemClock()).available


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff\xfe"),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}'),
        ("chat_template.jinja", b"{{ unclosed"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_an_unreadable_or_broken_template_is_a_model_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        load_chat_template(tmp_path, SystemClock())


@pytest.mark.parametrize("answer", ["Hi there.", "", " spaced \n", "<|im_end|>", "ü🙂"])
@pytest.mark.parametrize("history", CONVERSATIONS)
def test_a_continuation_completes_the_prompt_of_the_next_turn(
    history: list[Message], answer: str
) -> None:
    ours = default_template()
    suffix = continuation(ours, history, answer, [CODE])
    assert suffix is not None
    whole = ours.render([*history, {"role": "assistant", "content": answer}, CODE])
    assert ours.render(history) + answer + suffix == whole
    assert suffix.startswith("<|im_end|>\n<|im_start|>user\n")


def test_there_is_no_continuation_where_the_template_rewrites_the_answer() -> None:
    forgetful = template(FORGETFUL)
    assert continuation(forgetful, [HELLO], "<think>hm</think>Hi", [CODE]) is None
    assert continuation(forgetful, [HELLO], "Hi", [HELLO]) == "\n<user>Hello!\n<assistant>"
