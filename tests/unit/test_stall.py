"""The stall check: when it ends a process and when not, and whom it names."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jeoparda import stall
from jeoparda.errors import DiskError
from jeoparda.signals import EXIT_RESUMABLE
from jeoparda.stall import Sign, Stillness, Watch, blame
from tests.conftest import environment

OLD_S = 10.0
NOW_S = 1000.0


def sign(rank: int, beats: int = 8, age_s: float = 1.0, where: str = "comm/horovod.py, line 7, sum") -> Sign:
    return Sign(rank, f"node{rank}", 100 + rank, beats, f"step {beats}", 60.0, where, NOW_S - age_s)


# ---- counting, by a clock of our own


def test_it_counts_from_the_last_beat():
    still = Stillness(late_s=2, now_s=0)
    assert [still.look(now, beat_s=min(now, 3)) for now in range(1, 8)] == [0, 0, 0, 1, 2, 3, 4]


def test_after_a_pause_of_the_process_it_counts_anew():
    still = Stillness(late_s=2, now_s=0)
    assert [still.look(now, beat_s=1) for now in (1, 2, 3)] == [0, 1, 2]
    assert [still.look(now, beat_s=1) for now in (5003, 5004, 5005)] == [0, 1, 2]
    assert still.look(5006, beat_s=5005.5) == 0.5


# ---- who is to blame


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ([None], "it runs alone"),
        ([sign(0), sign(1), sign(2)], "all ranks live and wait for each other"),
        ([sign(0), sign(1, 7, 63), sign(2)], "rank 1 on node1 (pid 101) was last heard of 63 s ago, in step 7"),
        ([sign(0, 7), sign(1, 7, 11)], "rank 1 on node1 (pid 101) was last heard of 11 s ago, in step 7"),
        ([sign(0), None], "rank 1 has given no sign of life"),
        (
            [sign(0), sign(1, 7, where="feed/reader.py, line 9, read")],
            "rank 1 on node1 (pid 101) lives, but has stood for 61 s in step 7 (feed/reader.py, line 9, read)",
        ),
        (
            [sign(0), sign(1, where="checkpoint.py, line 3, save")],
            "rank 1 on node1 (pid 101) lives, but has stood for 61 s in step 8 (checkpoint.py, line 3, save)",
        ),
        ([sign(0, age_s=11), sign(1)], "who is to blame is not known, for signs of life could not be written"),
        ([None, sign(1)], "who is to blame is not known, for signs of life could not be written"),
    ],
)
def test_the_rank_to_blame_is_named(signs, words):
    assert blame(signs, 0, NOW_S, OLD_S) == words


def test_of_many_only_some_are_named():
    told = blame([sign(0), *(sign(rank, age_s=40) for rank in range(1, 512))], 0, NOW_S, OLD_S)
    assert told.count("last heard of") == 4 and told.endswith(", and 507 more")


# ---- a process that stands still


def started(code: str, *words: object, seconds: float = 1) -> subprocess.Popen[str]:
    """`code` within a watch over a rank that runs alone."""
    program = (
        "import sys, time, pathlib\n"
        "from jeoparda import stall\n"
        f"with stall.Watch({seconds}, pathlib.Path('/nonexistent'), 0, 1) as watch:\n"
        "    print('begun', flush=True)\n" + "".join(f"    {line}\n" for line in code.splitlines())
    )
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_a_loop_that_stands_still_is_ended():
    begun = time.monotonic()
    with started("watch.beat('step 12 of epoch 3')\ntime.sleep(30)") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_RESUMABLE and time.monotonic() - begun < 25
    assert out == "begun\n"
    assert err == (
        "jeoparda: rank 0 of 1: no step for 1 s, waiting in step 12 of epoch 3 (not in this package); it runs alone: "
        "ended; start the run again, it goes on from its last checkpoint\n"
    )


def test_others_are_left_alone():
    begun = [
        started("time.sleep(3)"),  # start-up, before the first beat
        started("for step in range(15):\n    watch.beat(f'step {step}')\n    time.sleep(0.2)"),
        started("watch.beat('step 1')\ntime.sleep(3)", seconds=0),
    ]
    for process in begun:
        assert process.communicate(timeout=60) == ("begun\n", "") and process.returncode == 0


def test_a_process_that_was_paused_is_left_alone():
    """As by scontrol suspend: for longer than it may stand still. Its next beat comes a while after."""
    with started("watch.beat('step 1')\nfor _ in range(10):\n    time.sleep(0.2)", seconds=4) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


# ---- signs of life


def until(path: Path, there: bool) -> None:
    end = time.monotonic() + 10
    while path.exists() is not there:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_signs_are_there_while_it_runs_and_gone_after(tmp_path):
    folder = tmp_path / "run" / "ranks"
    folder.mkdir(parents=True)
    (folder / "005").write_text("of an earlier start on more ranks")
    (folder.parent / "journal.jsonl").write_text("")
    with Watch(600, folder, 0, 2) as one:
        one.beat("step 1")
        with Watch(600, folder, 1, 2):
            until(folder / "001", there=True)
            found = json.loads((folder / "001").read_text())
            assert (found["rank"], found["pid"], found["beats"], found["doing"]) == (1, os.getpid(), 0, "start-up")
            until(folder / "000", there=True)
            assert sorted(os.listdir(folder)) == ["000", "001"]
        assert os.listdir(folder) == ["000"]
    assert not folder.exists() and folder.parent.exists()
    (folder.parent / "journal.jsonl").unlink()
    with Watch(600, folder, 0, 2):  # of a run that is refused
        pass
    assert not folder.parent.exists()


def test_where_the_loop_is_in_this_package(tmp_path, monkeypatch):
    """The test's own file stands for the package."""
    monkeypatch.setattr(stall, "PACKAGE", Path(__file__).parent)
    with Watch(600, tmp_path / "ranks", 0, 2):
        until(tmp_path / "ranks" / "000", there=True)
        where = json.loads((tmp_path / "ranks" / "000").read_text())["where"]
    file, line, function = where.split(", ")
    assert file == "test_stall.py" and line.startswith("line ")
    assert function in ("until", "test_where_the_loop_is_in_this_package")


def test_a_sign_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stall, "LEAST_S", 0.01)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with Watch(0.04, tmp_path / "ranks", 1, 2):
        time.sleep(0.5)
    assert os.listdir(tmp_path) == ["ranks"] and os.listdir(tmp_path / "ranks") == []
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"rank 1: {tmp_path}/ranks: No space left on device: while" in told


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(DiskError, match=r"run/ranks: cannot be written: Not a directory"),
        stall.watch(5, tmp_path / "run", Ranks()),
    ):
        pytest.fail("it began")


class Ranks:
    rank, size = 0, 2


def test_no_watch_makes_nothing(tmp_path):
    for watch in (Watch.none(), stall.watch(0, tmp_path, Ranks())):
        with watch:
            watch.beat("step 1")
    assert os.listdir(tmp_path) == []
