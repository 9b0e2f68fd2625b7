"""Reads and plays transcripts: what the scheduler is told, and what it then wants done.

A transcript is blocks of command lines, a line ``----`` and the expected lines, ended by an empty
line. ``#`` begins a comment. Every command takes ``t=SECONDS``; time stands still without it.

    config NAME=VALUE …                            before anything else
    up WORKER role=ROLE [epoch= blocks= kind= draining=]   the worker has connected
    down WORKER [epoch=]                           its stream is broken
    submit REQUEST [tokens= max= timeout=]
    cancel REQUEST
    stop REQUEST keep=N
    reserved WORKER WORK [cached= loaded= lease=]
    prefilled WORKER WORK token=ID [finish= queue= computed=]
    stepped WORKER WORK:ID,ID[:FINISH] … [first=IMPORT,QUEUE,STEP]
    failed WORKER WORK code=CODE phase=PHASE
    load WORKER [free= running= waiting_tokens= sessions= draining=SECONDS]
    drain WORKER timeout=SECONDS                   the operator wants it away
    undrain WORKER
    drained WORKER [stored= dropped=]
    drainage WORKER                                how its drain stands
    tick
    wakeup                                         when tick is wanted
    loads

Durations of workers are in milliseconds, printed ones too. ``WORKER@EPOCH`` speaks for another
incarnation than the latest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from eastwest.clock import ns, seconds
from eastwest.config import RouterConfig
from eastwest.errors import Cancelled, EastWestError, ErrorCode, Phase
from eastwest.messages import (
    Abort,
    Command,
    Dismiss,
    Drain,
    Drained,
    Erase,
    Event,
    Failed,
    FirstStep,
    Heartbeat,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    ResyncKv,
    SequenceOutput,
    StepBudget,
    Stepped,
    Undrain,
    WorkerInfo,
)
from eastwest.testing.builders import a_load, a_model, a_ticket, a_worker, some_tokens
from eastwest.timing import Timing
from eastwest.types import FinishReason, Role
from router.requests import Action, Deliver, End, Outcome, Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

NS_PER_MS = 1_000_000


def rewritten(text: str) -> str:
    """The transcript as the scheduler would have it."""
    player = Player()
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        told, separator, _ = block.partition("\n----")
        if separator:
            lines = [line for line in told.splitlines() if not line.startswith("#")]
            said = [answer for line in lines for answer in player.play(line)]
            block = "\n".join([told, "----", *(said or ["nothing"])])
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


@dataclass(frozen=True, slots=True)
class Line:
    """A command: its words, and its ``name=value`` options."""

    words: list[str]
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Line:
        parts = text.split()
        options = dict(part.split("=", 1) for part in parts if "=" in part)
        return cls([part for part in parts if "=" not in part], options)

    def number(self, name: str, default: int) -> int:
        return int(self.options.get(name, default))

    def seconds(self, name: str) -> float | None:
        return float(self.options[name]) if name in self.options else None

    def ms(self, name: str, default: int) -> int:
        return self.number(name, default) * NS_PER_MS


class Player:
    """A scheduler and what is known of its workers."""

    def __init__(self) -> None:
        self._scheduler = Scheduler(RouterConfig(conditional=False))
        self._workers: dict[str, WorkerInfo] = {}
        self._now_ns = 0

    def play(self, text: str) -> list[str]:
        """Do one command; returns what came of it, a line each."""
        line = Line.parse(text)
        self._now_ns = ns(float(line.options["t"])) if "t" in line.options else self._now_ns
        commands: dict[str, Callable[[Line], list[Action]]] = {
            "config": self._config,
            "up": self._up,
            "down": self._down,
            "submit": self._submit,
            "cancel": self._cancel,
            "stop": self._stop,
            "drain": self._drain,
            "undrain": lambda at: self._scheduler.undrain(at.words[1]),
            "tick": lambda _: self._scheduler.tick(self._now_ns),
        }
        views: dict[str, Callable[[Line], list[str]]] = {
            "wakeup": self._wakeup,
            "loads": self._loads,
            "drainage": self._drainage,
        }
        if (view := views.get(line.words[0])) is not None:
            return view(line)
        command = commands.get(line.words[0], self._event)
        try:
            actions = command(line)
        except EastWestError as error:
            return [f"refused, {_describe_error(error)}"]
        self._scheduler.check_integrity()
        return [said for action in actions for said in describe(action)]

    def _config(self, line: Line) -> list[Action]:
        values: dict[str, Any] = {"conditional": False, **line.options}
        self._scheduler = Scheduler(RouterConfig(**values))
        return []

    def _up(self, line: Line) -> list[Action]:
        info = a_worker(
            line.words[1],
            Role(line.options["role"]),
            epoch=line.number("epoch", 1),
            num_blocks=line.number("blocks", 1024),
            model=a_model(fingerprint=line.options.get("kind", "a")),
        )
        info = replace(info, draining_s=line.seconds("draining"))
        former = self._workers.get(info.worker_id)
        if former is None or former.epoch <= info.epoch:
            self._workers[info.worker_id] = info
        return self._scheduler.worker_up(info, self._now_ns)

    def _drain(self, line: Line) -> list[Action]:
        timeout_s = float(line.options["timeout"])
        return self._scheduler.drain(line.words[1], timeout_s, self._now_ns)

    def _down(self, line: Line) -> list[Action]:
        worker_id, epoch = self._speaker(line)
        return self._scheduler.worker_down(worker_id, epoch, "stream broken", self._now_ns)

    def _submit(self, line: Line) -> list[Action]:
        request = a_request(
            line.words[1],
            tokens=line.number("tokens", 300),
            max_tokens=line.number("max", 10),
            accepted_ns=self._now_ns,
            timeout_s=float(line.options.get("timeout", 600)),
        )
        return self._scheduler.submit(request, self._now_ns)

    def _cancel(self, line: Line) -> list[Action]:
        error = Cancelled("the client went away")
        return self._scheduler.cancel(line.words[1], error, self._now_ns)

    def _stop(self, line: Line) -> list[Action]:
        keep = line.number("keep", 0)
        return self._scheduler.stop(line.words[1], self._now_ns, keep)

    def _event(self, line: Line) -> list[Action]:
        worker_id, epoch = self._speaker(line)
        event = _event_of(line, self._workers[worker_id])
        return self._scheduler.event(worker_id, epoch, event, self._now_ns)

    def _speaker(self, line: Line) -> tuple[str, int]:
        worker_id, _, epoch = line.words[1].partition("@")
        return worker_id, int(epoch or self._workers[worker_id].epoch)

    def _wakeup(self, _: Line) -> list[str]:
        wakeup = self._scheduler.next_wakeup_ns()
        return ["never" if wakeup is None else f"at {seconds(wakeup):g} s"]

    def _loads(self, _: Line) -> list[str]:
        loads = self._scheduler.loads()
        counters = loads.counters
        failed = "".join(f", {code} {count}" for code, count in sorted(counters.failed.items()))
        moved = f", moved {counters.migrations}" if counters.migrations else ""
        return [
            f"waiting {loads.waiting}, active {loads.active}, stale events {loads.stale_events}",
            f"completed {counters.completed}{failed}{moved}",
            *(f"{v.info.worker_id}@{v.info.epoch} {v.liveness}" for v in loads.workers),
        ]

    def _drainage(self, line: Line) -> list[str]:
        view = self._scheduler.drains.view(line.words[1], self._now_ns)
        if view is None:
            return [f"{line.words[1]} never drained"]
        return [
            f"{view.worker_id} {view.state} for {view.elapsed_s:g} s: running {view.running}, "
            f"finished {view.finished}, moved {view.moved}; sessions resting "
            f"{view.sessions_resting}, stored {view.sessions_stored}, "
            f"dropped {view.sessions_dropped}"
        ]


def _event_of(line: Line, worker: WorkerInfo) -> Event:
    kind, _, *works = line.words
    options = line.options
    match kind:
        case "reserved":
            lease_s = float(options.get("lease", 30))
            ticket = a_ticket(worker, transfer_id=f"{works[0]}", lease_s=lease_s)
            return Reserved(works[0], ticket, line.number("cached", 0), line.number("loaded", 0))
        case "prefilled":
            finish = FinishReason(options["finish"]) if "finish" in options else None
            (token,) = some_tokens(line.number("token", 0))
            queue_ns, computed = line.ms("queue", 0), line.number("computed", 300)
            return Prefilled(works[0], token, finish, queue_ns, 0, computed, 0)
        case "stepped":
            return Stepped(tuple(_output_of(work, options.get("first")) for work in works))
        case "failed":
            phase, code = Phase(options["phase"]), ErrorCode(options["code"])
            return Failed(works[0], code, "as the transcript says", phase)
        case "load":
            load = a_load(
                free_blocks=line.number("free", worker.num_blocks),
                num_blocks=worker.num_blocks,
                running=line.number("running", 0),
                waiting_tokens=line.number("waiting_tokens", 0),
                sessions_inactive=line.number("sessions", 0),
            )
            return replace(load, draining_s=line.seconds("draining"))
        case "drained":
            return Drained(line.number("stored", 0), line.number("dropped", 0))
        case _:
            raise AssertionError(f"no such command: {kind}")


def _output_of(text: str, first: str | None) -> SequenceOutput:
    work_id, ids, *finish = text.split(":")
    tokens = some_tokens(*(int(i) for i in ids.split(",") if i))
    step = None
    if first is not None:
        imported, queued, stepped = (int(part) * NS_PER_MS for part in first.split(","))
        step = FirstStep(imported, queued, stepped, transfer_ns=NS_PER_MS, transfer_bytes=4096)
    return SequenceOutput(work_id, tokens, FinishReason(finish[0]) if finish else None, step)


def describe(action: Action) -> list[str]:
    """An action in a line or two."""
    match action:
        case Send():
            return [f"{action.worker_id}@{action.epoch} {_describe_command(action.command)}"]
        case Deliver():
            return [f"{action.request_id} gets {' '.join(str(t.token) for t in action.tokens)}"]
        case End():
            return _describe_end(action.request_id, action.result)


def _describe_command(command: Command) -> str:
    match command:
        case Reserve():
            return f"reserve {command.request_id}{_after(command)} timeout={command.timeout_s:g}"
        case Prefill():
            ticket = command.ticket
            where = f"{ticket.worker_id}@{ticket.epoch}"
            timeout = f"timeout={command.timeout_s:g}"
            return f"prefill {command.request_id}{_after(command)} for={where} {timeout}"
        case Abort():
            return f"abort {command.request_id}"
        case Heartbeat():
            return "heartbeat"
        case ResyncKv():
            return "resync"
        case Drain():
            return f"drain timeout={command.timeout_s:g}"
        case Undrain():
            return "undrain"
        case Dismiss():
            return "dismiss"
        case StepBudget():
            return f"spend {command.prompt_tokens} on prompts"
        case Erase():
            return f"erase {command.session_id}"


def _after(command: Reserve | Prefill) -> str:
    """The output that the work goes on behind."""
    return f" after={','.join(map(str, command.output))}" if command.output else ""


def _describe_end(request_id: str, result: Outcome | EastWestError) -> list[str]:
    if isinstance(result, EastWestError):
        return [f"{request_id} fails, {_describe_error(result)}"]
    tokens, usage = " ".join(str(t.token) for t in result.tokens), result.usage
    moved = f", moved {usage.migrations}, recomputed {usage.recomputed_tokens}"
    return [
        f"{request_id} completes, {result.finish}: {tokens}",
        f"  by {result.prefill_worker} and {result.decode_worker}; prompt {usage.prompt_tokens}, "
        f"output {usage.completion_tokens}, cached {usage.cached_tokens}, "
        f"loaded {usage.loaded_tokens}, computed {usage.computed_tokens}"
        + (moved if usage.migrations else ""),
        *_describe_timing(result.marks.timing(result.marks.first_token_ns)),
    ]


def _describe_timing(timing: Timing) -> list[str]:
    first, second = timing.ttft, timing.second
    lines = [
        f"  first token {_ms(first.total_ns)} ms: admission {_ms(first.admission_ns)}, "
        f"queue {_ms(first.queue_ns)}, reservation {_ms(first.reservation_ns)}, "
        f"prefill {_ms(first.prefill_ns)}, delivery {_ms(first.delivery_ns)}"
    ]
    if second is not None:
        lines.append(
            f"  second token {_ms(second.total_ns)} ms: "
            f"exposed transfer {_ms(second.exposed_transfer_ns)}, import {_ms(second.import_ns)}, "
            f"decode queue {_ms(second.decode_queue_ns)}, first step {_ms(second.first_step_ns)}"
            + (f", migration {_ms(second.migration_ns)}" if second.migration_ns else "")
        )
    return [*lines, f"  last token {_ms(timing.e2e_ns)} ms"]


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_MS:g}"


def _describe_error(error: EastWestError) -> str:
    phase = f" in {error.phase}" if error.phase else ""
    retry = "" if error.retry_after_s is None else f" (retry after {error.retry_after_s:g} s)"
    return f"{error.code}{phase}: {error.message}{retry}"
