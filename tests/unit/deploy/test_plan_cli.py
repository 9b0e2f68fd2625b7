"""`eastwest plan` as it is typed: what it prints, writes and refuses, in one process."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from deploy import cli
from eastwest.config import load_config

_USUAL = (
    "--model", "llama-3.1-8b", "--hardware", "h100", "--gpus", "4", "--isl", "2k", "--osl", "200",
    "--ttft", "600ms", "--tpot", "30ms",
)  # fmt: skip


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command; its exit code. Flags of `_USUAL` are replaced, or left out where given
    as ``--no FLAG``."""
    usual = dict(zip(_USUAL[::2], _USUAL[1::2], strict=True))
    words = list(arguments)
    while "--no" in words:
        at = words.index("--no")
        usual.pop(words[at + 1])
        del words[at : at + 2]
    for flag in words:
        usual.pop(flag, None)
    line = [word for pair in usual.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["eastwest", "plan", *line, *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def test_a_plan_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "llama-3.1-8b (bf16, KV in bf16) on 4 x h100-sxm",
        "prompts of 2,048 tokens (2,048 to compute), answers of 200; "
        "TTFT 600 ms and TPOT 30 ms for 90% of requests",
        "isaggregate", "aggregated", "disaggregated", "predicted", "prompts are half as long again",
        "store: loading KV beats computing it above", "spares:", "kernel efficiencies: measured",
    ):  # fmt: skip
        assert part in printed


def test_json_and_yaml_are_written_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan, serve = tmp_path / "plan.json", tmp_path / "serve.yaml"
    assert typed(monkeypatch, "--json", str(plan), "--yaml", str(serve)) == 0
    printed = capsys.readouterr().out
    assert f"wrote {plan}" in printed
    assert f"wrote {serve}" in printed
    tree = json.loads(plan.read_text(encoding="utf-8"))
    assert tree["schema"] == 1
    assert tree["question"]["devices"] == 4
    config = load_config(serve, environ={})
    assert config.model.source == "llama-3.1-8b"
    replicas = {pool["role"]: pool["replicas"] for pool in tree["best"]["pools"]}
    assert {
        role: getattr(config, role).replicas
        for role in ("prefill", "decode", "aggregated")
        if getattr(config, role).replicas
    } == replicas


def test_a_budget_a_trace_and_spares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"timestamp": 100 * i, "input_length": 900 + i, "output_length": 90} for i in range(40)]
    rows += [{"timestamp": 0, "input_length": 0, "output_length": 1}] * 7
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    code = typed(
        monkeypatch, "--no", "--gpus", "--no", "--isl", "--no", "--osl", "--trace", str(trace),
        "--budget", "60", "--price", "2.5", "--availability", "0.99",
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped line") == 5
    assert "skipped 2 more lines" in printed
    assert "on 24 x h100-sxm" in printed
    assert "$/M tok" in printed
    assert re.search(r"spares: \d+ of 24 devices stand by", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ttft", "20"), "--ttft is '20'; allowed: a number and its unit, such as 2s or 20ms"),
        (("--ttft", "2000h"), "--ttft is '2000h'"),
        (("--tpot", "20mss"), "--tpot is '20mss'"),
        (("--tpot", "2000s"), "did you mean 2000us?"),
        (("--isl", "many"), "--isl is 'many'; allowed: a number such as 8192 or 8k"),
        (("--isl", "0"), "--isl is 0; allowed: 1 to"),
        (("--isl", "200k"), "131,072 of llama-3.1-8b's context"),
        (("--no", "--isl"), "a plan needs a workload; allowed: --isl and --osl, or --trace"),
        (("--no", "--gpus"), "a number of devices or a budget"),
        (("--budget", "10"), "a number of devices or a budget"),
        (("--no", "--gpus", "--budget", "10", "--hardware", "cpu"), "needs the price of a device"),
        (("--no", "--gpus", "--budget", "nan"), "the budget is $nan"),
        (("--gpus", "0"), "0 devices; allowed: 1 to 4096"),
        (("--price", "-1"), "the price of a device is $-1"),
        (("--percentile", "90"), "percentile is 90; allowed: 0.5 to below 1"),
        (("--availability", "1"), "availability 1 of hosts"),
        (("--reuse", "1"), "reused share of prompts is 1"),
        (("--spread", "-1"), "spread of lengths is -1"),
        (("--burstiness", "0"), "arrival_cv is 0"),
        (("--model", "lama"), "did you mean"),
        (("--hardware", "h101"), "did you mean h100-sxm"),
        (("--weights", "fp9"), "did you mean fp8"),
        (("--stack", "vlm"), "did you mean vllm"),
        (("--trace", "absent.csv", "--no", "--isl", "--no", "--osl"), "trace absent.csv cannot be"),
        (("--trace", "absent.csv"), "a trace has lengths of its own"),
        (("--prefix-cache",), "--prefix-cache is for a trace"),
        (("--model", "llama-3.1-405b"), "the smallest that fits: 12"),
        (("--tpot", "1ms"), "TPOT 1 ms is out of reach"),
        (("--json", "/absent/plan.json"), "/absent/plan.json cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert typed(monkeypatch, *arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("eastwest: ")
    assert message in told
    assert told.count("\n") == 1


def test_a_command_that_is_not_understood_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "--gpus", "four") == 2
    assert typed(monkeypatch, "--no", "--model") == 2
    assert "--model" in capsys.readouterr().err
