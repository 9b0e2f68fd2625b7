"""SIMULATED: a vLLM worker as routers over HTTP see it, with an engine that takes no time.

Our own stand-in, for peers that route between workers that speak HTTP: ``http_worker.py ROLE``. A
step gives each running request one token, whose event is written at once; a prefill worker gives
one token and no more. Prints ``ready HOST:PORT`` and ends with its input. Standard library only.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any

_NUMBERS = itertools.count()
_MODEL = "simulated"


class Engine:
    """All running streams of the worker."""

    def __init__(self) -> None:
        self._running: list[Stream] = []
        self._stepping = False

    def add(self, stream: Stream) -> None:
        self._running.append(stream)
        if not self._stepping:
            self._stepping = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._running = [stream for stream in self._running if stream.step()]
        self._stepping = bool(self._running)
        if self._stepping:
            asyncio.get_running_loop().call_soon(self._step)


class Stream:
    """One answer as events."""

    def __init__(self, transport: asyncio.Transport, asked: dict[str, Any], tokens: int) -> None:
        self._transport = transport
        self._tokens = tokens
        self._written = 0
        head = {"id": f"cmpl-{next(_NUMBERS)}", "object": "text_completion", "model": _MODEL}
        choice = {"index": 0, "text": " word", "finish_reason": None}
        self._event = _piece({**head, "choices": [choice]})
        choice["finish_reason"] = "length"
        self._last = _piece({**head, "choices": [choice]})
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        if (asked.get("stream_options") or {}).get("include_usage"):
            self._last += _piece({**head, "choices": [], "usage": usage})
        self._last += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def step(self) -> bool:
        """Whether there is more."""
        if self._transport.is_closing():
            return False
        self._written += 1
        more = self._written < self._tokens
        self._transport.write(self._event if more else self._last)
        return more


class Connection(asyncio.Protocol):
    """One connection of a router; pipelined requests are not expected."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            size = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    size = int(value)
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            self._answer(head.split(b" ", 2)[1].decode(), rest[:size])

    def _answer(self, path: str, body: bytes) -> None:
        if not path.startswith(("/v1/completions", "/v1/chat/completions")):
            self._whole({"status": "ok", "object": "list", "data": [{"id": _MODEL}],
                         "model_path": _MODEL})  # fmt: skip
            return
        asked = json.loads(body)
        tokens = 1 if sys.argv[1] == "prefill" else int(asked["max_tokens"])
        if asked.get("stream"):
            self._engine.add(Stream(self._transport, asked, tokens))
            return
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        choice = {"index": 0, "text": " word" * tokens, "finish_reason": "length"}
        answer = {"id": f"cmpl-{next(_NUMBERS)}", "object": "text_completion", "model": _MODEL,
                  "choices": [choice], "usage": usage}  # fmt: skip
        if asked.get("kv_transfer_params") is not None:
            answer["kv_transfer_params"] = {
                "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [1],
                "remote_engine_id": "engine", "remote_host": "127.0.0.1", "remote_port": 1,
            }  # fmt: skip
        self._whole(answer)

    def _whole(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
            + str(len(data)).encode() + b"\r\n\r\n" + data
        )  # fmt: skip


def _piece(value: object) -> bytes:
    return _chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def main() -> None:
    engine = Engine()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(engine), "127.0.0.1", 0
    )
    host, port = server.sockets[0].getsockname()[:2]
    print(f"ready {host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
