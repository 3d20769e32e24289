"""Checkpoints: whole or not there, verified before they are believed."""

import os
import random
from pathlib import Path

import pytest
import torch

from jeoparda import checkpoint
from jeoparda.errors import CheckpointError


def state(value: float) -> dict:
    return {"model": {"w": torch.full((7, 5), value)}, "loop": {"epoch": 3, "loss_sum": value}, "note": "ü"}


def saved(run, *steps):
    for step in steps:
        checkpoint.save(checkpoint.path_of(run, step), state(step))
    return [checkpoint.path_of(run, step) for step in steps]


def names(run) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def test_written_reads_back(tmp_path):
    (path,) = saved(tmp_path, 12)
    assert path == tmp_path / "checkpoints" / "00000012.pt"
    found = checkpoint.load(path)
    assert torch.equal(found["model"]["w"], state(12)["model"]["w"])
    assert found["loop"] == state(12)["loop"] and found["note"] == "ü"
    assert names(tmp_path) == ["00000012.pt", "00000012.pt.sha256"]


def test_every_flipped_byte_is_found(tmp_path):
    (path,) = saved(tmp_path, 1)
    whole = path.read_bytes()
    for at in [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 60)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="copied in part"):
        checkpoint.load(path)


def test_missing_file_and_missing_or_empty_checksum(tmp_path):
    (path,) = saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "checkpoints" / "x.pt")
    digest = path.with_name("00000001.pt.sha256")
    digest.write_text("")  # what a full disk leaves
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    digest.unlink()
    with pytest.raises(CheckpointError, match=r"checksum 00000001.pt.sha256 is missing"):
        checkpoint.load(path)


def test_newest_passes_over_damaged_ones_and_says_so(tmp_path, capsys):
    assert checkpoint.newest(tmp_path) is None
    paths = saved(tmp_path, 5, 10, 100)
    assert checkpoint.newest(tmp_path)[0] == paths[2]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    found, content = checkpoint.newest(tmp_path)
    assert found == paths[1] and content["loop"]["loss_sum"] == 10
    told = capsys.readouterr().err
    assert str(paths[2]) in told and "the one before" in told
    for path in paths:
        path.write_bytes(b"")
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("fails_at", ["save", "replace"])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch, fails_at):
    saved(tmp_path, 1)
    calls = []

    def crash(*args, **_):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(*{"save": (torch, "save", crash), "replace": (os, "replace", crash)}[fails_at])
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    monkeypatch.undo()
    assert calls
    assert not checkpoint.path_of(tmp_path, 2).exists()
    assert checkpoint.newest(tmp_path)[0] == checkpoint.path_of(tmp_path, 1)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    paths = saved(tmp_path, 1, 2, 3, 20, 100)
    checkpoint.mark_best(paths[1])
    checkpoint.prune(tmp_path, 2, 100)
    kept = [n for n in names(tmp_path) if not n.startswith("best.pt")]
    assert kept == [f"{s:08d}.pt{x}" for s in (2, 20, 100) for x in ("", ".sha256")]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["loop"]["loss_sum"] == 2
    checkpoint.mark_best(paths[4])
    checkpoint.prune(tmp_path, 1, 100)
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["loop"]["loss_sum"] == 100
    assert [n for n in names(tmp_path) if not n.startswith("best.pt")] == ["00000100.pt", "00000100.pt.sha256"]


def test_what_is_later_than_the_newest_goes_first(tmp_path):
    """Damaged ones that were passed over: kept, they would push out what is written after."""
    saved(tmp_path, 4, 7, 8)
    saved(tmp_path, 5)
    checkpoint.prune(tmp_path, 1, 5)
    assert names(tmp_path) == ["00000005.pt", "00000005.pt.sha256"]


def test_a_crash_between_the_digest_and_the_file_it_is_of(tmp_path, monkeypatch):
    """When one is written over: the old file is still whole, and taken for it."""
    (path,) = saved(tmp_path, 1)
    replace = os.replace

    def crash(draft, to):
        if Path(to) == path:
            raise KeyboardInterrupt
        replace(draft, to)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"loop": {"loss_sum": 9}})
    monkeypatch.undo()
    assert checkpoint.load(path)["loop"]["loss_sum"] == 1
    checkpoint.save(path, {"loop": {"loss_sum": 9}})
    assert checkpoint.load(path)["loop"]["loss_sum"] == 9


def test_drafts_of_a_killed_writer_do_not_pile_up(tmp_path):
    saved(tmp_path, 1)
    draft = tmp_path / "checkpoints" / ".00000002.pt.4242.part"
    draft.write_bytes(b"x" * 1000)  # what SIGKILL in the middle of writing leaves; a real one has 100 MB and more
    saved(tmp_path, 3)
    checkpoint.prune(tmp_path, 2, 3)
    assert not draft.exists()
    assert checkpoint.newest(tmp_path)[0] == checkpoint.path_of(tmp_path, 3)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("/proc/never",))


def test_a_checkpoint_runs_no_code(tmp_path):
    path = checkpoint.path_of(tmp_path, 1)
    checkpoint.save(path, {"model": Evil()})
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|unpickl"):
        checkpoint.load(path)
