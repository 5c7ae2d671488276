"""The least time that a step can take: that of the busiest of a chip's parts, all others hidden behind it."""

import dataclasses

from gpt.planning.collectives import Collective
from gpt.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a chip is busy in one step (Williams et al. 2009); None where a figure is not known.

    compute: analytic operations at the peak of matrix products. hbm: bytes between chip and memory. ici: bytes
    that leave the chip, over all its links at once. dcn: the same between slices or nodes.
    """

    compute: float
    hbm: float
    ici: float | None
    dcn: float | None

    @property
    def bound(self) -> float:
        """Seconds of one step, at least."""
        return max(self.compute, self.hbm, self.ici or 0.0, self.dcn or 0.0)

    @property
    def limited_by(self) -> str:
        """The part that is busiest."""
        return max(vars(self), key=lambda name: vars(self)[name] or 0.0)

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's own operations reach, at most."""
        return self.compute / self.bound


def roofline(
    topology: Topology, dtype: str, flops: float, hbm_traffic: float, collectives: list[Collective]
) -> Roofline:
    """The bound on a step in which each chip does `flops` operations with operands of `dtype`."""
    chip = topology.chip
    sent = {"ici": 0.0, "dcn": 0.0}
    for one in collectives:
        sent[one.network] += one.sent_bytes

    def seconds(network: str, bandwidth: float | None) -> float | None:
        return 0.0 if sent[network] == 0 else None if bandwidth is None else sent[network] / bandwidth

    return Roofline(
        compute=flops / chip.peak_flops[dtype],
        hbm=hbm_traffic / chip.hbm_bandwidth,
        ici=seconds("ici", chip.ici_bandwidth),
        dcn=seconds("dcn", chip.dcn_bandwidth),
    )
