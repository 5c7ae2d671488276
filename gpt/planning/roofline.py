"""The least time that a step can take: that of the busiest of a chip's parts, all others hidden behind it."""

import dataclasses

from gpt.planning.collectives import Collective
from gpt.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a chip is busy in one step (Williams et al. 2009); None where a figure is not known.

    compute: analytic operations, with those that `ModelConfig.remat` repeats, at the peak of matrix products.
    hbm: bytes between chip and memory. ici: bytes that leave the chip, over all its links at once. dcn: the
    same between slices or nodes.
    """

    compute: float
    hbm: float
    ici: float | None
    dcn: float | None
    useful: float = 1.0
    """Share of the operations that are not a repetition."""

    @property
    def seconds(self) -> dict[str, float | None]:
        """The four by name."""
        return {"compute": self.compute, "hbm": self.hbm, "ici": self.ici, "dcn": self.dcn}

    @property
    def bound(self) -> float:
        """Seconds of one step, at least."""
        return max(seconds or 0.0 for seconds in self.seconds.values())

    @property
    def limited_by(self) -> str:
        """The part that is busiest."""
        return max(self.seconds, key=lambda name: self.seconds[name] or 0.0)

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's own operations reach, at most."""
        return self.useful * self.compute / self.bound


def roofline(
    topology: Topology,
    dtype: str,
    flops: float,
    hbm_traffic: float,
    collectives: list[Collective],
    repeated_flops: float = 0.0,
) -> Roofline:
    """The bound on a step in which each chip does `flops` operations with operands of `dtype`, and repeats some."""
    chip = topology.chip
    sent = {"ici": 0.0, "dcn": 0.0}
    for one in collectives:
        sent[one.network] += one.sent_bytes

    def seconds(network: str, bandwidth: float | None) -> float | None:
        return 0.0 if sent[network] == 0 else None if bandwidth is None else sent[network] / bandwidth

    return Roofline(
        compute=(flops + repeated_flops) / chip.peak_flops[dtype],
        hbm=hbm_traffic / chip.hbm_bandwidth,
        ici=seconds("ici", chip.ici_bandwidth),
        dcn=seconds("dcn", chip.dcn_bandwidth),
        useful=flops / (flops + repeated_flops),
    )
