"""An epoch's figures from those of its ranks: rates, where the time went, and which rank kept the others waiting."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("read", "augment", "copy", "compute", "communication", "checkpoint")  # of a rank's time, as it has clocks
FEED = PARTS[:3]
NOISE, NOISE_S = 0.02, 0.1  # waiting below this share of an epoch, or this time, is nobody's fault


@dataclass(frozen=True)
class RankEpoch:
    """What one rank measured in an epoch's training steps.

    images, seconds: of all of them. first_wait_s: for the first batch. spent_s: seconds by part, all of PARTS that took
    any. device_bytes, resident_bytes: peaks of memory. gpu_j, cpu_j: energy, where known; ranks that share
    a GPU count it each. peak_flops: FLOP/s of its device, where known.
    """

    images: int
    seconds: float
    first_wait_s: float
    spent_s: dict[str, float]
    resident_bytes: int
    device_bytes: int | None = None
    gpu_j: float | None = None
    cpu_j: float | None = None
    peak_flops: float | None = None

    @property
    def split_s(self) -> dict[str, float]:
        return {part: self.spent_s.get(part, 0.0) for part in PARTS}

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waited_s(self) -> float:
        """For the feed."""
        return sum(self.split_s[part] for part in FEED)

    @property
    def utilisation(self) -> float:
        return utilisation(self.seconds - self.split_s["checkpoint"], self.waited_s, self.first_wait_s)


def combine(ranks: Sequence[RankEpoch], flops_per_image: int) -> dict[str, Any]:
    """The journal's fields of an epoch, from all ranks in order. flops_per_image: of a training step (meter.flops).

    split_s is rank 0's time, with the feed as one; split_s_per_rank has all PARTS and "waiting", for the slowest rank,
    which is taken out of "communication". mfu: model FLOP/s utilisation, FLOP/s over what the devices could, None
    where that is not known (Chowdhery et al. 2022, PaLM, appendix B). energy_j: of all GPUs, None where one does not
    tell; of the processors of those nodes that tell.
    """
    peak = _sum([r.peak_flops for r in ranks])
    rate = sum(r.images_per_s for r in ranks)
    first = ranks[0]
    late = slowest(ranks)
    return {
        "images_per_s": rate,
        "images_per_s_per_rank": [r.images_per_s for r in ranks],
        "seconds": first.seconds,
        "wait_s": [r.waited_s for r in ranks],
        "utilisation": sum(r.utilisation for r in ranks) / len(ranks),
        "utilisation_per_rank": [r.utilisation for r in ranks],
        "split_s": {"feed": first.waited_s} | {part: s for part, s in first.split_s.items() if part not in FEED},
        "split_s_per_rank": splits(ranks),
        "slowest": {"rank": late[0], "why": late[1]} if late else None,
        "mfu": None if peak is None else rate * flops_per_image / peak,
        "memory": {
            "device_bytes": [r.device_bytes for r in ranks],
            "resident_bytes": [r.resident_bytes for r in ranks],
        },
        "energy_j": {
            "gpu": _sum([r.gpu_j for r in ranks]),
            "cpu": _sum([r.cpu_j for r in ranks if r.cpu_j is not None]),
        },
    }


def _sum(values: Sequence[float | None]) -> float | None:
    """None where there are none, or one is not known."""
    known = [v for v in values if v is not None]
    return sum(known) if known and len(known) == len(values) else None


def waiting(ranks: Sequence[RankEpoch]) -> list[float]:
    """Seconds that each rank waited for the slowest: its communication beyond that of the rank that has least. An
    exchange ends for all at once, and takes the last one to come no longer than it must. Where ranks take turns in
    being the last, this is less than they waited, and the rest stays communication."""
    each = [r.split_s["communication"] for r in ranks]
    return [s - min(each) for s in each]


def splits(ranks: Sequence[RankEpoch]) -> list[dict[str, float]]:
    """Each rank's seconds by part, waiting for the slowest apart from communication."""
    least = min(r.split_s["communication"] for r in ranks)
    both = zip(ranks, waiting(ranks), strict=True)
    return [r.split_s | {"communication": least, "waiting": waited} for r, waited in both]


def slowest(ranks: Sequence[RankEpoch]) -> tuple[int, str] | None:
    """The rank that kept the others waiting, and why: the part of its time that exceeds the median of the others' most.

    It is the one that waits least itself. None for a single rank, and where the median of the others' waiting is below
    2 % of the epoch or a tenth of a second. "other" is what no clock holds.
    """
    waits = waiting(ranks)
    last = waits.index(0.0)
    others = [i for i in range(len(ranks)) if i != last]
    if not others or statistics.median(waits[i] for i in others) < max(NOISE_S, NOISE * ranks[last].seconds):
        return None
    parts = [_own(r) for r in ranks]
    excess = {part: s - statistics.median(parts[i][part] for i in others) for part, s in parts[last].items()}
    part = max(excess, key=excess.__getitem__)
    return last, f"{part}: {excess[part]:.1f} s more than the median of the others"


def _own(r: RankEpoch) -> dict[str, float]:
    """Seconds by part of what a rank does by itself."""
    own = r.split_s | {"other": r.seconds - sum(r.split_s.values())}
    del own["communication"]
    return own


def utilisation(running_s: float, waited_s: float, first_wait_s: float) -> float:
    """Accelerator utilisation as MLPerf Storage defines it: computing time / running time, the wait for the first batch
    left out of both (MLCommons, MLPerf Storage rules, section Performance Metrics, https://github.com/mlcommons/storage).
    running_s: without checkpoints, which are no part of it in DLIO, MLPerf Storage's own program, either.

    Computing is all that is not waiting for the feed. So of several ranks the lowest tells most: while its feed is
    late, all others wait for it in an exchange. The clock is that of the loop, which with a GPU is ahead of the device:
    while the loop waits, the device may still work on steps in its queue. So there the figure is a lower bound: for
    want of a batch the device was idle as long as the loop waited, at most. nan where no time is left.
    """
    running_s, waited_s = running_s - first_wait_s, waited_s - first_wait_s
    return 1 - waited_s / running_s if running_s > 0 else math.nan
