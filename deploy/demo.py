"""`eastwest demo`: the main job, once, with real parts, explained as it goes."""

from __future__ import annotations

import asyncio
import os

import psutil
from rich.console import Console
from rich.panel import Panel

from deploy.launch import Deployment
from deploy.report import timing_table, usage_lines, workers_table
from eastwest.answers import Completion
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.errors import InternalError
from eastwest.types import Role

QUESTIONS = (
    "Explain in a few sentences why the sky is blue and why sunsets are red.",
    "Now say it again so that a child of six understands it.",
)
SESSION = "demo"
MAX_TOKENS = 96
SPILL_TIMEOUT_S = 120.0
IDLE_S = 2.0
POLL_S = 0.2


async def run_demo(config: Config, console: Console) -> None:
    """The whole story; raises a typed error where any part of it fails."""
    store = config.store.model_copy(update={"idle_s": IDLE_S})
    # A short question would be prefilled where it decodes, and no KV would move.
    router = config.router.model_copy(update={"conditional": False})
    config = config.model_copy(update={"store": store, "router": router})
    progress = _Progress(console)
    deployment = Deployment(config, progress=progress)
    with progress:
        await deployment.start()
    try:
        async with AsyncClient(deployment.address) as client:
            await _story(deployment, client, console, progress)
        _show_memory(console)
    finally:
        with progress:
            await deployment.stop()
    console.print("everything is stopped")


async def _story(
    deployment: Deployment, client: AsyncClient, console: Console, progress: _Progress
) -> None:
    model = await client.model_info()
    console.print(
        f"[bold]{model.name}[/] ({model.architecture}, {model.dtype}, "
        f"{model.kv_bytes_per_token:,} bytes of KV a token) at {deployment.address}\n"
    )
    await _ask(client, console, QUESTIONS[0])
    await _wait_for_spill(client, console, progress)
    decode = next(w for w in deployment.supervisor.workers() if w.startswith(Role.DECODE))
    with progress:
        progress(f"stopping {decode}: all KV on its device is gone")
        await deployment.stop_worker(decode)
        progress("starting a new decode worker")
        placed = await deployment.start_worker(Role.DECODE)
        await deployment.wait_ready()
    console.print(f"[green]✓[/] {decode} is stopped, {placed.info.worker_id} serves in its place\n")
    completion = await _ask(client, console, QUESTIONS[1])
    loaded, prompt = completion.usage.loaded_tokens, completion.usage.prompt_tokens
    if loaded == 0:
        raise InternalError("the session's KV was computed again instead of loaded")
    console.print(
        f"[green]✓[/] the conversation went on from the store: [bold]{loaded}[/] of its {prompt} "
        f"prompt tokens were loaded instead of recomputed\n"
    )


async def _ask(client: AsyncClient, console: Console, question: str) -> Completion:
    console.print(Panel(question, title="question", title_align="left", expand=False))
    generation = client.chat(
        [{"role": "user", "content": question}],
        session=SESSION,
        temperature=0.0,
        max_tokens=MAX_TOKENS,
    )
    async for chunk in generation:
        console.print(chunk.text, end="", markup=False, highlight=False, soft_wrap=True)
    completion = await generation
    console.print("\n")
    console.print(timing_table(completion))
    console.print(usage_lines(completion))
    console.print()
    return completion


async def _wait_for_spill(client: AsyncClient, console: Console, progress: _Progress) -> None:
    """Until no session rests on a device any more and one has been stored."""
    with progress:
        progress(f"the session is inactive; after {IDLE_S:g} s it spills to the store")
        async with asyncio.timeout(SPILL_TIMEOUT_S):
            while True:
                loads = await client.loads()
                spilled = sum(w.sessions_spilled for w in loads.workers)
                blocks = sum(w.spilled_blocks for w in loads.workers)
                if spilled:
                    break
                await asyncio.sleep(POLL_S)
    tokens = blocks * loads.workers[0].block_tokens
    console.print(f"[green]✓[/] {blocks} KV blocks ({tokens} tokens) rest in the store")
    console.print(workers_table(loads.workers))


def _show_memory(console: Console) -> None:
    """Resident memory of this process and all it started."""
    me = psutil.Process(os.getpid())
    total, largest = 0, 0
    for process in [me, *me.children(recursive=True)]:
        try:
            resident = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        total += resident
        largest = max(largest, resident)
    console.print(
        f"memory: {total / 2**20:,.0f} MiB resident in all processes together, "
        f"{largest / 2**20:,.0f} MiB in the largest\n"
    )


class _Progress:
    """Says what is waited for, inside a `with`: a spinner with the latest text on a terminal, a
    line for each text elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None

    def __call__(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(f"… {text}", markup=False)

    def __enter__(self) -> None:
        if self._status is not None:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
