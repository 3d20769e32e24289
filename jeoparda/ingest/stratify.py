"""Blocks dealt out so that each class's share in validation and test comes near the wanted one, rare classes first.

After Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011, algorithm 1:
the class with the fewest examples is dealt first, to the part that lacks it most. Here whole blocks are dealt, not
examples, so it matters which block is taken: the one that brings the part's counts of all classes nearest to those
wanted.
"""

import numpy as np

_AT_ONCE = 8  # a round takes an eighth of the blocks that are still wanted, at least one


def deal(counts: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """(block,) int8: 0 for the part that keeps the rest (training), 1 and up for the parts of `shares`.

    counts: (block, class) number of patches of each class, the last column that of all patches. Of blocks that fit
    equally well the earlier one is taken. The rest never loses its last block of a class; a class of two blocks also
    goes to the last part of `shares`, one of three to the part before it too.
    """
    total = counts.sum(0)
    relative = counts / np.maximum(total, 1)  # (block, class) share of the class that a block holds
    spread = (relative**2).sum(1)
    part = np.zeros(len(counts), np.int8)
    left = (counts > 0).sum(0)  # blocks of the rest, by class
    have = np.zeros((len(shares), len(total)))  # share of the class in each part
    for c in np.argsort(total, kind="stable"):
        open_ = [p for p in reversed(range(len(shares))) if shares[p] > 0 and total[c] > 0]
        while open_:
            p = min(open_, key=lambda p: have[p, c] / shares[p])
            some = np.flatnonzero((part == 0) & (counts[:, c] > 0))
            some = some[~((counts[some] > 0) & (left == 1)).any(1)]
            # change of the sum over classes of (have / wanted - 1)^2; rounded: ties shall not hang on the machine
            change = spread[some] / shares[p] ** 2 + 2 / shares[p] * (relative[some] @ (have[p] / shares[p] - 1))
            order = np.argsort(np.round(change, 9), kind="stable")
            taken = some[order[: _enough(np.sort(change), have[p, c], shares[p], relative[some, c])]]
            taken = taken[((left - np.cumsum(counts[taken] > 0, 0) > 0) | (counts[taken] == 0)).all(1)]
            part[taken] = p + 1
            have[p] += relative[taken].sum(0)
            left -= (counts[taken] > 0).sum(0)
            if not len(taken):
                open_.remove(p)
    return part


def _enough(change: np.ndarray, have: float, share: float, relative: np.ndarray) -> int:
    """How many blocks a part takes at once. change: (block,) rising, what each does to the part's distance from what
    is wanted. have, share: of the class, had and wanted. relative: (block,) share of the class in each block."""
    if not len(change):
        return 0
    if not have:
        return 1  # a class is in each part if it can be, even where its blocks are larger than what is wanted
    if have >= share:
        return 0
    at_once = max(1, int((share - have) / relative.mean() / _AT_ONCE))
    return min(at_once, int(np.count_nonzero(change < 0)))
