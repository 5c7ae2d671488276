"""gpt.hardware: the chips, found by what JAX calls their devices."""

from itertools import pairwise

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from gpt.hardware import CHIPS, Chip, find_chip


@pytest.mark.parametrize(
    ("device_kind", "name", "teraflops"),
    [
        ("TPU v4", "TPU v4", 275),
        ("TPU v5 lite", "TPU v5e", 197),
        ("TPU v5", "TPU v5p", 459),
        ("TPU v5p", "TPU v5p", 459),
        ("TPU v6 lite", "TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB SXM", 312),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM", 989.4),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe", 756),
        ("NVIDIA B200", "NVIDIA B200", 2250),
    ],
)
def test_a_chip_is_found_by_the_kind_that_jax_reports(device_kind: str, name: str, teraflops: float) -> None:
    chip = find_chip(device_kind)
    assert chip is not None
    assert (chip.name, chip.device_flops("bfloat16")) == (name, teraflops * 1e12)


@pytest.mark.parametrize("device_kind", ["TPU v3", "TPU7x"])
def test_a_device_that_is_one_core_of_two_has_half_the_peak(device_kind: str) -> None:
    chip = find_chip(device_kind)
    assert chip is not None
    assert chip.device_flops("bfloat16") == chip.peak_flops["bfloat16"] / 2


@pytest.mark.parametrize("device_kind", [jax.devices("cpu")[0].device_kind, "TPU v5 lite pod", "NVIDIA H100", ""])
def test_what_is_no_exact_kind_is_no_known_chip(device_kind: str) -> None:
    assert find_chip(device_kind) is None


def test_a_peak_that_a_chip_does_not_have_is_none() -> None:
    chip = find_chip("Tesla V100-SXM2-16GB")
    assert chip is not None
    assert chip.device_flops("bfloat16") is None
    assert chip.device_flops("float32") == 15.7e12


def test_no_two_chips_answer_to_the_same_kind_or_name() -> None:
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize("chip", [chip for chip in CHIPS if "TPU" in chip.name], ids=lambda chip: chip.name)
def test_the_figures_of_a_tpu_are_those_that_jax_has(chip: Chip) -> None:
    """JAX's own table is rounded, and 16 % off in the peak of v3 and 12 % in the memory bandwidth of v5p."""
    version = pltpu.ChipVersion(chip.name.removeprefix("TPU v" if chip.name == "TPU v7x" else "TPU "))
    cores = version.num_physical_tensor_cores_per_chip
    assert chip.devices_per_chip == (1 if version.supports_megacore else cores)
    core = pltpu.get_tpu_info_for_chip(version, 1)
    assert chip.peak_flops["bfloat16"] == pytest.approx(core.bf16_ops_per_second * cores, rel=0.16)
    assert chip.hbm_bytes == pytest.approx(core.hbm_capacity_bytes * cores, rel=0.08)
    assert chip.hbm_bandwidth == pytest.approx(core.mem_bw_bytes_per_second * cores, rel=0.13)


def test_newer_tpus_for_training_are_faster_in_every_respect() -> None:
    by_name = {chip.name: chip for chip in CHIPS}
    line = [by_name[name] for name in ("TPU v2", "TPU v3", "TPU v4", "TPU v5p", "TPU v7x")]
    for older, newer in pairwise(line):
        assert older.peak_flops["bfloat16"] < newer.peak_flops["bfloat16"]
        assert older.hbm_bytes <= newer.hbm_bytes
        assert older.hbm_bandwidth < newer.hbm_bandwidth


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_are_in_their_units_and_have_a_source(chip: Chip) -> None:
    assert 5e12 < min(chip.peak_flops.values()) <= max(chip.peak_flops.values()) < 1e16
    assert 1e11 < chip.hbm_bandwidth < 1e13
    assert 16 * 2**30 <= chip.hbm_bytes <= 192 * 2**30
    assert chip.ici_bandwidth is None or 1e11 < chip.ici_bandwidth < chip.hbm_bandwidth
    assert chip.dcn_bandwidth is None or 1e9 < chip.dcn_bandwidth < (chip.ici_bandwidth or 0)
    assert chip.source
