"""The command line as a newcomer meets it: clear errors, clean endings, help."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.models import default_model_dir

pytestmark = pytest.mark.e2e

WAIT_S = 240


def eastwest(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=cwd
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    done = eastwest("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in (
        "serve",
        "demo",
        "generate",
        "chat",
        "status",
        "explain",
        "drain",
        "sessions",
        "models",
        "config",
        "calibrate",
    ):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "show", "--set", "kv.block_tokens=0"], "kv.block_tokens is 0"),
        (["config", "show", "--set", "kv.blocks=0"], "kv.blocks is not a known setting"),
        (["config", "show", "--set", "nonsense"], "section.field=value"),
        (["config", "show", "--config", "absent.yaml"], "cannot read configuration file"),
        (["serve", "--set", "decode.replicas=0"], "both at least 1, or both 0"),
        (["serve", "--set", "model.source=/no/such/model"], "/no/such/model"),
        (["calibrate", "--output", "no/such/folder/x.yaml"], "no/such/folder is no directory"),
        (["status", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        (["explain", "r1", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        (["generate", "--address", "127.0.0.1:1", "Hello"], "127.0.0.1:1"),
        (["drain", "decode-0", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        (["sessions", "list", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        (["sessions", "import", "absent.session"], "absent.session cannot be read"),
        (["sessions", "export", "s", "."], ". exists; allowed: another file"),
    ],
)
def test_a_mistake_gets_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = eastwest(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_worker_that_cannot_start_says_why_and_nothing_stays_behind(tmp_path: Path) -> None:
    default_model_dir()
    done = eastwest("serve", "--set", "router.port=0", "--set", "decode.kv_tokens=16", cwd=tmp_path)
    assert done.returncode == 1
    assert "kv_tokens is 16" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_yaml_mistakes_name_the_file(tmp_path: Path) -> None:
    for text in ("router: [1, 2", "- a\n- b", "router: {prot: 1}", "router: {port: 99999}"):
        path = tmp_path / "bad.yaml"
        path.write_text(text, encoding="utf-8")
        done = eastwest("config", "show", "--config", str(path), cwd=tmp_path)
        assert done.returncode == 1, text
        assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named_and_nothing_stays_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = eastwest("serve", "--set", f"router.port={port}", cwd=tmp_path)
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_answers_the_other_commands_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    default_model_dir()
    settings = (
        "router.port=0", "router.http_port=0", "prefill.kv_tokens=1024", "decode.kv_tokens=1024"
    )  # fmt: skip
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-m", "deploy.cli", "serve", *flags]
    # From another directory, so that the packages are found because they are installed.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert server.stdout is not None
        address = None
        for line in server.stdout:
            if found := re.search(r"serving at ([\d.]+:\d+)", line):
                address = found[1]
                break
        assert address is not None
        found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
        with openai.OpenAI(base_url=found[0], api_key="none", timeout=WAIT_S) as client:
            [model] = [m.id for m in client.models.list()]
            said = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
            )
            assert said.choices[0].message.content
        chat = eastwest(
            "chat", "--address", address, "--temperature", "0", "--max-tokens", "8", "--timing",
            "Say hello.", cwd=tmp_path,
        )  # fmt: skip
        assert chat.returncode == 0, chat.stderr
        assert "exactly the sum" in chat.stdout
        generate = eastwest(
            "generate", "--address", address, "--max-tokens", "4", "Once upon", cwd=tmp_path
        )
        assert generate.returncode == 0, generate.stderr
        assert generate.stdout.strip()
        refused = eastwest("generate", "--address", address, "--temperature=-1", "Hi", cwd=tmp_path)
        assert refused.returncode == 1
        assert "temperature is -1.0; allowed:" in refused.stderr
        _sessions(address, tmp_path)
        status = eastwest("status", "--address", address, cwd=tmp_path)
        assert status.returncode == 0, status.stderr
        assert "prefill-0" in status.stdout
        assert "decode-0" in status.stdout
    finally:
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=WAIT_S)
    assert server.returncode == 0
    assert "everything is stopped" in rest


def _sessions(address: str, directory: Path) -> None:
    """A conversation is looked at, copied in both ways, and deleted."""

    def sessions(*arguments: str) -> str:
        done = eastwest("sessions", *arguments, "--address", address, cwd=directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = eastwest(
        "chat", "--address", address, "--max-tokens", "4", "--session", "talk", "Hi", cwd=directory
    )
    assert said.returncode == 0, said.stderr
    assert "talk" in sessions("list")
    assert "talk: chat, " in sessions("show", "talk")
    sessions("fork", "talk", "branch")
    assert "talk is in talk.session" in sessions("export", "talk", "talk.session")
    assert "talk is deleted" in sessions("delete", "talk")
    sessions("import", "talk.session", "--as", "again")
    listed = sessions("list")
    assert "branch" in listed
    assert "again" in listed
    assert "talk" not in listed
    twice = eastwest("sessions", "delete", "talk", "--address", address, cwd=directory)
    assert twice.returncode == 1
    assert "'talk' does not exist" in twice.stderr
    (directory / "talk.session").unlink()


def test_the_demo_tells_the_whole_story_and_leaves_nothing(tmp_path: Path) -> None:
    default_model_dir()
    done = eastwest("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("time to first token", "first to second token", "rest in the store",
                 "loaded instead of recomputed", "everything is stopped"):  # fmt: skip
        assert part in " ".join(done.stdout.split())
    assert "NOT the sum" not in done.stdout
    assert list(tmp_path.iterdir()) == []
