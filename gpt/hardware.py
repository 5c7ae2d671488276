"""What accelerators can do at best, by the figures of their makers; the yardstick of MFU and of every plan.

Peaks are dense, never with sparsity. The peak in float32 is that of what JAX computes by default
for float32 operands (`jax.lax.Precision.DEFAULT`): one bfloat16 product on a TPU, TF32 on a GPU
that has it. A figure that its maker does not give, or that was not found, is left out.
"""

import dataclasses
from collections.abc import Mapping

TERA, GIGA, GIBI = 1e12, 1e9, 2.0**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: a TPU chip with all its cores, or a GPU."""

    name: str
    device_kinds: tuple[str, ...]
    """What `jax.Device.device_kind` says on it."""
    peak_flops: Mapping[str, float]
    """Operations a second by the dtype of the operands (`ModelConfig.compute_dtype`)."""
    hbm_bytes: float
    """Memory built in, where makers' GB are 2**30 bytes; the runtime keeps a few percent of it for itself."""
    hbm_bandwidth: float
    """Bytes a second between the chip and its memory."""
    ici_bandwidth: float | None = None
    """Bytes a second that leave the chip for others of its slice (ICI) or node (NVLink): one direction, all links."""
    dcn_bandwidth: float | None = None
    """Bytes a second a chip for data between slices or nodes, one direction: its share of the host's network."""
    devices_per_chip: int = 1
    """Devices that JAX shows for one chip: two where each core is one by itself."""
    source: str

    def device_flops(self, dtype: str) -> float | None:
        """Peak operations a second of one JAX device with operands of `dtype`; None where it is not known."""
        peak = self.peak_flops.get(dtype)
        return None if peak is None else peak / self.devices_per_chip


def find_chip(device_kind: str) -> Chip | None:
    """The chip of JAX devices of this kind, or None when CHIPS does not have it (a CPU, for one)."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)


def _tpu_peak(bfloat16: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "float32": bfloat16}


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"

# Google gives ICI as the sum of both directions, NVIDIA NVLink likewise: half of it is one direction.
CHIPS: tuple[Chip, ...] = (
    Chip(
        name="TPU v2",
        device_kinds=("TPU v2",),
        peak_flops=_tpu_peak(46 * TERA),
        hbm_bytes=16 * GIBI,
        hbm_bandwidth=700 * GIGA,
        devices_per_chip=2,
        source="Jouppi et al. 2020, A Domain-Specific Supercomputer for Training Deep Neural Networks, CACM 63(7)",
    ),
    Chip(
        name="TPU v3",
        device_kinds=("TPU v3",),
        peak_flops=_tpu_peak(123 * TERA),
        hbm_bytes=32 * GIBI,
        hbm_bandwidth=900 * GIGA,
        devices_per_chip=2,
        source=f"{_TPU_DOCS}/v3",
    ),
    Chip(
        name="TPU v4",
        device_kinds=("TPU v4",),
        peak_flops=_tpu_peak(275 * TERA),
        hbm_bytes=32 * GIBI,
        hbm_bandwidth=1200 * GIGA,
        ici_bandwidth=6 * 45 * GIGA,
        source=f"{_TPU_DOCS}/v4; ICI: https://jax-ml.github.io/scaling-book/tpus, 45 GB/s a link, one way",
    ),
    Chip(
        name="TPU v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peak_flops=_tpu_peak(197 * TERA),
        hbm_bytes=16 * GIBI,
        hbm_bandwidth=819 * GIGA,
        ici_bandwidth=400 * GIGA / 2,
        dcn_bandwidth=25 * GIGA / 8,
        source=f"{_TPU_DOCS}/v5e: 400 GB/s ICI in both directions; 6.4 Tbit/s network for 256 chips",
    ),
    Chip(
        name="TPU v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        peak_flops=_tpu_peak(459 * TERA),
        hbm_bytes=95 * GIBI,
        hbm_bandwidth=2765 * GIGA,
        ici_bandwidth=1200 * GIGA / 2,
        dcn_bandwidth=50 * GIGA / 8,
        source=f"{_TPU_DOCS}/v5p: 1200 GB/s ICI in both directions; 50 Gbit/s network a chip",
    ),
    Chip(
        name="TPU v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        peak_flops=_tpu_peak(918 * TERA),
        hbm_bytes=32 * GIBI,
        hbm_bandwidth=1638 * GIGA,
        ici_bandwidth=800 * GIGA / 2,
        dcn_bandwidth=100 * GIGA / 8,
        source=f"{_TPU_DOCS}/v6e: 800 GB/s ICI in both directions; 25.6 Tbit/s network for 256 chips",
    ),
    Chip(
        name="TPU v7x",
        device_kinds=("TPU7x",),
        peak_flops=_tpu_peak(2307 * TERA),
        hbm_bytes=192 * GIBI,
        hbm_bandwidth=7380 * GIGA,
        ici_bandwidth=1200 * GIGA / 2,
        dcn_bandwidth=100 * GIGA / 8,
        devices_per_chip=2,
        source=f"{_TPU_DOCS}/tpu7x: 1200 GB/s ICI in both directions; 100 Gbit/s network a chip",
    ),
    Chip(
        name="NVIDIA T4",
        device_kinds=("Tesla T4",),
        peak_flops={"float32": 8.1 * TERA},
        hbm_bytes=16 * GIBI,
        hbm_bandwidth=320 * GIGA,
        source="NVIDIA T4 data sheet; no bfloat16",
    ),
    Chip(
        name="NVIDIA V100 SXM2",
        device_kinds=("Tesla V100-SXM2-16GB",),
        peak_flops={"float32": 15.7 * TERA},
        hbm_bytes=16 * GIBI,
        hbm_bandwidth=900 * GIGA,
        ici_bandwidth=300 * GIGA / 2,
        source="NVIDIA V100 data sheet; no bfloat16",
    ),
    Chip(
        name="NVIDIA V100 SXM2 32GB",
        device_kinds=("Tesla V100-SXM2-32GB",),
        peak_flops={"float32": 15.7 * TERA},
        hbm_bytes=32 * GIBI,
        hbm_bandwidth=900 * GIGA,
        ici_bandwidth=300 * GIGA / 2,
        source="NVIDIA V100 data sheet; no bfloat16",
    ),
    Chip(
        name="NVIDIA A100 40GB",
        device_kinds=("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        peak_flops={"bfloat16": 312 * TERA, "float32": 156 * TERA},
        hbm_bytes=40 * GIBI,
        hbm_bandwidth=1555 * GIGA,
        ici_bandwidth=600 * GIGA / 2,
        source=f"{_NVIDIA}/a100, data sheet",
    ),
    Chip(
        name="NVIDIA A100 80GB SXM",
        device_kinds=("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        peak_flops={"bfloat16": 312 * TERA, "float32": 156 * TERA},
        hbm_bytes=80 * GIBI,
        hbm_bandwidth=2039 * GIGA,
        ici_bandwidth=600 * GIGA / 2,
        source=f"{_NVIDIA}/a100, data sheet",
    ),
    Chip(
        name="NVIDIA A100 80GB PCIe",
        device_kinds=("NVIDIA A100 80GB PCIe",),
        peak_flops={"bfloat16": 312 * TERA, "float32": 156 * TERA},
        hbm_bytes=80 * GIBI,
        hbm_bandwidth=1935 * GIGA,
        ici_bandwidth=600 * GIGA / 2,
        source=f"{_NVIDIA}/a100, data sheet",
    ),
    Chip(
        name="NVIDIA L4",
        device_kinds=("NVIDIA L4",),
        peak_flops={"bfloat16": 121 * TERA, "float32": 60 * TERA},
        hbm_bytes=24 * GIBI,
        hbm_bandwidth=300 * GIGA,
        source=f"{_NVIDIA}/l4; half of the figures with sparsity",
    ),
    Chip(
        name="NVIDIA L40S",
        device_kinds=("NVIDIA L40S",),
        peak_flops={"bfloat16": 362 * TERA, "float32": 183 * TERA},
        hbm_bytes=48 * GIBI,
        hbm_bandwidth=864 * GIGA,
        source=f"{_NVIDIA}/l40s",
    ),
    Chip(
        name="NVIDIA H100 SXM",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        peak_flops={"bfloat16": 989.4 * TERA, "float32": 494.7 * TERA},
        hbm_bytes=80 * GIBI,
        hbm_bandwidth=3350 * GIGA,
        ici_bandwidth=900 * GIGA / 2,
        source=f"{_NVIDIA}/h100; dense peaks: NVIDIA H100 Tensor Core GPU Architecture, table 2",
    ),
    Chip(
        name="NVIDIA H100 PCIe",
        device_kinds=("NVIDIA H100 PCIe",),
        peak_flops={"bfloat16": 756 * TERA, "float32": 378 * TERA},
        hbm_bytes=80 * GIBI,
        hbm_bandwidth=2000 * GIGA,
        ici_bandwidth=600 * GIGA / 2,
        source=f"{_NVIDIA}/h100; dense peaks: NVIDIA H100 Tensor Core GPU Architecture, table 2",
    ),
    Chip(
        name="NVIDIA H200",
        device_kinds=("NVIDIA H200",),
        peak_flops={"bfloat16": 989.4 * TERA, "float32": 494.7 * TERA},
        hbm_bytes=141 * GIBI,
        hbm_bandwidth=4800 * GIGA,
        ici_bandwidth=900 * GIGA / 2,
        source=f"{_NVIDIA}/h200; half of the figures with sparsity",
    ),
    Chip(
        name="NVIDIA B200",
        device_kinds=("NVIDIA B200",),
        peak_flops={"bfloat16": 2250 * TERA, "float32": 1100 * TERA},
        hbm_bytes=180 * GIBI,
        hbm_bandwidth=8000 * GIGA,
        ici_bandwidth=1800 * GIGA / 2,
        source="NVIDIA Blackwell Architecture Technical Brief, HGX B200; memory: HGX B200 data sheet",
    ),
)
"""All chips that are known, oldest first by maker."""
