"""Devices: the catalogue against its reference, names, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eastwest.errors import ConfigError
from planner.hardware import Device, device_from, device_names, find_device, read_device
from planner.precision import BITS
from tests.unit.planner.reference import reference_yaml

A_DEVICE = """
name: mine
vendor: me
flops_per_s: {bf16: 1.0e+14, fp8: 2.0e+14}
memory: {bytes: 8.0e+10, bytes_per_s: 2.0e+12}
scale_up: {domain: 8, bytes_per_s: 4.5e+11}
scale_out: {bytes_per_s: 5.0e+10}
"""


def a_device(**changed: str) -> str:
    """A YAML file with lines changed, each a field in flow style."""
    lines = [x for x in A_DEVICE.strip().splitlines() if x.split(":")[0] not in changed]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in changed.items())])


@pytest.mark.parametrize("name", device_names())
def test_every_device_of_the_catalogue_loads_and_can_compute(name: str) -> None:
    device = find_device(name)
    assert device.name == name
    assert device.vendor
    assert device.sources
    for kind in ("matmul", "weights", "prompt_attention", "kv"):
        assert all(0 < device.share(kind, dtype) <= 1.2 for dtype in BITS)
    rates = device.flops_per_s
    assert rates.get("fp8", rates["bf16"]) >= rates["bf16"]
    assert device.scale_up.bytes_per_s >= device.scale_out.bytes_per_s


def test_figures_are_those_of_the_reference() -> None:
    """Where a reference gives one; fields by what they are called there."""
    entries = reference_yaml("hardware.yaml")["devices"]
    names = {key.replace("_", "-").removesuffix("-hgx"): entry for key, entry in entries.items()}
    assert set(device_names()) - {"cpu"} <= set(names)
    for name in set(device_names()) - {"cpu"}:
        device, entry = find_device(name), names[name]
        for dtype, rate in entry["flops"].items():
            assert device.flops_per_s.get(dtype) == rate, (name, dtype)
        fields = {
            "hbm_bw": device.memory.bytes_per_s,
            "scale_up_bw_uni": device.scale_up.bytes_per_s,
            "scale_up_domain": device.scale_up.domain,
            "scale_out_bw": device.scale_out.bytes_per_s,
            "power_w": device.power_w,
            "gpus_per_node": device.devices_per_host,
        }
        for field, ours in fields.items():
            assert entry.get(field, ours) == pytest.approx(ours, rel=1e-4), (name, field)
        sizes = [entry[k] for k in ("hbm_bytes", "hbm_bytes_marketing") if k in entry]
        assert any(device.memory.bytes == pytest.approx(size, rel=1e-4) for size in sizes), name


@pytest.mark.parametrize(
    ("said", "name"),
    [("h100", "h100-sxm"), ("H100", "h100-sxm"), ("gb200", "gb200-nvl72"),
     ("tpu7", "tpu7x-ironwood"), ("A100 80GB", "a100-80gb-sxm"),
     ("mi300x", "mi300x"), ("trn2", "trn2")],
)  # fmt: skip
def test_the_one_beginning_that_fits_is_a_name(said: str, name: str) -> None:
    assert find_device(said).name == name


@pytest.mark.parametrize(
    ("said", "near"),
    [("h10", "h100-sxm"), ("gb20", "gb200-nvl72"), ("a100", "a100-40gb-sxm or a100-80gb-sxm"),
     ("nvl72", "gb200-nvl72")],
)  # fmt: skip
def test_a_name_that_is_not_known_or_not_the_only_one_is_told_with_the_nearest(
    said: str, near: str
) -> None:
    if said in ("h10", "gb20"):
        assert find_device(said).name == near
        said += "1"
    with pytest.raises(ConfigError, match=rf"hardware '{said}' is neither.*did you mean.*{near}"):
        find_device(said)


@pytest.mark.parametrize("said", ["", " ", "x" * 5000, "\0", "a/b/c.yaml"])
def test_a_name_of_any_shape_is_refused_in_words(said: str) -> None:
    with pytest.raises(ConfigError, match=r"neither in the catalogue nor a file.*allowed"):
        find_device(said)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"flops_per_s": "{bf16: 989}"}, "flops_per_s.bf16 is 989.*not TFLOP/s"),
        ({"flops_per_s": "{bf16: 9.89e+17}"}, "flops_per_s.bf16 is 9.89e"),
        ({"flops_per_s": "{bf16: 9.89e+26}"}, "flops_per_s.bf16 is 9.89e"),
        ({"flops_per_s": "{}"}, "flops_per_s is empty"),
        ({"flops_per_s": "{bf17: 1e14}"}, "'bf17' is no number format"),
        ({"memory": "{bytes: 80, bytes_per_s: 2e12}"}, "memory.bytes is 80"),
        ({"memory": "{bytes: 8e22, bytes_per_s: 2e12}"}, "memory.bytes is"),
        ({"memory": "{bytes: 8e10, bytes_per_s: 2000}"}, "memory.bytes_per_s is 2000"),
        ({"memory": "{bytes: 8e10, bytes_per_s: 2.0e+8}"}, "one of the two is in another unit"),
        ({"memory": "{bytes: 8e10}"}, "memory.bytes_per_s: Field required"),
        ({"scale_up": "{domain: 8, bytes_per_s: 450}"}, "scale_up.bytes_per_s is 450"),
        ({"scale_up": "{domain: 0, bytes_per_s: 4e11}"}, "scale_up.domain is 0"),
        ({"scale_out": "{bytes_per_s: 50}"}, "scale_out.bytes_per_s is 50"),
        ({"scale_out": "{bytes_per_s: 5e10, latency_s: 10}"}, "scale_out.latency_s is 10"),
        ({"power_w": "-1"}, "power_w is -1"),
        ({"colour": "green"}, "colour is 'green'"),
        ({"efficiency": "{matmul: {bf16: 70}}"}, "matmul.bf16 is 70.*above 0, to 2"),
        ({"efficiency": "{matmul: {}}"}, "matmul is empty"),
        ({"efficiency": "{kv: {half: 0.5}}"}, "'half' is no number format"),
        ({"efficiency": "{link: .nan}"}, "efficiency.link"),
        ({"name": "'my device'"}, "name is 'my device'"),
        ({"like": "h101-sxm"}, "like is 'h101-sxm'; did you mean h100-sxm"),
        ({"like": "[1]"}, "like is"),
        ({"1": "2"}, "1"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_value(changed: dict[str, str], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^mine\.yaml: .*{field}"):
        device_from(a_device(**changed), "mine.yaml")


@pytest.mark.parametrize("text", ["", "7", "[1, 2]", "a: [", "name: !!python/object:os.system {}"])
def test_text_that_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.yaml "):
        device_from(text, "mine.yaml")


def test_like_takes_what_is_not_given_and_is_not_measured() -> None:
    device = device_from("{name: mine, like: h100, memory: {bytes: 9.6e+10}}", "mine")
    base = find_device("h100-sxm")
    assert base.measured
    assert not device.measured
    assert (device.memory.bytes, device.memory.bytes_per_s) == (96e9, base.memory.bytes_per_s)
    assert device.flops_per_s == base.flops_per_s
    rates = device_from("{name: mine, like: h100-sxm, flops_per_s: {bf16: 1.0e+15}}", "mine")
    assert dict(rates.flops_per_s) == {"bf16": 1e15}


def test_a_file_that_is_like_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"like: {file}", encoding="utf-8")
    with pytest.raises(ConfigError, match="like is"):
        read_device(file)


def test_a_device_written_out_reads_as_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(A_DEVICE, encoding="utf-8")
    device = find_device(str(file))
    file.write_text(yaml.safe_dump(device.model_dump(mode="json")), encoding="utf-8")
    assert read_device(file) == device
    file.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_device(file)


def test_a_share_that_is_absent_is_that_of_the_nearest_wider_format() -> None:
    text = a_device(efficiency="{matmul: {bf16: 0.7, fp8: 0.6}, kv: {fp8: 0.5}}")
    device = device_from(text, "mine")
    assert device.share("matmul", "fp4") == 0.6
    assert device.share("matmul", "fp16") == 0.7
    assert device.share("matmul", "fp32") == 0.6  # nothing is wider: the least of all
    assert device.share("kv", "bf16") == 0.5
    assert device.share("weights", "int4") == 1.0


def test_devices_are_values() -> None:
    assert find_device("h100-sxm") is find_device("h100")
    assert Device.model_fields["flops_per_s"].description
