"""Settings from defaults, file, environment and flags, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.settings import explained_yaml
from eastwest.config import Config, load_config
from eastwest.errors import ConfigError


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "eastwest.yaml"
    path.write_text("decode: {replicas: 2, threads: 3, kv_tokens: 64}\n", encoding="utf-8")
    environ = {"EASTWEST_DECODE__THREADS": "4", "EASTWEST_DECODE__KV_TOKENS": "128", "HOME": "/"}
    config = load_config(path, environ, {"decode": {"kv_tokens": 256}})
    assert config.decode.replicas == 2
    assert config.decode.threads == 4
    assert config.decode.kv_tokens == 256


def test_what_is_shown_can_be_loaded_and_explains_every_setting() -> None:
    config = load_config(None, {"EASTWEST_STORE__URL": "redis://host:6379/2"})
    text = explained_yaml(config)
    assert Config.model_validate(yaml.safe_load(text)) == config
    assert "# a session inactive for this long is spilled" in text


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"EASTWEST_KV__BLOCK_TOKENS": "0"}, "kv.block_tokens is 0"),
        ({"EASTWEST_KV__BLOCK_TOKEN": "16"}, "kv.block_token is not a known setting"),
        ({"EASTWEST_KV": "16"}, "kv"),
        ({"EASTWEST_STORE__IDLE_S": "nan"}, "store.idle_s is"),
        ({"EASTWEST_STORE__IDLE_S": ".nan"}, "store.idle_s is nan"),
        ({"EASTWEST_ROUTER__PORT": "70000"}, "router.port is 70000"),
        ({"EASTWEST_KV__TRANSPORTS": "[rdma]"}, "kv.transports.0 is 'rdma'"),
        ({"EASTWEST_KV__TRANSPORTS": "[]"}, "kv.transports is []"),
        ({"EASTWEST_KV__TRANSPORTS": "[grpc, grpc]"}, "transports are grpc, grpc; allowed: each"),
        ({"EASTWEST_DECODE__REPLICAS": "0"}, "both at least 1, or both 0"),
        ({"EASTWEST_ROUTER__WORKER_TIMEOUT_S": "1"}, "at least three times"),
        ({"EASTWEST_ROUTER__HOST": "{"}, "EASTWEST_ROUTER__HOST"),
        ({"EASTWEST_ROUTER__HOST": "2020-99-99"}, "EASTWEST_ROUTER__HOST"),
        ({"EASTWEST_ROUTER__PORT": "!!int ''"}, "EASTWEST_ROUTER__PORT"),
        ({"EASTWEST_ROUTER__PORT": "0x" + "f" * 4000}, "router.port is int without end"),
        ({"EASTWEST_ROUTER__PORT": "x" * 4000}, "router.port is 'xxx"),
        ({"EASTWEST_KV__LEASE_S": "1e300"}, "kv.lease_s is '1e300'; Input should be less"),
        ({"EASTWEST_LIMITS__DEFAULT_TIMEOUT_S": "2e9"}, "limits.default_timeout_s is"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, environ)
    assert message in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("text", ["[1, 2", "- a", "a string", "router: 3", "\x00"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert "\n" not in caught.value.message


def test_a_file_that_is_absent_or_not_text_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "absent.yaml", binary, tmp_path):
        with pytest.raises(ConfigError, match="cannot read configuration file"):
            load_config(path, {})
