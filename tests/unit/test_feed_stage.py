"""Staging: the same bytes from nearer by, shared by the ranks of a node, and nothing left when they are gone.

What a process leaves is measured on a tmpfs of its own: by the kernel's count of free blocks, not by names alone.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from math import inf
from pathlib import Path

import numpy as np
import psutil
import pytest

from jeoparda.comm import Single
from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed import place, stage
from jeoparda.feed.stage import Estimate, Handle, Rates, Stage, Team
from jeoparda.store import Store
from tests.conftest import environment
from tests.unit.test_ingest_full_disk import Disk
from tests.unit.test_upkeep import flip


@pytest.fixture(autouse=True)
def _a_disk_of_others(request, monkeypatch):
    """The disk below tmp_path may be fuller than staging likes. A test with a place of its own wants the margin."""
    if not {"disk", "proc"} & {*request.fixturenames}:
        monkeypatch.setattr(place, "SPARE", 0.0)


@pytest.fixture(scope="module")
def store(tiny_store):
    return Store(tiny_store)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    made.resize(size=64 << 20)
    yield made
    subprocess.run(["umount", "--lazy", made.folder], check=True)  # a failed test may still hold files


@pytest.fixture
def said() -> list[str]:
    return []


def staging(store, folder, said, comm=None, numbers=None) -> Stage:
    numbers = store.split("all") if numbers is None else numbers
    return Stage(store, "local", folder, numbers, comm or Single(), said.append)


def free(folder: Path) -> tuple[int, int]:
    s = os.statvfs(folder)
    return s.f_bfree, s.f_ffree


def until(true, what: str) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends, f"not within 20 s: {what}"
        time.sleep(0.01)


def same_bytes(s: Stage, store: Store) -> bool:
    return all(s.path(i).read_bytes() == path.read_bytes() for i, path in enumerate(store.paths))


def own(s: Stage, store: Store) -> list[int]:
    """The shards that are read from the store."""
    return [i for i, path in enumerate(store.paths) if s.path(i) == path]


class Gate:
    """Copying halts in the midst of the first shard until it opens. Blocks are of 64 KiB."""

    def __init__(self) -> None:
        self.reached, self.opened, self.blocks = threading.Event(), threading.Event(), 0

    def open(self) -> None:
        assert self.reached.wait(20)
        self.opened.set()


@pytest.fixture
def gate(monkeypatch) -> Gate:
    made, blocks = Gate(), stage._blocks
    monkeypatch.setattr(stage, "BLOCK_BYTES", 1 << 16)

    def gated(path):
        for block in blocks(path):
            if made.blocks == 3:
                made.reached.set()
                assert made.opened.wait(20)
            made.blocks += 1
            yield block

    monkeypatch.setattr(stage, "_blocks", gated)
    return made


# ---- one rank


def test_a_path_changes_when_the_copy_is_whole_and_the_bytes_are_the_same(store, tmp_path, said, gate):
    before = len(os.listdir("/proc/self/fd"))
    with staging(store, tmp_path, said) as s:
        assert gate.reached.wait(20)
        assert own(s, store) == [*range(7)] and s.staged == 0
        gate.open()
        s.wait()
        assert own(s, store) == [] and s.staged == 7 and s.path_of == s.path
        assert same_bytes(s, store)
        assert list(tmp_path.iterdir()) == []  # there is never a name
        assert s.path(3) is s.path(3)  # no work for a shard that is known
    assert own(s, store) == [*range(7)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert "7 of 7 shards" in said[0] and "7 of its 7 shards staged" in said[1] and len(said) == 2


def test_shm_is_dev_shm(store, said):
    before = os.listdir("/dev/shm")
    with Stage(store, "shm", None, store.split("all"), Single(), said.append) as s:
        s.wait()
        assert s.staged == 7 and same_bytes(s, store)
        assert os.stat(s.path(0)).st_dev == os.stat("/dev/shm").st_dev
        assert sorted(os.listdir("/dev/shm")) == sorted(before)


def test_none_does_nothing_and_asks_nobody(store, said):
    with Stage(store, "none", None, store.split("all"), None, said.append) as s:  # type: ignore[arg-type]
        s.wait()
        assert own(s, store) == [*range(7)] and said == [] and s.path_of is None


def test_shards_that_are_not_read_are_not_staged(store, tmp_path, said):
    with staging(store, tmp_path, said, numbers=np.flatnonzero(np.isin(store.shard_of, [2, 5]))) as s:
        s.wait()
        assert own(s, store) == [0, 1, 3, 4, 6] and "2 of 2 shards" in said[0]


def test_close_ends_a_copy_in_its_midst(store, tmp_path, said, gate):
    s = staging(store, tmp_path, said)
    assert gate.reached.wait(20)
    closing = threading.Thread(target=s.close)
    closing.start()
    until(s._stop.is_set, "that it is told to stop")
    gate.open()
    closing.join()
    assert gate.blocks == 4 and s.staged == 0 and len(said) == 1


def test_an_unforeseen_error_is_not_lost(store, tmp_path, said, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("a bug")
        yield

    monkeypatch.setattr(stage, "_blocks", broken)
    with staging(store, tmp_path, said) as s:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            s.wait()
        with pytest.raises(ZeroDivisionError, match="a bug"):
            s.path(0)


# ---- a shard that is not as it was written


@pytest.fixture
def mine(tiny_store, tmp_path) -> Store:
    return Store(shutil.copytree(tiny_store, tmp_path / "mine"))


def spoil(store: Store, shard: int, how: str) -> None:
    path = store.paths[shard]
    if how == "flipped":
        flip(path, store.info.shards[shard].offset + 70, 4)
    elif how == "replaced":
        shutil.copyfile(store.paths[shard - 1], path)
    elif how == "gone":
        path.unlink()
    else:
        os.truncate(path, 5000)


@pytest.mark.parametrize("how", ["flipped", "replaced", "truncated", "gone"])
def test_a_shard_that_changed_is_refused_by_name_and_the_others_are_staged(mine, tmp_path, said, gate, how):
    (tmp_path / "place").mkdir()
    with staging(mine, tmp_path / "place", said) as s:
        assert gate.reached.wait(20)
        spoil(mine, 4, how)
        gate.open()
        s.wait()
        with pytest.raises(StoreError, match=r"shards/00004.h5: .*(SHA-256|cannot be read)"):
            s.path(4)
        assert s.staged == 6 and all(s.path(i) != mine.paths[i] for i in range(7) if i != 4)
    assert any("00004.h5" in line for line in said)


# ---- room


@pytest.mark.needs("mount")
def test_what_fits_is_staged_and_the_rest_is_read_from_the_store(store, disk, said):
    shard = store.paths[0].stat().st_size
    disk.resize(size=int(3.5 * shard / (1 - place.SPARE)))
    with staging(store, disk.folder, said) as s:
        s.wait()
        assert own(s, store) == [3, 4, 5, 6] and same_bytes(s, store)
        s_left = os.statvfs(disk.folder)
        assert s_left.f_bfree > place.SPARE * s_left.f_blocks
    assert "3 of 7 shards" in said[0] and "more do not fit; the rest is read from the store" in said[0]


@pytest.mark.needs("mount")
@pytest.mark.parametrize("left_pages", [0, 3, 20])
def test_no_room_at_all_is_told_and_nothing_is_staged(store, disk, said, left_pages):
    disk.full(left_pages * 4096)
    with staging(store, disk.folder, said) as s:
        s.wait()
        assert own(s, store) == [*range(7)]
    assert "nothing is staged" in said[0] and "read from the store" in said[0]


@pytest.mark.needs("mount")
def test_a_disk_that_others_fill_meanwhile_ends_the_copying_only(store, disk, said, gate, monkeypatch):
    copied, blocks = [], stage._blocks
    empty = free(disk.folder)

    def until_full(path):
        for block in blocks(path):
            copied.append(len(block))
            if sum(copied) > 2.5 * store.paths[0].stat().st_size:
                disk.full()
            yield block

    s = staging(store, disk.folder, said)
    monkeypatch.setattr(stage, "_blocks", until_full)
    gate.open()
    s.wait()
    # where a copy got a huge page, the kernel gives back what is beyond the copy's end, and one more fits
    left = own(s, store)
    assert left in ([2, 3, 4, 5, 6], [3, 4, 5, 6]) and same_bytes(s, store)
    assert f"No space left on device; {7 - len(left)} of its 7 shards staged" in said[1]
    assert "read from the store" in said[1]
    s.close()
    disk.resize(size=64 << 20)
    assert free(disk.folder)[0] == empty[0]


@pytest.mark.needs("mount")
def test_a_disk_that_others_use_meanwhile_keeps_its_margin(store, disk, said, gate):
    with staging(store, disk.folder, said) as s:
        disk.full(int(1.5 * store.paths[0].stat().st_size))
        gate.open()
        s.wait()
        assert s.staged <= 1 and "has no more room" in said[1]
        assert same_bytes(s, store)


GIB = 1 << 30


def meminfo(available_gib: int) -> str:
    others = "".join(f"{name}: 1 kB\n" for name in ("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive"))
    return f"MemTotal: {100 << 20} kB\nMemAvailable: {available_gib << 20} kB\n{others}HugePages_Total: 0\n"


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of a machine of 100 GiB, 60 of them to be had, and a job that may use 40 and a step of it 16 GiB."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))

    def make(version: int) -> Path:
        top = tmp_path / "cgroup"
        files = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
            2: ("memory.max", "memory.current", ""),
        }[version]
        for folder, limit, used in (("job", 40 * GIB, 9 * GIB), ("job/step", 16 * GIB, 8 * GIB), ("job/step/t", 0, 0)):
            (top / folder).mkdir(parents=True)
            unlimited = "max" if version == 2 else str((1 << 63) - 4096)
            (top / folder / files[0]).write_text(f"{limit or unlimited}\n")
            (top / folder / files[1]).write_text(f"{used}\n")
            p = files[2]
            stat = f"{p}shmem {GIB}\n{p}inactive_file {2 * GIB}\n{p}active_file {GIB}\n" if used else ""
            (top / folder / "memory.stat").write_text(stat or f"{p}inactive_file 0\n{p}active_file 0\n")
        (tmp_path / "self").mkdir()
        group = "0::/job/step/t" if version == 2 else "7:pids:/x\n4:memory:/job/step/t\n0::/"
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
        (tmp_path / "self/cgroup").write_text(group + "\n")
        dev = os.stat("/dev/shm").st_dev
        (tmp_path / "self/mountinfo").write_text(
            f"30 23 {os.major(dev)}:{os.minor(dev)} / /dev/shm rw shared:4 - tmpfs tmpfs rw\n"
            f"31 23 0:29 / {top} rw,nosuid shared:9 - {kind}\n"
        )
        (tmp_path / "meminfo").write_text(meminfo(60))
        return tmp_path

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_tightest_group_less_a_margin(proc, version, monkeypatch):
    big = os.statvfs_result((4096, 4096, 1 << 30, 1 << 30, 1 << 30, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: big)
    where, room = proc(version), lambda: place.room_bytes(Path("/dev/shm"))
    # the step: 16 GiB less a fifth, less the 8 in use but for 3 of cache; 12.8 - 5
    assert room() == pytest.approx(7.8 * GIB, abs=1)
    for file in where.glob("cgroup/job/step/memory.*m*"):
        if file.name in ("memory.max", "memory.limit_in_bytes"):
            file.write_text(str(39 * GIB))
    # the job: 40 less a fifth, less 9 but for 3; the step would give 31.2 - 5, the machine 80 - 40
    assert room() == pytest.approx(26 * GIB, abs=1)
    (where / "meminfo").write_text(meminfo(21))
    assert room() == pytest.approx(GIB, abs=1)
    # a disk is no memory: 4 TiB less a twentieth
    (where / "self/mountinfo").write_text("")
    assert room() == pytest.approx(0.95 * 4096 * GIB, abs=1)


def test_a_group_that_is_slowed_down_before_its_limit_has_that_much_less(proc):
    step = proc(2) / "cgroup/job/step"
    for high, room_gib in ("max", 7.8), (str(10 * GIB), 10 * 0.8 - 5):
        (step / "memory.high").write_text(f"{high}\n")
        assert place.room_bytes(Path("/dev/shm")) == pytest.approx(room_gib * GIB, abs=1)


def test_this_machine_s_memory_is_understood():
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) << 10
    assert 0 < place.room_bytes(Path("/dev/shm")) < available


@pytest.mark.parametrize(("hard", "shards"), [(520, 0), (525, 3), (4096, 7), (resource.RLIM_INFINITY, 7)])
def test_the_reader_keeps_its_descriptors(monkeypatch, hard, shards):
    limits = [(256, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert place.allowed_files(7) == shards
    assert limits[-1][0] >= 7 + 2 * shards + place.SPARE_FILES and limits[-1][1] == hard


@pytest.mark.parametrize(
    ("kind", "folder", "told"),
    [
        ("local", None, "feed.stage = local: neither SLURM_TMPDIR nor TMPDIR .* feed.stage_folder"),
        ("local", Path("/nowhere"), "/nowhere is not a folder; give another in feed.stage_folder"),
        ("local", Path("/proc/self"), "/proc/self cannot be written to; give another in feed.stage_folder"),
        ("shm", Path("/tmp"), "feed.stage_folder = /tmp: is for feed.stage = local"),
    ],
)
def test_a_place_that_cannot_be_used_names_the_key(store, monkeypatch, kind, folder, told):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    with pytest.raises(RecipeError, match=told):
        Stage(store, kind, folder, store.split("all"), Single())


def test_the_job_s_own_folder_comes_before_the_usual_one(monkeypatch, tmp_path):
    (tmp_path / "job").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert place.place_of("local", None) == tmp_path
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert place.place_of("local", None) == tmp_path / "job"
    assert place.place_of("local", Path("/dev")) == Path("/dev")


# ---- whether it pays


def made(**more) -> Estimate:
    given = {"bytes": 60_000_000_000, "of_bytes": 60_000_000_000, "epoch_bytes": 60e9, "rates": Rates(200e6, 1e9, 5e9)}
    return Estimate("node", "/dev/shm", 500, 500, **(given | more))


def test_break_even_by_hand():
    """60 GB at 200 MB/s are 300 s, written at 1 GB/s 60 s; an epoch takes 12 s instead of 300, at 5 GB/s."""
    whole, half = made(), made(epoch_bytes=30e9)
    assert (whole.copy_s, whole.gain_s, whole.break_even_epochs) == (360, 288, 1.25)
    assert (half.copy_s, half.gain_s, half.break_even_epochs) == (360, 144, 2.5)
    text = str(whole)
    assert "500 of 500 shards, 60.0 GB of 60.0 GB" in text and "6.0 minutes" in text and "1.2 epochs" in text
    assert "200 MB/s" in text and "1000" in text and "5000" in text


def test_no_gain_is_said():
    slower = made(rates=Rates(2e9, 1e9, 1e9))
    assert slower.break_even_epochs == inf and "no gain is to be expected" in str(slower)
    assert "feed.stage = none" in str(slower)


@pytest.mark.parametrize("tick_s", [0.25, 1.0])
def test_rates_are_bytes_over_seconds(store, tmp_path, monkeypatch, tick_s):
    """A clock that moves on whenever it is looked at: once a block, and a block is 1 MiB. A slow store is not read to
    the end of the sample."""
    ticks = iter(range(1000))
    monkeypatch.setattr(stage.time, "perf_counter", lambda: tick_s * next(ticks))
    whole = store.paths[0].stat().st_size
    assert 1 << 20 < whole < 2 << 20
    size, looks = (whole, 3) if tick_s < 1 else (1 << 20, 2)
    rates = stage.measure(store.paths[0], tmp_path)
    assert (rates.store, rates.write, rates.read) == (size / looks / tick_s, size / tick_s, size / tick_s)


def test_epochs_that_read_part_of_a_shard_gain_by_that_part(store, tmp_path):
    first = np.flatnonzero(store.shard_of == 0)
    wanted = stage._wanted(store, np.concatenate([first[:2], np.flatnonzero(store.shard_of == 1)]))
    assert wanted == {0: 2 / len(first), 1: 1.0}
    found = stage.estimate(store, [0, 1], wanted, tmp_path, "node")
    sizes = [p.stat().st_size for p in store.paths[:2]]
    assert found.bytes == sum(sizes) and found.epoch_bytes == pytest.approx(sizes[0] * 2 / len(first) + sizes[1])


# ---- ranks


@pytest.mark.parametrize("nodes", [[3], [1, 1], [2, 3], [4, 1, 2]])
def test_each_node_s_ranks_share_all_shards_and_nodes_begin_apart(nodes):
    ranks = [node for node, count in enumerate(nodes) for _ in range(count)]
    leaders = [ranks.index(node) for node in ranks]
    shards, begun = [*range(0, 26, 2)], []
    for node, count in enumerate(nodes):
        shared = Counter()
        for rank in (r for r, n in enumerate(ranks) if n == node):
            team = stage._team(leaders, rank)
            assert (team.leader, team.node, team.nodes, team.mates) == (ranks.index(node), node, len(nodes), count)
            shared.update(team.order(shards)[team.mate :: team.mates])
        assert shared == Counter(shards)
        begun.append(team.order(shards)[0])
    assert len(set(begun)) == len(nodes)


def test_parts_of_nodes_that_hold_half_cover_the_store():
    orders = [Team(0, node, 2, 0, 1).order([*range(10)]) for node in range(2)]
    assert sorted(orders[0][:5] + orders[1][:5]) == [*range(10)]


class Piped:
    """A rank of several processes; the parent deals out what they gather."""

    def __init__(self, rank: int, pipe) -> None:
        self.rank, self._pipe = rank, pipe

    def gather(self, value, name):
        self._pipe.send(value)
        return self._pipe.recv()


def together(task, hosts: list[str], *given) -> list:
    """task(comm, *given) on a process a host; what they gathered last."""
    fork = multiprocessing.get_context("fork")
    pipes, processes, values = [], [], []

    def child(rank, host, pipe):
        socket.gethostname = lambda: host
        task(Piped(rank, pipe), *given)
        os._exit(0)

    for rank, host in enumerate(hosts):
        here, there = fork.Pipe()
        processes.append(fork.Process(target=child, args=(rank, host, there), daemon=True))
        processes[-1].start()
        there.close()
        pipes.append(here)
    try:
        while all(p.poll(30) for p in pipes):
            values = [p.recv() for p in pipes]
            for p in pipes:
                p.send(values)
        pytest.fail("a rank neither ended nor gathered within 30 s")
    except (EOFError, OSError):  # they have ended
        return values
    finally:
        for process in processes:
            process.kill()
            process.join()


def stage_and_look(comm, store, folder):
    said: list[str] = []
    before = len(os.listdir("/proc/self/fd"))
    s = Stage(store, "local", folder, store.split("all"), comm, said.append)
    s.wait()
    comm.gather(None, "staged")
    own_count, staged = int((s._table[:, 0] == os.getpid()).sum()), s.staged
    found = []
    for i, path in enumerate(store.paths):
        try:
            found.append("store" if s.path(i) == path else hash(s.path(i).read_bytes()))
        except StoreError as e:
            found.append(str(e))
    comm.gather(None, "found")
    s.close()
    left = len(os.listdir("/proc/self/fd")) - before
    comm.gather((own_count, staged, found, said, left), "closed")


def test_two_ranks_of_a_node_share_the_work_and_the_copies(store, tmp_path):
    one, other = together(stage_and_look, ["a", "a"], store, tmp_path)
    assert (one[0], other[0]) == (4, 3) and one[1] == other[1] == 7
    assert one[4] == other[4] == 0  # descriptors
    truth = [hash(p.read_bytes()) for p in store.paths]
    assert one[2] == truth and other[2] == truth
    assert len(one[3]) == 2 and other[3] == []  # one speaks for all


def stage_in_a_folder_of_its_own(comm, store, folder):
    own = folder / str(comm.rank)
    own.mkdir()
    stage_and_look(comm, store, own)


def test_ranks_whose_folders_differ_share_the_copies_too(store, tmp_path):
    one, other = together(stage_in_a_folder_of_its_own, ["a", "a"], store, tmp_path)
    assert (one[0], other[0]) == (4, 3) and one[1] == other[1] == 7
    assert one[2] == other[2] == [hash(p.read_bytes()) for p in store.paths]


def test_two_nodes_hold_a_copy_each(store, tmp_path):
    found = together(stage_and_look, ["a", "b", "b"], store, tmp_path)
    assert [(f[0], f[1]) for f in found] == [(7, 7), (4, 7), (3, 7)]


def stage_closed_to_others(comm, store, folder):
    opened = Handle.open
    Handle.open = lambda self: opened(self) if self.pid == os.getpid() else None
    stage_and_look(comm, store, folder)


def test_ranks_that_cannot_open_each_other_s_files_hold_a_copy_each_and_say_so(store, tmp_path):
    one, other = together(stage_closed_to_others, ["a", "a"], store, tmp_path)
    assert (one[0], other[0]) == (7, 7)
    assert "a: its ranks cannot open each other's files" in one[3][1] and "2 copies" in one[3][1]


def test_a_damaged_shard_is_refused_on_every_rank_of_the_node(mine, tmp_path):
    flip(mine.paths[3], mine.info.shards[3].offset + 70, 4)
    (tmp_path / "place").mkdir()
    for found in together(stage_and_look, ["a", "a"], mine, tmp_path / "place"):
        assert "00003.h5" in found[2][3] and "store repair" in found[2][3]
        assert all(isinstance(x, int) for i, x in enumerate(found[2]) if i != 3)


def refuse_together(comm, store, folder):
    try:
        Stage(store, "local", folder, store.split("all"), comm)
    except RecipeError as e:
        comm.gather(str(e), "refused")


def refuse_a_place(comm, store, folder):
    refuse_together(comm, store, folder if comm.rank else Path("/nowhere"))


def test_one_node_without_a_place_stops_all(store, tmp_path):
    one, other = together(refuse_a_place, ["a", "b"], store, tmp_path)
    assert one == other and "/nowhere is not a folder" in one and "(on a)" in one


def refuse_a_closed_proc(comm, store, folder):
    if comm.rank:
        Handle.open = lambda self: None
    refuse_together(comm, store, folder)


def test_one_node_without_its_own_proc_stops_all(store, tmp_path):
    one, other = together(refuse_a_closed_proc, ["a", "b"], store, tmp_path)
    assert one == other and "cannot open its own files through /proc on b" in one


def stage_with_few_descriptors(comm, store, folder):
    place.SPARE_FILES = len(os.listdir("/proc/self/fd")) + 3  # the shard being copied, its copy, and the table
    limit = 7 + 2 * 4 + place.SPARE_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with Stage(store, "local", folder, store.split("all"), comm, lambda _: None) as s:
        read = {path: os.open(path, os.O_RDONLY) for path in store.paths}  # as the first epoch does, which keeps them
        s.wait()
        read |= {path: os.open(path, os.O_RDONLY) for path in map(s.path, range(7)) if path not in read}
        comm.gather((s.staged, len(read)), "read")


def test_a_reader_of_shards_and_of_their_copies_has_descriptors_for_both(store, tmp_path):
    assert together(stage_with_few_descriptors, ["a"], store, tmp_path) == [(4, 11)]


def outlive(comm, store, folder):
    s = Stage(store, "local", folder, store.split("all"), comm, lambda _: None)
    s.wait()
    mate = comm.gather(os.getpid(), "staged")[0]
    if comm.rank == 0:
        time.sleep(60)
    noticed = s.path(0).read_bytes()
    os.kill(mate, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{mate}/fd/0").exists(), "the mate's end")
    paths = [s.path(i) for i in range(7)]
    same = noticed == store.paths[0].read_bytes() and all(
        a.read_bytes() == b.read_bytes() for a, b in zip(paths, store.paths, strict=True)
    )
    (folder / "found").write_text(f"{same} {[p == q for p, q in zip(paths, store.paths, strict=True)]}")


def test_copies_of_a_rank_that_died_are_read_from_the_store_unless_they_were_seen(store, tmp_path):
    together(outlive, ["a", "a"], store, tmp_path)
    until((tmp_path / "found").exists, "the survivor's word")
    assert (tmp_path / "found").read_text() == "True [False, False, True, False, True, False, True]"


def test_a_descriptor_that_has_come_to_mean_another_file_is_not_taken(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with open(tmp_path / "a") as a, open(tmp_path / "b") as b:
        handle = Handle.of(a.fileno())
        fd = handle.open()
        assert fd is not None and os.pread(fd, 9, 0) == b"a"
        os.close(fd)
        os.dup2(b.fileno(), a.fileno())
        assert handle.open() is None
    assert handle.open() is None


# ---- nothing is left

PROGRAM = """
import sys, time
from pathlib import Path
from jeoparda.comm import Single
from jeoparda.feed import place, stage
from jeoparda.store import Store
place.SPARE = 0.0
store = Store(sys.argv[1])
if sys.argv[3] == "copying":
    blocks = stage._blocks
    def halting(path):
        for n, block in enumerate(blocks(path)):
            yield block
            if "00002" in path.name and n == 3:
                print("copying", flush=True)
                time.sleep(600)
    stage.BLOCK_BYTES, stage._blocks = 1 << 14, halting
s = stage.Stage(store, "local", Path(sys.argv[2]), store.split("all"), Single())
s.wait()
print("staged", flush=True)
if sys.argv[3] == "crash":
    import os
    os.abort()
time.sleep(0 if sys.argv[3] == "end" else 600)
"""


@pytest.mark.needs("mount")
@pytest.mark.parametrize("moment", ["copying", "staged", "crash", "end"])
def test_nothing_is_left_of_a_process_that_is_gone(store, disk, moment):
    """Killed while it copies or later, crashed, or ended without `close`: the kernel takes back every block."""
    before = free(disk.folder)
    words = [sys.executable, "-c", PROGRAM, store.folder, disk.folder, moment]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None and process.stdout.readline().strip() in ("copying", "staged")
        if moment in ("copying", "staged"):
            least = (2 if moment == "copying" else 7) * store.paths[6].stat().st_size // 4096
            assert before[0] - free(disk.folder)[0] >= least
            assert list(disk.folder.iterdir()) == []
    finally:
        if moment in ("copying", "staged"):
            process.kill()
        process.communicate(timeout=30)
    assert list(disk.folder.iterdir()) == [] and free(disk.folder) == before
