"""Whether all ranks hold the same numbers."""

from collections.abc import Mapping

import torch

from jeoparda.comm.protocol import Comm
from jeoparda.errors import CommError

STRIDE = 2 * (2**31 - 1)  # even, so that weights are odd
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by bytes an element


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """One int64 of the bits of a tensor and of where they stand, modulo 2**64, computed on its device.

    The sum over i of b[i] * w[i], where b[i] are the bits as integers of 32 bits at most and w[i] = STRIDE * i + 1. A
    bit that flips always shows, for an odd weight is invertible modulo 2**64. So do two numbers of 32 bits that change
    places: (b[i] - b[j]) * (i - j), not 0, is less than 2**63 for fewer than 2**30 numbers. Doubles are two numbers
    each, as 64 bits at once would not show x and -x that change places.
    """
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    weights = torch.arange(bits.numel(), device=bits.device).mul_(STRIDE).add_(1)
    return weights.mul_(bits).sum()


def same_everywhere(comm: Comm, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """CommError on all ranks when the tensors differ by a bit between ranks, naming the first that does and the ranks
    that differ from rank 0. Collective; `what` says in the message what they are."""
    sums = [checksum(t) for t in tensors.values()]
    mine = torch.stack(sums).tolist() if sums else []
    whole = hash(tuple(mine))
    if len(set(comm.gather(whole, "same.whole"))) == 1:
        return
    ranks = comm.gather(dict(zip(tensors, mine, strict=True)), "same.each")
    for name in tensors:
        other = [rank for rank, found in enumerate(ranks) if found.get(name) != ranks[0].get(name)]
        if other:
            raise CommError(
                f"{what}: {name} differs from rank 0 on rank {', '.join(map(str, other))}: the ranks have parted"
            )
