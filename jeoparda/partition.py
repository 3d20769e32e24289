"""Who does which part: independent work items over ranks, processes and job-array tasks."""


def share(count: int, part: int, parts: int) -> range:
    """The items that part `part` of `parts` does, contiguous, sizes differing by at most one."""
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}: expected 0 <= part < parts")
    return range(part * count // parts, (part + 1) * count // parts)


def shards(count: int, per_shard: int) -> list[range]:
    """Consecutive runs of `per_shard` items; the last may be shorter. Independent of who does them."""
    return [range(i, min(i + per_shard, count)) for i in range(0, count, per_shard)]


def spans(numbers: list[int]) -> str:
    """Sorted numbers as text: 1, 2, 3, 7 -> "1-3, 7"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)
