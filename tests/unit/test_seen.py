"""The journal of patches seen, and the proof from it: whatever crashed, what counted is each patch once an epoch."""

import errno
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda import targets
from jeoparda.cli import main
from jeoparda.errors import DiskError, StoreError
from jeoparda.feed.seen import SeenWriter, faults, prove, store_of, table
from jeoparda.journal import Journal, JournalError
from jeoparda.order import Order, drawn_count, epoch_samples, patch_of, repeats
from jeoparda.store import Store


class Split:
    """A store as far as the proof looks: every third patch of 150 is in the training split."""

    ids = np.array([f"patch_{i}" for i in range(150)])

    def split(self, name: str) -> np.ndarray:
        assert name == "train"
        return np.arange(0, 150, 3)

    def column(self, name: str) -> np.ndarray:
        assert name == "id"
        return self.ids


ORDER = Order(50, 8, 5, block=2, unit=2)  # seven steps an epoch
RECIPE = {"seed": 5, "batch": 8, "feed": {"block": 2}}
STARTS = [(4, (0, 0), (0, 6)), (2, (0, 4), (0, 6)), (3, (0, 5), (2, 7))]  # ranks, first step, one past the last done


def write(
    run: Path,
    starts=STARTS,
    order: Order = ORDER,
    numbers: np.ndarray | None = None,
    often: np.ndarray | None = None,
    **about,
) -> Path:
    """The journals of a run that was started so often; each start undid what the one before had done beyond it. often:
    how often an epoch draws each of the patches."""
    numbers = Split().split("train") if numbers is None else numbers
    journal = Journal(run / "journal.jsonl")
    for n, (ranks, begin, end) in enumerate(starts, start=1):
        about = {"recipe": RECIPE} | about
        step = begin[1] // order.parts  # of the optimizer
        journal.append("start" if n == 1 else "resume", epoch=begin[0], step=step, ranks=ranks, **about)
        for rank in range(ranks):
            writer = SeenWriter(run, n, rank, ranks)
            for at in range(begin[0] * order.steps + begin[1], end[0] * order.steps + end[1]):
                epoch, step = divmod(at, order.steps)
                samples = epoch_samples(numbers, often, order.seed, epoch)
                writer.write(epoch, step, patch_of(samples[order.rank_batch(epoch, step, rank, ranks)]).tolist())
            writer.sync()
            writer.close()
    return run


def change(run: Path, rank: int, which, how) -> None:
    """`how` the lines of a rank that are chosen by `which` read instead: None for no line at all."""
    path = run / "seen" / f"rank-{rank:03d}.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    assert any(which(x) for x in lines)
    kept = [how(x) if which(x) else x for x in lines]
    path.write_text("".join(json.dumps(x) + "\n" for x in kept if x))


def told(run: Path) -> list[str]:
    return list(faults(prove(run, Split()), Split()))


def test_a_run_that_crashed_and_went_on_with_other_ranks_is_exact(tmp_path):
    found = prove(write(tmp_path), Split())
    assert [e.exact for e in found] == [True, True, True]
    assert [(e.steps, e.seen, e.starts, e.ranks) for e in found] == [
        (7, 50, (1, 2, 3), (4, 2, 3)),
        (7, 50, (3,), (3,)),
        (7, 50, (3,), (3,)),
    ]
    assert told(tmp_path) == []
    head, first, *_ = table(found).splitlines()
    head = head.replace("too often", "often").replace("wrong steps", "wrong")
    assert dict(zip(head.split(), first.split(), strict=True)) == {
        "epoch": "1", "samples": "50", "seen": "50", "missing": "0", "often": "0", "foreign": "0", "wrong": "0",
        "steps": "7/7", "starts": "1,2,3", "ranks": "4,2,3",
    }  # fmt: skip


def test_of_more_than_a_thousand_ranks(tmp_path):
    """Their files do not sort by their names."""
    run = write(tmp_path, [(1002, (0, 0), (0, 7))])
    assert [e.exact for e in prove(run, Split())] == [True]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_of_crashes_is_exact_and_any_lost_line_is_found(data):
    at, starts = 0, []
    end = 2 * ORDER.steps
    for _ in range(data.draw(st.integers(0, 3))):  # each start does some steps, of which some were in no checkpoint
        done = data.draw(st.integers(at, end))
        starts.append((data.draw(st.integers(1, 4)), divmod(at, 7), divmod(done, 7)))
        at = data.draw(st.integers(at, done))
    starts.append((data.draw(st.integers(1, 4)), divmod(at, 7), divmod(end, 7)))
    with tempfile.TemporaryDirectory() as folder:
        run = write(Path(folder), starts)
        assert all(e.exact for e in prove(run, Split()))
        step = data.draw(st.integers(0, end - 1))
        by = max(n for n, (_, begin, _) in enumerate(starts, start=1) if begin <= divmod(step, 7))
        rank = data.draw(st.integers(0, starts[by - 1][0] - 1))
        change(run, rank, lambda x: (x["start"], x["epoch"], x["step"]) == (by, *divmod(step, 7)), lambda _: None)
        assert not all(e.exact for e in prove(run, Split()))


def at(start: int, epoch: int, step: int):
    return lambda x: (x["start"], x["epoch"], x["step"]) == (start, epoch, step)


def test_each_kind_of_fault_is_named(tmp_path):
    steps = [Split().split("train")[ORDER.global_batch(0, s)] for s in range(7)]
    run = write(tmp_path / "lost")
    change(run, 1, at(1, 0, 2), lambda _: None)
    lost = np.sort(Split().split("train")[ORDER.rank_batch(0, 2, 1, 4)])
    names = ", ".join(f"patch_{n}" for n in lost)
    assert told(run) == [
        f"epoch 1: missing, or seen too seldom: {names}",
        "epoch 1: not the patches that seed and order ask for: steps 3",
    ]
    assert not prove(run, Split(), 0)[0].exact and prove(run, Split(), 1)[0].exact

    run = write(tmp_path / "doubled")
    change(run, 0, at(1, 0, 0), lambda x: x | {"numbers": [int(steps[3][0]), *x["numbers"][1:]]})
    assert told(run) == [
        f"epoch 1: missing, or seen too seldom: patch_{steps[0][0]}",
        f"epoch 1: seen too often: patch_{steps[3][0]}",
        "epoch 1: not the patches that seed and order ask for: steps 1",
    ]

    run = write(tmp_path / "written twice")
    path = run / "seen" / "rank-002.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert "seen too often" in told(run)[0] and told(run)[0].startswith("epoch 3")

    run = write(tmp_path / "foreign")
    change(run, 0, at(3, 1, 0), lambda x: x | {"numbers": [1, 999, *x["numbers"][2:]]})
    assert "epoch 2: not of the split: patch_1, no patch 999" in told(run)

    run = write(tmp_path / "swapped")  # each patch once, and yet not in the order that was asked for
    one, other = (prove_line(run, 0, s)["numbers"] for s in (0, 1))
    change(run, 0, at(1, 0, 0), lambda x: x | {"numbers": other})
    change(run, 0, at(1, 0, 1), lambda x: x | {"numbers": one})
    assert told(run) == ["epoch 1: not the patches that seed and order ask for: steps 1, 2"]

    run = write(tmp_path / "turned round")
    change(run, 0, at(1, 0, 1), lambda x: x | {"numbers": x["numbers"][::-1]})
    assert told(run) == ["epoch 1: not the patches that seed and order ask for: steps 2"]

    run = write(tmp_path / "without an end")  # and yet the next epoch began
    for rank in range(3):
        change(run, rank, at(3, 0, 6), lambda _: None)
    assert [told(run)[0].count("patch_"), prove(run, Split())[0].seen] == [5, 50 - len(steps[6])]


def prove_line(run: Path, rank: int, step: int) -> dict:
    lines = (json.loads(x) for x in (run / "seen" / f"rank-{rank:03d}.jsonl").read_text().splitlines())
    return next(x for x in lines if at(1, 0, step)(x))


@pytest.mark.parametrize(
    "wrong",
    [
        Order(50, 8, 6, block=2, unit=2),  # another seed
        Order(50, 8, 5, shuffle=False, block=2, unit=2),  # no shuffle at all, as happened once
        Order(50, 8, 5, unit=2),  # each epoch is a permutation, but not that of blocks
    ],
)
def test_a_wrong_shuffle_is_found_though_each_patch_comes_once(tmp_path, wrong):
    first = prove(write(tmp_path, order=wrong), Split())[0]
    assert first.seen == 50 and not len(first.missing) and not len(first.too_often)
    assert len(first.wrong) >= 6 and not first.exact


def test_an_epoch_in_the_order_of_another_is_found(tmp_path):
    class Stuck(Order):
        def global_batch(self, epoch: int, step: int) -> np.ndarray:
            return super().global_batch(0, step)

    found = prove(write(tmp_path, order=Stuck(50, 8, 5, block=2, unit=2)), Split())
    assert [e.exact for e in found] == [True, False, False]


def test_what_a_crash_undid_does_not_count(tmp_path):
    """Steps 4 to 6 of the first start are in no checkpoint that the run went on from."""
    run = write(tmp_path, [(2, (0, 0), (0, 7)), (2, (0, 3), (0, 5))])
    (found,) = prove(run, Split())
    assert (found.steps, found.of, found.exact) == (5, 7, False)
    assert told(run) == ["epoch 1: unfinished, 5 of 7 steps are done"]


def test_a_step_that_not_all_ranks_have_done_does_not_count_yet(tmp_path):
    run = write(tmp_path, [(2, (0, 0), (0, 4))])
    change(run, 1, at(1, 0, 3), lambda _: None)
    assert told(run) == ["epoch 1: unfinished, 3 of 7 steps are done"]
    change(run, 1, at(1, 0, 0), lambda _: None)  # an earlier hole is none that time will fill
    assert [f.partition(",")[0].partition(": patch")[0] for f in told(run)] == [
        "epoch 1: missing",
        "epoch 1: not the patches that seed and order ask for: steps 1",
        "epoch 1: unfinished",
    ]


def test_an_epoch_without_a_line_before_others_is_not_proven(tmp_path):
    found = prove(write(tmp_path, [(1, (1, 0), (1, 7))]), Split())
    assert [(e.seen, e.exact) for e in found] == [(0, False), (50, True)]


def test_a_line_cut_short_is_passed_over_and_cut_off(tmp_path):
    run = write(tmp_path, [(1, (0, 0), (0, 3))])
    path = run / "seen" / "rank-000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:-5])
    assert prove(run, Split())[0].steps == 3
    SeenWriter(run, 2, 0, 1).close()
    assert path.read_bytes() == whole
    path.write_bytes(b'{"start":1,' + b" " * 200_000)  # nothing but a line cut short
    SeenWriter(run, 2, 0, 1).close()
    assert path.read_bytes() == b""


def test_a_damaged_line_is_an_error_with_file_and_line(tmp_path):
    run = write(tmp_path)
    path = run / "seen" / "rank-002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"start":1}\n', *lines[2:]]))
    with pytest.raises(JournalError, match=r"rank-002\.jsonl, line 2: damaged, so it proves nothing"):
        prove(run, Split())


def test_no_journal_is_an_error_in_words(tmp_path):
    with pytest.raises(JournalError, match="cannot read the journal"):
        prove(tmp_path, Split())
    Journal(tmp_path / "journal.jsonl").append("start", epoch=0, step=0, recipe=RECIPE)
    with pytest.raises(
        JournalError, match=r"has no journal of the patches seen; training writes it with feed\.journal"
    ):
        prove(tmp_path, Split())
    with pytest.raises(JournalError, match="epoch 9 has not begun, the last that did is 3"):
        prove(write(tmp_path / "run"), Split(), 8)


def test_lines_are_short_and_there_when_written(tmp_path):
    writer = SeenWriter(tmp_path, 2, 7, 12)
    writer.write(0, 3, [17, 4, 590_325])
    line = (tmp_path / "seen" / "rank-007.jsonl").read_text()  # before it is closed, as after a kill
    assert line == '{"start":2,"epoch":0,"step":3,"ranks":12,"numbers":[17,4,590325]}\n'
    writer.close()


def test_a_full_disk_is_an_error_in_words_and_leaves_whole_lines(tmp_path, monkeypatch):
    writer = SeenWriter(tmp_path, 1, 0, 1)
    writer.write(0, 0, [1])
    real, left = os.write, [9]

    def fills(file: int, raw: bytes) -> int:
        """Takes nine bytes, then no more."""
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] = 0
        return real(file, raw[:9])

    with monkeypatch.context() as m:
        m.setattr(os, "write", fills)
        with pytest.raises(DiskError, match=r"rank-000\.jsonl: cannot be written"):
            writer.write(0, 1, [2])
    writer.close()
    SeenWriter(tmp_path, 2, 0, 1).close()
    assert (tmp_path / "seen" / "rank-000.jsonl").read_text().count("\n") == 1


# ---- accumulated gradients, rare classes, patches that training leaves out


PARTS = Order(50, 8, 5, block=2, unit=2, parts=3)  # seven steps of three parts
IN_PARTS = [(4, (0, 0), (0, 15)), (2, (0, 12), (0, 20)), (3, (0, 18), (2, 0))]


def test_parts_of_steps_are_proven(tmp_path):
    run = write(tmp_path / "run", IN_PARTS, PARTS, recipe=RECIPE | {"accumulate": 3})
    found = prove(run, Split())
    assert [(e.exact, e.steps, e.of, e.seen) for e in found] == [(True, 21, 21, 50)] * 2
    assert [e.starts for e in found] == [(1, 2, 3), (3,)]
    change(run, 0, at(3, 1, 20), lambda _: None)
    assert [e.exact for e in prove(run, Split())] == [True, False]
    run = write(tmp_path / "other", IN_PARTS, PARTS, recipe=RECIPE | {"accumulate": 2})
    assert not any(e.exact for e in prove(run, Split()))  # each patch once, and yet in other parts


def test_patches_that_training_left_out_are_not_asked_for(tmp_path):
    numbers = Split().split("train")
    kept = np.delete(numbers, [0, 17])
    order, starts = Order(48, 8, 5, block=2, unit=2), [(2, (0, 0), (1, 0))]
    left_out = [int(numbers[0]), int(numbers[17]), 100]  # 100 is of another split
    (found,) = prove(write(tmp_path / "run", starts, order, kept, left_out=left_out), Split())
    assert (found.exact, found.samples, found.seen) == (True, 48, 48)
    assert not prove(write(tmp_path / "silent", starts, order, kept), Split())[0].exact
    run = write(tmp_path / "seen", starts, order, kept, left_out=left_out)
    change(run, 0, at(1, 0, 0), lambda x: x | {"numbers": [left_out[1], *x["numbers"][1:]]})
    assert "epoch 1: not of the split: patch_51" in told(run)


SHARE = {"share": 0.8, "most": 4.0}
DRAWN = RECIPE | {"accumulate": 2, "oversample": SHARE, "labels": "store", "task": "auto", "control": "none"}


def oversampled(run: Path, store: Store, labels: str) -> tuple[Path, np.ndarray, Order]:
    """A run's folder, how often each patch of the training split is drawn, and the order."""
    numbers = store.split("train")
    often = repeats(targets.build(store.info, labels, "auto").of(store.labels)[numbers], **SHARE)
    order = Order(drawn_count(often), 8, 5, block=2, unit=2, parts=2)
    starts = [(2, (0, 0), (0, 5)), (3, (0, 4), (2, 0))]
    return write(run, starts, order, numbers, often, recipe=DRAWN | {"labels": labels}), often, order


@pytest.mark.parametrize("labels", ["store", "bigearthnet-19"])
def test_rare_patches_are_proven_to_come_as_often_as_is_asked(tiny_store, tmp_path, labels):
    store = Store(tiny_store)
    run, often, order = oversampled(tmp_path, store, labels)
    n = len(often)
    assert order.count > n and often.max() < 4  # it would show, if nothing came twice
    found = prove(run, store)
    assert [(e.exact, e.samples, e.seen, e.of) for e in found] == [(True, n, n, order.steps)] * 2
    assert list(faults(found, store)) == []


def test_rare_patches_that_come_too_seldom_or_too_often_are_named(tiny_store, tmp_path):
    store = Store(tiny_store)
    run, often, order = oversampled(tmp_path, store, "store")
    samples = epoch_samples(store.split("train"), often, 5, 1)
    patches, times = np.unique(patch_of(samples), return_counts=True)
    shares = {(s, r): samples[order.rank_batch(1, s, r, 3)] for s in range(order.steps) for r in range(3)}
    (step, rank), share = next((place, x) for place, x in shares.items() if (x >= 2**32).any())
    lost = int(patch_of(share[share >= 2**32][0]))  # comes twice at least, and once less after this
    more = int(patches[(times > 1) & (patches != lost)][0])
    had = patch_of(share).tolist()
    had[had.index(lost)] = more
    change(run, rank, at(2, 1, step), lambda x: x | {"numbers": had})
    first, second = prove(run, store)
    assert first.exact and not second.exact
    assert (second.missing.tolist(), second.too_often.tolist(), second.foreign.tolist()) == ([lost], [more], [])
    ids = store.column("id")
    assert list(faults([second], store)) == [
        f"epoch 2: missing, or seen too seldom: {ids[lost]}",
        f"epoch 2: seen too often: {ids[more]}",
        f"epoch 2: not the patches that seed and order ask for: steps {step + 1}",
    ]


def test_what_a_control_oversampled_is_not_proven(tiny_store, tmp_path):
    run = write(tmp_path, recipe=DRAWN | {"control": "shuffled-labels"})
    with pytest.raises(JournalError, match=r"control = shuffled-labels had dealt out.*take control = none or"):
        prove(run, Store(tiny_store))


def called(*words: object):
    return CliRunner().invoke(main, ["seen", *map(str, words)])


def test_the_command(tiny_store, tmp_path):
    store = Store(tiny_store)
    numbers = store.split("train")
    order = Order(len(numbers), 8, 5, block=2, unit=2)
    about = {"store": str(tiny_store), "store_digest": store.digest}
    starts = [(2, (0, 0), (1, 1)), (3, (1, 0), (2, 0))]
    run = write(tmp_path / "run", starts, order, numbers, **about)
    done = called(run)
    assert done.exit_code == 0, done.output
    assert f"2 epochs saw each of {len(numbers)} patches as often as asked for" in done.output
    assert called(run, "--epoch", 2, "--store", tiny_store).exit_code == 0
    change(run, 0, at(2, 1, 0), lambda x: x | {"numbers": x["numbers"][1:]})
    assert called(run, "--epoch", 1).exit_code == 0
    done = called(run)
    gone = str(store.column("id")[numbers[order.global_batch(1, 0)[0]]])
    assert done.exit_code == 1 and f"epoch 2: missing, or seen too seldom: {gone}\n" in done.output
    assert "not proven: 1 of 2 epochs" in done.output and "as often as asked for" not in done.output


def test_another_store_is_refused(tiny_store, tmp_path):
    run = write(tmp_path / "run", store=str(tmp_path / "gone"), store_digest=Store(tiny_store).digest)
    assert store_of(run, tiny_store).folder == tiny_store
    with pytest.raises(StoreError, match="no store"):
        store_of(run)
    run = write(tmp_path / "run2", store=str(tiny_store), store_digest="0" * 64)
    with pytest.raises(StoreError, match=r"is not the store that .*run2 was trained from; say where that is: --store"):
        store_of(run)
