"""What a replayed decision log came to, in words and a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from router.decision_log import Asked, Choice
from sim.decisions import Answer, Compared, Measured, Predicted, Replay, Settings


@dataclass(slots=True)
class Report:
    """Counts and sums; of those that differ, the first `shown` as they are. moved: from one pair to
    another; placed, refused: from nowhere yet to a pair, and back."""

    shown: int
    asked: int = 0
    nowhere: int = 0
    moved: int = 0
    placed: int = 0
    refused: int = 0
    first: list[Compared] = field(default_factory=list)
    pairs: list[tuple[Predicted, Predicted]] = field(default_factory=list)
    ttft: list[tuple[float, float]] = field(default_factory=list)
    tpot: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, replay: Replay, shown: int) -> Report:
        """Run the replay."""
        report = cls(shown)
        for item in replay:
            if isinstance(item, Measured):
                report._went(item)
            else:
                report._answered(item)
        return report

    @property
    def differ(self) -> int:
        return self.moved + self.placed + self.refused

    def _answered(self, item: Compared) -> None:
        recorded, again = item.recorded, item.again
        self.asked += 1
        self.nowhere += recorded.choice is None
        if item.same:
            return
        if len(self.first) < self.shown:
            self.first.append(item)
        if recorded.choice is None:
            self.placed += 1
        elif again.choice is None:
            self.refused += 1
        else:
            self.moved += 1
            if recorded.predicted is not None and again.predicted is not None:
                self.pairs.append((recorded.predicted, again.predicted))

    def _went(self, item: Measured) -> None:
        ended, predicted = item.ended, item.predicted
        if ended.ttft_s is not None:
            self.ttft.append((predicted.ttft_s, ended.ttft_s))
        if ended.tpot_s is not None and not item.moved:
            self.tpot.append((predicted.tpot_s, ended.tpot_s))


def show(replay: Replay, shown: int, console: Console) -> bool:
    """Print what came of it. False where answers differ that must be the same."""
    report = Report.of(replay, shown)
    was, now = Settings.of(replay.header), replay.settings
    how = "the same" if replay.as_recorded else _named(now)
    console.print(f"{replay.path}: recorded of {_named(was)}, asked again of {how}", markup=False)
    for note in _notes(replay):
        console.print(note, markup=False)
    same = report.asked - report.differ
    nowhere = f", {report.nowhere:,} of them nowhere yet" if report.nowhere else ""
    console.print(f"{same:,} of {report.asked:,} placements the same{nowhere}", markup=False)
    if report.differ:
        _show_differences(report, console)
    if report.ttft:
        _show_measured(report, console)
    return not (report.differ and replay.as_recorded)


def _show_differences(report: Report, console: Console) -> None:
    kinds = {
        "to another pair": report.moved,
        "to a pair, where nowhere yet was recorded": report.placed,
        "nowhere yet, where a pair was recorded": report.refused,
    }
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    console.print(f"{report.differ:,} differ: {shown}", markup=False)
    for item in report.first:
        console.print(f"  {_words(item)}", markup=False)
    if len(report.first) < report.differ:
        console.print(f"  and {report.differ - len(report.first):,} more", markup=False)
    if not report.pairs:
        return
    table = Table(title=f"what is predicted of {len(report.pairs):,} other pairs, means")
    for name in ("", "recorded", "asked again"):
        table.add_column(name, justify="right" if name else "left")
    rows: list[tuple[str, Callable[[Predicted], float], Callable[[float], str]]] = [
        ("TTFT", lambda p: p.ttft_s, _ms),
        ("TPOT", lambda p: p.tpot_s, _ms),
        ("own, in shares of targets", lambda p: p.own, _share),
        ("others, in shares of targets", lambda p: p.others, _share),
        ("score (less is better)", lambda p: p.score, _share),
    ]
    for name, read, write in rows:
        means = [statistics.fmean(read(pair[side]) for pair in report.pairs) for side in (0, 1)]
        table.add_row(name, *map(write, means))
    console.print(table)


def _show_measured(report: Report, console: Console) -> None:
    table = Table(title="predicted of what was recorded, beside what was measured, means")
    for name in ("", "requests", "predicted", "measured", "residual"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in (("TTFT", report.ttft), ("TPOT", report.tpot)):
        if values:
            predicted, measured = map(statistics.fmean, zip(*values, strict=True))
            residual = f"{measured / predicted - 1:+.0%}" if predicted else ""
            table.add_row(name, f"{len(values):,}", _ms(predicted), _ms(measured), residual)
    console.print(table)


def _notes(replay: Replay) -> list[str]:
    """What is not there, and what that means."""
    notes = []
    memory = "; this policy's answers depend on earlier ones" if replay.settings.has_memory else ""
    if replay.header.part:
        notes.append(f"the file was rotated: it begins in the middle of a process{memory}")
    if replay.left_out:
        notes.append(f"{replay.left_out:,} entries came too fast to be written{memory}")
    if replay.cut_off:
        notes.append("the last line is cut off, and left out")
    return notes


def _named(settings: Settings) -> str:
    if settings.policy != "cost":
        return settings.policy
    alone = "conditional" if settings.conditional else "not conditional"
    return f"cost (late {settings.late:g}, {alone})"


def _words(item: Compared) -> str:
    asked = item.asked
    what = f"{asked.prompt_tokens:,} prompt tokens"
    if asked.output_tokens:
        what += f" and {asked.output_tokens:,} of its answer"
    return (
        f"line {item.line:,}, request {asked.request:,} ({what}; {asked.waiting:,} waiting): "
        f"{_answer(asked, item.recorded)}; again: {_answer(asked, item.again)}"
    )


def _answer(asked: Asked, answer: Answer) -> str:
    if answer.choice is None:
        return "nowhere yet"
    where, predicted = _pair(asked, answer.choice), answer.predicted
    if predicted is None:
        return where
    return (
        f"{where}, TTFT {_ms(predicted.ttft_s)}, TPOT {_ms(predicted.tpot_s)}, score "
        f"{_share(predicted.score)}"
    )


def _pair(asked: Asked, choice: Choice) -> str:
    prefill = asked.seen[choice.prefill].subject.info.worker_id
    decode = asked.seen[choice.decode].subject.info.worker_id
    pair = f"{prefill} alone" if prefill == decode else f"{prefill} with {decode}"
    return pair


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def _share(value: float) -> str:
    return f"{value:.3f}"
