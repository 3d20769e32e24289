"""Figures of an epoch: time, arithmetic, memory, energy, and the rank that the others waited for."""

import errno
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from jeoparda import board, energy, meter
from jeoparda.board import Board
from jeoparda.energy import Energy, rapl_counters
from jeoparda.errors import DiskError
from jeoparda.journal import Journal, read
from jeoparda.meter import Stopwatch
from jeoparda.models.resnet import resnet18, resnet50
from jeoparda.ranks import PARTS, RankEpoch, combine, slowest, splits, utilisation, waiting

CPU = torch.device("cpu")

# ---- time


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes when told to: clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    return lambda s: now.__setitem__(0, now[0] + s)


def test_each_second_belongs_to_the_innermost_part(clock):
    watch = Stopwatch()
    with watch("compute"):
        clock(1)
        with watch("communication"):
            clock(10)
            with watch("compute"):
                clock(100)
        clock(1000)
    clock(10000)  # in no part
    with watch("compute"):
        clock(0.5)
    assert watch.spent_s == {"compute": 1101.5, "communication": 10}


def test_a_restart_leaves_what_is_open_open(clock):
    watch = Stopwatch()
    with watch("compute"):
        clock(1)
        watch.restart()
        clock(10)
    assert watch.spent_s == {"compute": 10}


def test_a_part_ends_with_an_error(clock):
    watch = Stopwatch()

    def broken():
        with watch("compute"), watch("read"):
            clock(1)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    clock(10)
    with watch("compute"):
        clock(100)
    assert watch.spent_s == {"read": 1, "compute": 100}


def test_the_time_that_items_take_to_come(clock):
    def slow():
        for x in "ab":
            clock(1)
            yield x
        clock(5)  # to find that there are no more

    watch, got = Stopwatch(), []
    for x in watch.each("read", slow()):
        clock(100)
        got.append(x)
    assert got == ["a", "b"] and watch.spent_s == {"read": 7}


def test_a_stopwatch_costs_microseconds():
    watch, n = Stopwatch(), 2000
    start = time.perf_counter()
    for _ in range(n):
        with watch("compute"):
            pass
    assert (time.perf_counter() - start) / n < 1e-4
    assert 0 < watch.spent_s["compute"] < time.perf_counter() - start


# ---- arithmetic


def test_flops_of_layers_counted_by_hand():
    conv = nn.Conv2d(3, 8, 5, stride=2, padding=2, groups=1)  # 16 x 12 -> 8 x 6
    by_hand = 2 * (8 * 6) * 8 * (3 * 5 * 5)
    assert meter.flops(conv, (3, 16, 12)) == 3 * by_hand
    grouped = nn.Conv2d(4, 8, 3, groups=2)  # 10 x 10 -> 8 x 8, each of 8 channels sees 2
    assert meter.flops(grouped, (4, 10, 10)) == 3 * 2 * 64 * 8 * (2 * 9)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(5 * 4 * 4, 43))
    assert meter.flops(linear, (5, 4, 4)) == 3 * 2 * 80 * 43


def test_flops_of_resnet50_are_the_published():
    """4.09 GMAC forward at 224 px: torchvision's figure with its weights."""
    model = resnet50(3, 1000, width=64, dropout=0.0, recompute=False)
    assert meter.flops(model, (3, 224, 224)) / 3 == pytest.approx(2 * 4.09e9, rel=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counting_leaves_model_and_random_numbers_alone(dtype):
    model = resnet18(12, 19, width=16, dropout=0.5, recompute=True).to(dtype)
    model.layer1.eval()  # as with frozen norms
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, drawn = [m.training for m in model.modules()], torch.get_rng_state()
    calls = []
    hook = model.conv1.weight.register_hook(calls.append)
    assert meter.flops(model, (12, 120, 120)) > 1e8
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].device == CPU for k in before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.conv1.weight.grad is None and not calls
    hook.remove()


def test_flops_do_not_depend_on_the_type_or_mode():
    model, shape = resnet18(12, 19, width=16, dropout=0.0, recompute=False), (12, 64, 64)
    counts = {meter.flops(m, shape) for m in (model, model.double(), model.eval(), model.half(), model.to("meta"))}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("Tesla V100-SXM2-32GB", "float16", 125),
        ("Tesla V100-SXM2-32GB", "bfloat16", None),  # it has none
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),  # a seventh of it
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float32", 67),
        ("NVIDIA GH200 480GB", "float64", 67),
        ("NVIDIA L40S", "tf32", 183),
        ("NVIDIA L40", "tf32", 90.5),
        ("NVIDIA GeForce RTX 9999", "float32", None),
    ],
)
def test_peaks_by_name(name, precision, tera):
    assert meter.peak_of(name, precision) == (None if tera is None else tera * 1e12)


def test_peaks_keep_the_laws_of_their_hardware():
    """No precision is slower than a wider one, and a name has one row."""
    names = [n.replace(r"\d+", "80").replace("(SXM4|PCIE)", "SXM4").split("|")[0] for n in meter._PEAKS]
    for name in names:
        assert sum(bool(meter.re.fullmatch(p, name)) for p in meter._PEAKS) == 1
        peaks = [p for p in (meter.peak_of(name, x) for x in meter._PRECISIONS) if p]
        assert peaks == sorted(peaks) and peaks[0] > 1e12
    assert meter.peak_flops(CPU, "float32") is None
    with pytest.raises(ValueError, match="float8"):
        meter.peak_of("NVIDIA H200", "float8")


# ---- memory


def test_the_peak_of_memory_is_the_process_own():
    """Of 200 MB that were there for a while, and not of those of the process that started it."""
    code = (
        "from jeoparda.meter import resident_bytes\n"
        "before = resident_bytes()\nx = bytearray(200_000_000)\nx[::4096] = bytes(len(x[::4096]))\ndel x\n"
        "print(before, resident_bytes())"
    )
    mine = bytearray(b"x") * 700_000_000
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 195e6 < after - before < 260e6
    assert before < 600e6 and len(mine) == 700_000_000
    assert meter.device_bytes(CPU) is None


@pytest.mark.needs("gpu")
def test_the_peak_of_the_device_begins_anew():
    cuda = torch.device("cuda", 0)
    x = torch.zeros(50_000_000, dtype=torch.uint8, device=cuda)
    del x
    assert meter.device_bytes(cuda) >= 50_000_000
    meter.restart_memory(cuda)
    assert meter.device_bytes(cuda) < 50_000_000


# ---- energy


class Zone:
    """A package's folder, as the kernel's powercap shows it."""

    def __init__(self, folder: Path, uj: int, name: str = "package-0", range_uj: int = 262143328850):
        folder.mkdir(parents=True)
        self.file = folder / "energy_uj"
        for file, text in {"name": name, "max_energy_range_uj": str(range_uj), "energy_uj": str(uj)}.items():
            (folder / file).write_text(f"{text}\n")

    def uses(self, uj: int) -> None:
        self.file.write_text(f"{(int(self.file.read_text()) + uj) % 262143328851}\n")


def test_joules_of_all_packages_through_a_wrap_around(tmp_path):
    zones = [Zone(tmp_path / "intel-rapl:0", 262143328850 - 500_000), Zone(tmp_path / "intel-rapl:1", 7, "package-1")]
    Zone(tmp_path / "intel-rapl:0:0", 1, "core")  # part of a package
    Zone(tmp_path / "intel-rapl:2", 1, "psys")  # the whole machine, packages included
    Zone(tmp_path / "intel-rapl-mmio:0", 1)  # the first package again
    assert len(rapl_counters(tmp_path)) == 2
    e = Energy(CPU, 0, tmp_path)
    assert e.joules() == {"gpu": None, "cpu": 0}
    zones[0].uses(2_000_000)  # around
    zones[1].uses(250_000)
    assert e.joules()["cpu"] == pytest.approx(2.25, abs=1e-9)
    zones[0].uses(200_000_000_000)
    e.joules()
    zones[0].uses(200_000_000_000)  # around again
    assert e.joules()["cpu"] == pytest.approx(400_002.25)
    e.start()
    zones[1].uses(3_000_000)
    assert e.joules()["cpu"] == pytest.approx(3)


def test_it_looks_often_enough_not_to_miss_a_wrap_around(tmp_path, monkeypatch):
    zone, now = Zone(tmp_path / "intel-rapl:0", 0), [0.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    e, total_j = Energy(CPU, 0, tmp_path), 0
    for _ in range(1000):  # 2000 s at 1000 W are seven times around
        now[0] += 2
        zone.uses(2_000_000_000)
        total_j += 2000
        e.keep_up()
    assert e.joules()["cpu"] == pytest.approx(total_j)


def test_other_ranks_of_a_node_leave_packages_to_the_first(tmp_path):
    Zone(tmp_path / "intel-rapl:0", 0)
    assert Energy(CPU, 1, tmp_path).joules() == {"gpu": None, "cpu": None}


def test_a_machine_without_counters_has_none_and_nothing_is_said(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Energy(CPU, 0, tmp_path / "none").joules() == {"gpu": None, "cpu": None}


def test_counters_that_only_root_may_read_are_told_once(tmp_path, monkeypatch):
    zone = Zone(tmp_path / "intel-rapl:0", 0)
    read_text = Path.read_text

    def refused(path, *args):  # root may read whatever its mode
        if path == zone.file:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.warns(UserWarning, match=r"energy of the CPU is not told.*Permission denied.*energy_uj"):
        e = Energy(CPU, 0, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e.start()
        assert e.joules() == {"gpu": None, "cpu": None}


class FakeNvml:
    """Two GPUs, of which one keeps no count."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.mj, self.begun = {"GPU-aa": 5_000_000}, False

    def nvmlInit(self):
        self.begun = True

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert self.begun
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if handle not in self.mj:
            raise self.NVMLError("Not Supported")
        return self.mj[handle]


def test_joules_of_a_gpu_are_found_by_its_uuid(monkeypatch, tmp_path):
    of = {0: SimpleNamespace(uuid="aa"), 1: SimpleNamespace(uuid="bb"), 2: SimpleNamespace()}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: of[device.index])
    nvml = FakeNvml()
    e = Energy(torch.device("cuda", 0), 3, tmp_path, nvml)
    nvml.mj["GPU-aa"] += 1500
    assert e.joules() == {"gpu": 1.5, "cpu": None}
    del nvml.mj["GPU-aa"]  # and a run goes on without
    assert e.joules() == {"gpu": None, "cpu": None} == e.joules()
    with pytest.warns(UserWarning, match=r"energy of the GPU is not told \(local rank 0\): NVML: Not Supported"):
        assert Energy(torch.device("cuda", 1), 0, tmp_path, nvml).joules()["gpu"] is None
    with pytest.warns(UserWarning, match=r"torch .* does not tell which GPU it uses; 2\.5"):
        Energy(torch.device("cuda", 2), 0, tmp_path, nvml)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.warns(UserWarning, match=r"nvidia-ml-py is not installed; pip install 'jeoparda\[gpu\]'"):
        Energy(torch.device("cuda", 0), 0, tmp_path)


def test_the_names_that_are_asked_of_nvml_are_those_it_has():
    pynvml = pytest.importorskip("pynvml")
    assert all(hasattr(pynvml, name) for name in vars(FakeNvml) if name[0] != "_")


@pytest.mark.needs("gpu")
def test_a_real_gpu_takes_energy():
    pytest.importorskip("pynvml")
    e = Energy(torch.device("cuda", 0), 0)
    time.sleep(1)
    assert 1 < e.joules()["gpu"] < 2000


# ---- ranks


def rank(seconds: float = 100.0, first_wait_s: float = 0.0, images: int = 1000, **spent: float) -> RankEpoch:
    return RankEpoch(images, seconds, first_wait_s, spent, resident_bytes=10**9)


def together(own: list[dict[str, float]], exchange_s: float = 5.0) -> list[RankEpoch]:
    """Ranks that do so much by themselves, and then wait for each other."""
    each = [sum(o.values()) for o in own]
    return [
        rank(max(each) + exchange_s, communication=max(each) - s + exchange_s, **o)
        for s, o in zip(each, own, strict=True)
    ]


@pytest.mark.parametrize(("part", "who"), [(p, k) for k, p in enumerate(p for p in PARTS if p != "communication")])
def test_a_planted_slow_rank_and_its_reason_are_found(part, who):
    rng = random.Random(who)
    own = [{"read": 2.0, "augment": 3.0, "copy": 1.0, "compute": 80.0, "checkpoint": 1.0} for _ in range(6)]
    own = [{p: s * rng.uniform(0.995, 1.0) for p, s in o.items()} for o in own]
    own[who][part] += 7.3
    found = together(own)
    last, why = slowest(found)
    assert last == who
    assert why.startswith(f"{part}: 7.") and why.endswith(" s more than the median of the others")
    split = splits(found)
    assert [s["waiting"] for s in split] == pytest.approx(waiting(found))
    for r, s, o in zip(found, split, own, strict=True):
        assert sum(s.values()) == pytest.approx(r.seconds)
        assert s["communication"] == pytest.approx(5)
        assert s["waiting"] == pytest.approx(r.seconds - 5 - sum(o.values()))


def test_a_rank_that_is_late_outside_of_all_clocks():
    a, b = rank(compute=60, communication=35), rank(compute=60, communication=5)
    assert slowest([a, b]) == (1, "other: 30.0 s more than the median of the others")


def test_nothing_is_said_within_noise_or_of_one_rank():
    assert slowest(together([{"compute": 90.0}])) is None
    assert slowest(together([{"compute": 90.0}, {"compute": 91.0}])) is None  # 1 %
    assert slowest(together([{"compute": 90.0}, {"compute": 93.0}]))[0] == 1
    assert slowest(together([{"compute": 0.5}, {"compute": 0.55}])) is None  # short: a tenth of a second
    # one that is fast keeps nobody waiting
    assert slowest(together([{"compute": 90.0}] * 5 + [{"compute": 60.0}])) is None


def test_fields_of_the_journal_from_all_ranks():
    a = rank(first_wait_s=1, read=3, augment=5, copy=2, compute=70, communication=18, checkpoint=1)
    a = replace(a, peak_flops=2e12, device_bytes=4, gpu_j=10.0, cpu_j=7.0)
    b = rank(images=900, read=1, augment=1, copy=0, compute=90, communication=8)
    b = replace(b, peak_flops=3e12, device_bytes=5, gpu_j=20.0)
    line = combine([a, b], flops_per_image=10**9)
    assert line["images_per_s"] == 19 and line["images_per_s_per_rank"] == [10, 9]
    assert line["seconds"] == 100 and line["wait_s"] == [10, 2]
    assert line["utilisation_per_rank"] == [pytest.approx(1 - 9 / 98), pytest.approx(1 - 2 / 100)]
    assert line["utilisation"] == pytest.approx(sum(line["utilisation_per_rank"]) / 2)
    assert line["split_s"] == {"feed": 10, "compute": 70, "communication": 18, "checkpoint": 1}
    assert line["split_s_per_rank"][0]["waiting"] == 10 and line["split_s_per_rank"][1]["waiting"] == 0
    assert line["slowest"] == {"rank": 1, "why": "compute: 20.0 s more than the median of the others"}
    assert line["mfu"] == pytest.approx(19 * 1e9 / 5e12)
    assert line["memory"] == {"device_bytes": [4, 5], "resident_bytes": [10**9, 10**9]}
    assert line["energy_j"] == {"gpu": 30, "cpu": 7}
    on_cpu = combine([rank(compute=99)], 10**9)
    assert on_cpu["mfu"] is None and on_cpu["energy_j"] == {"gpu": None, "cpu": None} and on_cpu["slowest"] is None


def test_what_is_known_of_some_gpus_only_is_not_their_sum():
    line = combine([replace(rank(), gpu_j=1.0, peak_flops=1e12), rank()], 10**9)
    assert line["energy_j"]["gpu"] is None and line["mfu"] is None


def test_an_epoch_that_had_nothing_left_to_do():
    line = combine([rank(seconds=0.0, images=0)], 10**9)
    assert line["images_per_s"] == 0 and math.isnan(line["utilisation"])


def test_utilisation_is_computing_over_running_time():
    assert utilisation(10.0, 4.0, 1.0) == pytest.approx(1 - 3 / 9)  # the first wait is in neither
    assert utilisation(10.0, 1.0, 1.0) == 1
    assert math.isnan(utilisation(1.0, 0.0, 1.0))


# ---- TensorBoard


def line_of(epoch: int, loss: float) -> dict:
    figures = combine([rank(read=1, compute=90, communication=8), rank(read=3, compute=80, communication=16)], 10**9)
    val = {"loss": 0.5, "micro_f1": 0.7, "macro_f1": math.nan}
    return {"epoch": epoch, "step": epoch * 30, "loss": loss, "lr": 0.1, "val": val, **figures}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_the_board_shows_the_numbers_of_a_line(tmp_path):
    b = Board(tmp_path, 0)
    b.write(line_of(1, 0.9))
    assert scalars(tmp_path)["loss"] == [(30, pytest.approx(0.9))]  # before it is closed
    b.write(line_of(2, 0.8))
    b.close()
    found = scalars(tmp_path)
    assert found["loss"] == [(30, pytest.approx(0.9)), (60, pytest.approx(0.8))]
    assert "val/macro_f1" not in found and "epoch" not in found
    assert {tag: values[0][1] for tag, values in found.items()} == pytest.approx(
        {
            "loss": 0.9,
            "lr": 0.1,
            "val/loss": 0.5,
            "val/micro_f1": 0.7,
            "images_per_s": 20,
            "seconds": 100,
            "utilisation": 0.98,
            "split_s/read": 2,
            "split_s/augment": 0,
            "split_s/copy": 0,
            "split_s/compute": 85,
            "split_s/communication": 8,
            "split_s/checkpoint": 0,
            "split_s/waiting": 4,
            "slowest/rank": 0,
            "memory/resident_bytes": 10**9,
        },
        rel=1e-6,
    )


def test_steps_that_come_again_after_a_crash_stand_there_once(tmp_path):
    first = Board(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write(line_of(epoch, 1 / epoch))
    first.close()
    again = Board(tmp_path, 60)  # the checkpoint of the second epoch is the last that was whole
    assert again.write(line_of(3, 0.1)) is None
    again.close()
    assert scalars(tmp_path)["loss"] == [(30, 1.0), (60, 0.5), (90, pytest.approx(0.1))]


def test_a_line_from_the_journal_gives_the_same_scalars(tmp_path):
    line = line_of(1, 0.9)
    Journal(tmp_path / "journal.jsonl").append("epoch", **line)
    (entry,) = read(tmp_path / "journal.jsonl")
    assert dict(board.scalars(entry)) == dict(board.scalars(line))
    assert json.dumps(dict(board.scalars(line)))


def test_available_where_the_package_is(monkeypatch):
    assert board.available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not board.available()


# ---- the feed's part


def test_the_parts_of_a_feeds_wait_are_its_wait(tiny_store, monkeypatch):
    import numpy as np

    from jeoparda.feed import Feed, FeedRecipe, Plan
    from jeoparda.feed.plain import PlainTransform
    from jeoparda.feed.reader import Ring
    from jeoparda.order import Order
    from jeoparda.store import Store

    store = Store(tiny_store)
    numbers = store.split("train")
    plan = Plan(Order(len(numbers), 4, 0), numbers, 0, 1)
    feed = Feed(store, plan, FeedRecipe(kind="plain", threads=1, ahead=1), True, store.labels)
    slots, transform = Ring.read, PlainTransform.__call__

    def slow_read(self, batches):
        for slot in slots(self, batches):
            time.sleep(0.05)
            yield slot

    def slow_transform(self, fields, draws):
        time.sleep(0.02)
        return transform(self, fields, draws)

    monkeypatch.setattr(Ring, "read", slow_read)
    monkeypatch.setattr(PlainTransform, "__call__", slow_transform)
    for _ in range(2):  # each epoch by itself
        started = time.perf_counter()
        seen = np.concatenate([b["number"].numpy() for b in feed])
        seconds = time.perf_counter() - started
        steps = plan.order.steps
        assert len(seen) == len(numbers)
        assert feed.waits["read"] >= steps * 0.05 and feed.waits["augment"] >= steps * 0.02 and feed.waits["copy"] == 0
        assert feed.waited_s == pytest.approx(sum(feed.waits.values())) and feed.waited_s <= seconds
        assert feed.waits["read"] < seconds - steps * 0.02
    feed.restore({"epoch": 5, "step": steps})
    assert list(feed) == [] and feed.waited_s == 0 == sum(feed.waits.values())


def test_a_disk_that_fills_in_a_record_leaves_the_others_readable(tmp_path, monkeypatch):
    """A write takes a part, and only the next says why: what it took must not stand before later records."""
    write, left = os.write, [10]

    def until_full(file: int, raw: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(file, raw[: left[0]])
        left[0] -= taken
        return taken

    shown = Board(tmp_path, 0)
    shown.write(line_of(1, 1.0))
    with monkeypatch.context() as m:
        m.setattr(os, "write", until_full)
        with pytest.raises(DiskError):
            shown.write(line_of(2, 0.5))
    shown.write(line_of(3, 0.25))
    shown.close()
    assert scalars(tmp_path)["loss"] == [(30, 1.0), (90, 0.25)]
