"""Where copies of shards may go on a node, and how much of them: its memory or its disk, and descriptors to hold them.

Files in memory are paid for by the machine and by each control group of the job; a batch system kills a job that
takes more than its share.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]

from jeoparda.errors import RecipeError

Kind = Literal["none", "shm", "local"]

SPARE = 0.05  # of the place: left to others
SPARE_MEMORY = 0.2  # of the memory, or of the job's share of it: left to training, which has yet to begin
SPARE_FILES = 512  # descriptors left to DALI, Horovod and all else in the process
# of a control group: of version 2 where it kills, and from where on it slows down to a crawl; of version 1
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")


def place_of(kind: Kind, folder: Path | None) -> Path:
    """The folder to stage to. RecipeError, which names the key, where there is none."""
    if kind == "shm":
        if folder:
            raise RecipeError(f"feed.stage_folder = {folder}: is for feed.stage = local; feed.stage = shm is /dev/shm")
        place, instead = Path("/dev/shm"), "take feed.stage = local, or none"
    else:
        given = folder or os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
        if not given:
            raise RecipeError(
                "feed.stage = local: neither SLURM_TMPDIR nor TMPDIR is set; give a folder on the node's own disk in "
                "feed.stage_folder"
            )
        place, instead = Path(given), "give another in feed.stage_folder"
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = "cannot be written to" if place.is_dir() else "is not a folder"
        raise RecipeError(f"feed.stage = {kind}: {place} {what}; {instead}")
    return place


def room_bytes(place: Path) -> int:
    """What may still be written there, with a margin left to others; below 0 where that is used up already.

    A place in memory, /dev/shm or not, also counts as memory: of the machine and of each control group that this
    process is in.
    """
    s = os.statvfs(place)
    rooms = [s.f_bavail * s.f_frsize - SPARE * s.f_blocks * s.f_frsize]
    if in_memory(place):
        machine = psutil.virtual_memory()
        limits = [(machine.total, machine.total - machine.available), *_groups()]
        rooms += [limit * (1 - SPARE_MEMORY) - used for limit, used in limits]
    return int(min(rooms))


def allowed_files(shards: int) -> int:
    """How many of a store's shards may be staged: a copy takes a descriptor here and one of the reader, beside the
    reader's of the store's own file. Raises the soft limit."""
    return max(0, (allow_files(3 * shards) - shards) // 2)


def allow_files(wanted: int) -> int:
    """How many of the `wanted` descriptors this process may have, beside others' SPARE_FILES. Raises the soft limit: an
    archive of 590,326 patches has more shards than is usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += SPARE_FILES
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit - SPARE_FILES


# ---- of the kernel, see proc(5) and cgroups(7)


def _proc(name: str) -> list[str]:
    return Path(psutil.PROCFS_PATH, name).read_text().splitlines()


def _mounts() -> Iterator[tuple[str, str, str, str, str]]:
    """(device, root, mount point, type, options) of each mount."""
    for line in _proc("self/mountinfo"):
        mount, _, what = line.partition(" - ")
        kind, *_, options = what.split()
        device, root, point = mount.split()[2:5]
        yield device, root, point, kind, options


def in_memory(place: Path) -> bool:
    """Whether a file or folder lies in memory, by the kind of its filesystem."""
    dev = place.stat().st_dev
    device = f"{os.major(dev)}:{os.minor(dev)}"
    return any(on == device and kind in ("tmpfs", "ramfs") for on, _, _, kind, _ in _mounts())


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, use that cannot be reclaimed), in bytes, of each control group with a memory limit that this process is
    in, of version 1 or 2."""
    hierarchies = (line.split(":", 2) for line in _proc("self/cgroup"))
    within = {name: path for _, names, path in hierarchies for name in names.split(",")}
    for _, root, point, kind, options in _mounts():
        if kind == "cgroup2" and "" in within:
            path, use, prefix = within[""], "memory.current", ""
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in within:
            path, use, prefix = within["memory"], "memory.usage_in_bytes", "total_"
        else:
            continue
        below = os.path.relpath(path, root) if Path(path).is_relative_to(root) else "."  # a container sees its own
        group = Path(point) / below
        for folder in (group, *group.parents[: len(Path(below).parts)]):
            for file in (folder / name for name in _LIMITS):
                if file.exists() and (limit := file.read_text().strip()) != "max":
                    yield int(limit), _used(folder, use, prefix)


def _used(group: Path, file: str, prefix: str) -> int:
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = sum(int(stat[f"{prefix}{name}"]) for name in ("active_file", "inactive_file"))  # without shared memory
    return int((group / file).read_text()) - cached
