"""What a decision log keeps of a question is all that any policy goes by, over any fleets:

1. asked again from the lines of a log, in order, a policy answers as it did;
2. entries that are read are those that were written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.clock import SystemClock
from eastwest.config import RouterConfig
from router.cost_policy import DEFAULT_WEIGHTS
from router.decision_lines import Decoder, Encoder, Header
from router.decision_log import Asked, DecisionLog, Ended, Entry
from router.decision_log_file import DecisionLogFile
from router.fleet import Worker
from router.lifecycle import Lifecycle
from router.pace import Factors, NominalCosts, Pace
from router.policies import policy_of
from router.requests import Marks, Request
from sim.decisions import Compared, Replay
from tests.property.test_router_placement import KNOWN, POLICIES, REQUESTS, fleets
from tests.unit.router.builders import SomeKnown


@dataclass
class Question:
    """workers: None for those of the question before."""

    workers: list[Worker] | None
    request: Request
    known: SomeKnown
    factors: Factors
    usual_output: float


FACTORS = st.floats(1e-3, 1e3)
QUESTIONS = st.lists(
    st.builds(
        Question,
        st.none() | fleets(),
        REQUESTS,
        KNOWN,
        st.builds(Factors, *[FACTORS] * 5),
        st.floats(1, 500),
    ),
    min_size=1,
    max_size=6,
)


PLAIN = attrgetter(
    "request", "at_ns", "waited_ns", "prompt_tokens", "output_tokens", "max_tokens", "slo",
    "waiting", "usual_output", "placed",
)  # fmt: skip


def recorded(name: str, questions: list[Question]) -> tuple[Header, list[Entry]]:
    """What a log gets where a policy is asked these."""
    policy_name = {"conditional": "cost"}.get(name, name)
    config = RouterConfig.model_validate(
        {"policy": policy_name, "conditional": name == "conditional"}
    )
    header = Header(config.policy, config.conditional, DEFAULT_WEIGHTS.late)
    entries: list[Entry] = []
    pace = Pace(NominalCosts())
    policy, log = policy_of(config, pace), DecisionLog(entries.append, pace)
    workers: list[Worker] = []
    for number, question in enumerate(questions):
        workers = workers if question.workers is None else question.workers
        for worker in workers[::2]:
            pace.recall(worker.info, question.factors)
        pace.usual_output = question.usual_output
        known = replace(question.known, workers=workers)
        placement = policy.place(question.request, workers, known)
        request = question.request
        life = Lifecycle(request, 3, Marks(number), request.deadline_ns)
        log.asked(life, placement, workers, known, number)
        log.ended(life, number)
    return header, entries


@pytest.mark.parametrize("name", POLICIES)
@given(QUESTIONS)
def test_asked_again_a_policy_answers_as_it_did(name: str, questions: list[Question]) -> None:
    header, entries = recorded(name, questions)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        file = DecisionLogFile(path, 1 << 30, header, SystemClock())
        for entry in entries:
            file.write(entry)
        file.close()
        compared = [item for item in Replay.of(path) if isinstance(item, Compared)]
    assert len(compared) == len(questions)
    assert all(item.same for item in compared)


@given(QUESTIONS)
def test_entries_that_are_read_are_those_that_were_written(questions: list[Question]) -> None:
    _, entries = recorded("cost", questions)
    encoder, decoder = Encoder(), Decoder()
    lines = "".join(encoder.lines(entry) for entry in entries).encode().splitlines()
    read = [decoder.entry(line) for line in lines]
    assert [plain(entry) for entry in read if entry is not None] == [plain(e) for e in entries]


def plain(entry: object) -> object:
    """Subjects are compared by identity; here, by what they say."""
    assert isinstance(entry, Asked | Ended)
    if isinstance(entry, Ended):
        return entry
    seen = [(s.subject.info, s.subject.costs, *s[1:]) for s in entry.seen]
    return seen, PLAIN(entry)
