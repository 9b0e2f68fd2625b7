"""What Prometheus is told: over a real scrape, read by Prometheus' own parser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from eastwest.errors import ErrorCode, Overloaded
from eastwest.types import Role
from tests.integration.deployment import babbles, says
from tests.integration.http_front import COMPLETIONS, over_http

ROOT = Path(__file__).resolve().parents[2]
DOCS, MONITORING = ROOT / "docs" / "metrics.md", ROOT / "deploy" / "monitoring"
Scraped = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def scraped(client: httpx2.AsyncClient) -> Scraped:
    """Values by name of the sample, and by labels."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    values: Scraped = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            values.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return values


async def test_a_scrape_says_what_has_happened() -> None:
    async with over_http(says("hello")) as (_, client):
        before = await scraped(client)
        assert before["eastwest_requests_total"] == {(("outcome", "completed"),): 0.0}
        for _ in range(3):
            answer = await client.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 20})
            assert answer.status_code == 200
            usage = answer.json()["usage"]
        late = await client.post(
            COMPLETIONS, json={"prompt": "hi"}, headers={"X-Eastwest-Timeout-S": "0.000001"}
        )
        assert late.status_code == 504
        told = await scraped(client)
    assert told["eastwest_requests_total"][("outcome", "completed"),] == 3
    assert sum(told["eastwest_requests_total"].values()) >= 3
    for name in (
        "time_to_first_token_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds",
    ):  # fmt: skip
        assert told[f"eastwest_{name}_count"][()] == 3
        assert told[f"eastwest_{name}_sum"][()] >= 0
    assert told["eastwest_request_prompt_tokens_sum"][()] == 3 * usage["prompt_tokens"]
    assert told["eastwest_request_generation_tokens_sum"][()] == 3 * usage["completion_tokens"]
    first, whole = (
        told[f"eastwest_{name}_sum"][()]
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds")
    )
    assert 0 < first <= whole
    assert told["eastwest_requests_running"][()] == 0
    workers = told["eastwest_worker_up"]
    assert set(workers.values()) == {1.0}
    assert {dict(labels)["role"] for labels in workers} == {"prefill", "decode"}
    for labels in workers:
        assert told["eastwest_kv_blocks"][labels] > 0
        assert told["eastwest_kv_blocks_leaked"][labels] == 0


def documented() -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each metric."""
    row = re.compile(r"\| `(eastwest_\w+)` \| (\w+) \| (.*?) \|", re.ASCII)
    return {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall(DOCS.read_text(encoding="utf-8"))
    }


async def test_the_docs_name_each_metric_and_its_labels() -> None:
    async with over_http(babbles) as (d, client):
        await client.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 2})
        d.router._shell.metrics.refused(Overloaded("the queue is full"))
        text = (await client.get("/metrics")).text
    told = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        labels = next((set(s.labels) for s in family.samples if "le" not in s.labels), set())
        told[name] = (family.type, labels)
    assert told == documented()


def expressions() -> Iterator[tuple[str, str]]:
    """All that dashboard and alerts ask Prometheus for, and where."""
    board = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_dashboard_and_alerts_ask_for_what_there_is(where: str, expression: str) -> None:
    known = documented()
    names = re.findall(r"eastwest_\w+", expression)
    assert names, where
    labels: set[str] = set()
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        kind, own = known[name] if name in known else known[base]
        assert (kind == "histogram") == (name != base)
        labels |= own | ({"le"} if kind == "histogram" else set())
        rated = re.search(rf"rate\({name}\b", expression) is not None
        assert rated == (kind != "gauge"), f"{where}: {name}"
    for inside in re.findall(r"by \(([\w, ]+)\)", expression):
        assert {label.strip() for label in inside.split(",")} <= labels
    for selector in re.findall(r"{(.*?)}", expression):
        for label, values in re.findall(r"(\w+)=~?\"(.*?)\"", selector):
            assert label in labels
            codes, roles = {str(code) for code in ErrorCode}, {str(role) for role in Role}
            allowed = {"outcome": codes | {"completed"}, "code": codes, "role": roles}[label]
            assert set(values.split("|")) <= allowed
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
