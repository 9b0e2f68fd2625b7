"""Every worked number of P. Lapukhov's talk "GPU systems and (LL) Models", by the planner.

One test a check: ``test_<id>``, lower-cased. Where a slide slips, the test holds the right value
and says how far the slide is from it. The talk counts Llama-3-70B in 8 bits throughout on a GB200
of 192 GB, and multiplies at the rate of 4 bits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.hardware import Device, device_from, find_device
from planner.memory import kv_of_sequence, weights_per_rank
from planner.models import find_model
from planner.precision import BITS, Precision
from planner.roofline import (
    WHOLE,
    activation_bytes,
    critical_batch,
    decode_work,
    e2e_s,
    fit,
    matmul_crossover,
    matmul_intensity,
    memory_over_network,
    ridge,
    scale_up,
    step_bound,
    that_fit,
    up_over_out,
)
from tests.unit.planner.reference import roofline_reference

LLAMA = find_model("llama-3-70b")
FP8 = Precision("fp8", "fp8", "fp8", "fp8", "fp8", "fp8")
GB200 = find_device("gb200-nvl72")
US, MS = 1e-6, 1e-3
approx = pytest.approx


def like_gb200(fields: str) -> Device:
    return device_from(f"{{like: gb200-nvl72, name: talk, {fields}}}", "the talk's device")


TALK = like_gb200("memory: {bytes: 192.0e+9}")
FP4_RATE = like_gb200("flops_per_s: {fp8: 1.0e+16}")


def test_each_check_of_the_talk_has_a_test() -> None:
    checks = roofline_reference("seed_talk_checks.yaml")["checks"]
    assert checks
    missing = {c["id"] for c in checks if f"test_{c['id'].lower()}" not in globals()}
    assert not missing


# How big the numbers are.


def test_attn_size() -> None:
    assert LLAMA.attention_params == 150_994_944


def test_mlp_size() -> None:
    assert LLAMA.dense_ffn_params == 704_643_072


def test_mlp_share() -> None:
    layer = LLAMA.dense_ffn_params + LLAMA.attention_params
    assert LLAMA.dense_ffn_params / layer == approx(0.8235, abs=5e-5)


def test_emb_size() -> None:
    assert LLAMA.embedding_params == 2_101_346_304


def test_total_params() -> None:
    assert LLAMA.total_params == 70_552_387_584
    assert weights_per_rank(LLAMA, WHOLE, FP8) == 70_552_387_584


def test_kv_per_layer() -> None:
    assert LLAMA.kv_elements == 2048


def test_kv_per_token() -> None:
    assert kv_of_sequence(LLAMA, WHOLE, FP8, 1) == 163_840
    assert kv_of_sequence(LLAMA, WHOLE, replace(FP8, kv="bf16"), 1) == 327_680


def test_tokens_one_b200() -> None:
    assert fit(LLAMA, FP8, TALK, 1).tokens == approx(741_257, abs=1)
    assert that_fit(192e9, 70e9, 163_840) == approx(744_629, abs=1)
    assert that_fit(192e9, 70e9, 160e3) == 762_500
    usable = like_gb200("memory: {bytes: 180.0e+9}")
    assert fit(LLAMA, FP8, usable, 1, reserve=0.1).tokens == approx(558_167, rel=1e-4)


# Rooflines of the device and of matrices.


def test_math_mem() -> None:
    assert ridge(TALK, "fp4") == 1250
    assert ridge(TALK, "fp8") == 625
    assert ridge(find_device("h100-sxm"), "fp8") == approx(591, abs=0.5)
    assert ridge(find_device("h100-sxm"), "bf16") == approx(295, abs=0.5)
    assert ridge(find_device("b200-sxm"), "fp4") == 1125
    slower = like_gb200("flops_per_s: {fp4: 9.0e+15}, memory: {bytes_per_s: 7.7e+12}")
    assert ridge(slower, "fp4") == approx(1169, abs=0.5)


def test_mem_net() -> None:
    assert memory_over_network(TALK) == approx(8.889, abs=5e-4)
    for name, ratio in (("h100-sxm", 7.4), ("h200-sxm", 10.7), ("a100-80gb-sxm", 6.8)):
        assert memory_over_network(find_device(name)) == approx(ratio, abs=0.05)
    assert memory_over_network(find_device("tpu-v5e")) == 9


def test_matmul_crossover() -> None:
    n = matmul_crossover(TALK, "fp4")
    assert n == 937.5
    assert matmul_intensity(n, n, n, "fp4") == approx(ridge(TALK, "fp4"))
    # The scales of NVFP4 are read as well.
    assert matmul_crossover(TALK, "nvfp4") == approx(1054.7, abs=0.05)


def test_matmul_ai() -> None:
    for n in (1, 128, 8192):
        assert matmul_intensity(n, n, n, "fp4") == approx(4 / 3 * n)


def test_gemv_ai() -> None:
    n = 1e9
    assert matmul_intensity(1, n, n, "fp4") == approx(4)
    assert matmul_intensity(1, n, n, "fp4") / ridge(TALK, "fp4") == approx(0.0032)


def test_b_crit() -> None:
    assert critical_batch(TALK, "fp4") == 312.5
    assert critical_batch(TALK, "fp8") == 312.5
    assert critical_batch(FP4_RATE, "fp8") == 625
    assert critical_batch(find_device("h100-sxm"), "bf16") == approx(295.2239, abs=1e-4)
    assert critical_batch(find_device("h100-sxm"), "fp8") == approx(295.3731, abs=1e-4)


# A layer over Y devices.


def test_mlp_compute_b16() -> None:
    """The slide's 0.37 us lacks the factor 4 of its own formula."""
    assert scale_up(LLAMA, FP8, FP4_RATE, 16, 2).compute_s == approx(1.5032 * US, rel=1e-4)
    assert scale_up(LLAMA, FP8, FP4_RATE, 16, 2).compute_s / 4 == approx(0.376 * US, rel=1e-3)
    # Weights of 8 bits are multiplied at the rate of 8 bits.
    assert scale_up(LLAMA, FP8, TALK, 16, 2).compute_s == approx(3.006 * US, rel=1e-3)


def test_mlp_mem() -> None:
    assert scale_up(LLAMA, FP8, TALK, 16, 2).memory_s == approx(58.720256 * US)
    assert scale_up(LLAMA, FP8, TALK, 16).memory_s == approx(88.080384 * US)
    fp4 = replace(FP8, ffn="fp4")
    assert scale_up(LLAMA, fp4, TALK, 16, 2).memory_s == approx(29.36 * US, rel=1e-4)


def test_mlp_comm_b16() -> None:
    """The slide's 0.14 us lacks the factor 2 of its own formula."""
    network_s = scale_up(LLAMA, FP8, TALK, 16).network_s
    assert network_s == approx(0.29127111 * US)
    assert network_s / 2 == approx(0.1456 * US, rel=1e-3)


def test_y_b16() -> None:
    assert scale_up(LLAMA, FP8, TALK, 16, 2).useful() == approx(201.6)


def test_y_b128() -> None:
    """25 is of bandwidth alone, though the slide is about latency."""
    at_128 = scale_up(LLAMA, FP8, TALK, 128, 2)
    assert at_128.useful() == approx(25.2)
    assert at_128.network_s == approx(2.330 * US, rel=1e-3)
    assert at_128.useful(1 * US) == approx(17.6, abs=0.05)


@pytest.mark.parametrize(
    ("batch", "bandwidth", "at_1us", "at_3us", "at_5us", "own_at_3us"),
    [
        (1, 3225.6, 57.7, 19.5, 11.7, 29.2),
        (8, 403.2, 51.3, 18.7, 11.4, 28.0),
        (16, 201.6, 45.5, 17.8, 11.1, 26.8),
        (32, 100.8, 37.1, 16.4, 10.5, 24.6),
        (64, 50.4, 27.1, 14.1, 9.5, 21.1),
        (128, 25.2, 17.6, 11.0, 8.0, 16.5),
        (256, 12.6, 10.4, 7.7, 6.1, 11.5),
    ],
)
def test_y_with_latency(
    batch: int, bandwidth: float, at_1us: float, at_3us: float, at_5us: float, own_at_3us: float
) -> None:
    two = scale_up(LLAMA, FP8, TALK, batch, 2)
    assert two.useful() == approx(bandwidth)
    assert two.useful(1 * US) == approx(at_1us, abs=0.05)
    assert two.useful(3 * US) == approx(at_3us, abs=0.05)
    assert two.useful(5 * US) == approx(at_5us, abs=0.05)
    assert scale_up(LLAMA, FP8, TALK, batch).useful(3 * US) == approx(own_at_3us, abs=0.05)


def test_activation_bytes() -> None:
    assert activation_bytes(LLAMA, FP8, 16) == 131_072


def test_net_time_130k() -> None:
    seconds = activation_bytes(LLAMA, FP8, 16) / TALK.scale_up.bytes_per_s
    assert seconds == approx(0.14563556 * US)


# The machine.


def test_links_bw() -> None:
    assert GB200.scale_up.bytes_per_s == 18 * 400e9 / 8


def test_cables() -> None:
    """2,592 lanes of 200 Gb/s in each direction; cables are counted over both: 5,184."""
    lanes = GB200.scale_up.domain * GB200.scale_up.bytes_per_s * 8 / 200e9
    assert lanes == 2592


def test_nodes_gpus() -> None:
    assert GB200.scale_up.domain == 18 * GB200.devices_per_host == 72
    # A switch chip has a port for each device, 400 Gb/s one way: 18 chips, 28.8 Tb/s each.
    chip = GB200.scale_up.domain * 400e9
    assert chip == 28.8e12
    assert GB200.scale_up.domain * GB200.scale_up.bytes_per_s * 8 / chip == 18


def test_redundancy() -> None:
    assert GB200.scale_up.domain == 64 + 8


def test_nvfp4() -> None:
    """Elements are E2M1 (the slide says E3M1), 16 of them with a scale of 8 bits."""
    assert BITS["nvfp4"] == (1 + 2 + 1) + 8 / 16


def test_sm_count() -> None:
    """160 is the full chip of Blackwell Ultra. The talk's FP4 rate is of GB200, with 148."""
    assert GB200.flops_per_s["fp4"] == 10e15
    assert find_device("gb300-nvl72").flops_per_s["fp4"] == 15e15


def test_flops_table() -> None:
    assert (GB200.flops_per_s["fp4"], GB200.flops_per_s["fp8"]) == (10e15, 5e15)
    hgx = find_device("b200-sxm")
    assert (hgx.flops_per_s["fp4"], hgx.flops_per_s["fp8"]) == (9e15, 4.5e15)
    hopper = find_device("h100-sxm").flops_per_s
    assert hopper["fp8"] == 1.979e15
    assert "fp4" not in hopper


def test_mem_table() -> None:
    """192 GB is on the chip; less is usable."""
    assert (GB200.memory.bytes_per_s, GB200.power_w) == (8e12, 1200)
    assert 2 * GB200.scale_up.bytes_per_s == 1.8e12
    assert GB200.memory.bytes < 192e9
    assert find_device("b200-sxm").memory.bytes == 180e9


def test_nvlink_table() -> None:
    for name, bandwidth, domain in (
        ("a100-80gb-sxm", 300e9, 8),
        ("h100-sxm", 450e9, 8),
        ("gb200-nvl72", 900e9, 72),
    ):
        up = find_device(name).scale_up
        assert (up.bytes_per_s, up.domain) == (bandwidth, domain)
    assert find_device("b200-sxm").scale_up.domain == 8


def test_nvlink_vs_rdma() -> None:
    """9 holds with 800 Gb/s a device; GB200 racks have 400."""
    assert up_over_out(find_device("gb300-nvl72")) == 9
    assert up_over_out(find_device("h100-sxm")) == 9
    assert up_over_out(GB200) == 18


# Models.


def test_deepseek() -> None:
    model = find_model("deepseek-v3")
    assert model.total_params == approx(671.025e9, rel=1e-4)
    assert model.active_params == approx(36.625e9, rel=1e-4)


def test_moe_compute() -> None:
    """K/E is of routed parameters; of all, 5.5 % are active."""
    model = find_model("deepseek-v3")
    assert model.experts is not None
    assert model.experts.top_k / model.experts.count == 0.03125
    assert model.active_params / model.total_params == approx(0.055, abs=5e-4)


def test_attn_flops_appendix() -> None:
    """4DNH is of as many KV heads as heads; Llama-3-70B has 8 for 64."""
    assert replace(LLAMA, kv_heads=LLAMA.heads).attention_params == 268_435_456
    assert LLAMA.attention_params == 150_994_944


def test_vocab_appendix() -> None:
    """DV is one of two: Llama-3 does not tie its output head to the embedding."""
    assert LLAMA.head_params == 1_050_673_152
    assert LLAMA.embedding_params == 2 * LLAMA.head_params
    assert replace(LLAMA, tied=True).embedding_params == LLAMA.head_params


def test_hyperparam_name() -> None:
    """One size under two names: heads of queries and of KV have the same 128 dims."""
    assert LLAMA.head_dim == LLAMA.kv_elements // (2 * LLAMA.kv_heads) == 128


# Requests.


def test_e2e_latency() -> None:
    """The slide's TTFT + OSL TPOT counts the first token twice."""
    assert e2e_s(0.5, 0.01, 1) == 0.5
    assert e2e_s(0.5, 0.01, 101) == approx(1.5)


def test_decode_step_min_1gpu() -> None:
    for batch, ms in ((1, 8.856), (16, 11.372), (64, 19.425)):
        step = step_bound(decode_work(LLAMA, FP8, batch, 8192), TALK)
        assert step.seconds == approx(ms * MS, abs=1e-3 * MS)
