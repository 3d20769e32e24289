"""Files that are whole or not there."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from jeoparda.files import clear_drafts, sha256, whole


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with whole(path) as draft:
        draft.write_text("half")
        assert not path.exists()
        draft.write_text("whole")
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("before")

    def fail():
        with whole(path) as draft:
            draft.write_text("after")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_sha256_of_a_published_value(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_drafts_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    """Also of one whose end its parent has not asked for: where a container's first process reaps none, none does."""
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    drafts = {
        who: tmp_path / f".a.{socket.gethostname()}.{pid}.part"
        for who, pid in (("zombie", zombie.pid), ("gone", 4194303), ("alive", os.getpid()))
    }
    for path in (*drafts.values(), tmp_path / ".a.elsewhere.1.part"):
        path.write_bytes(b"half")
    clear_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([drafts["alive"], tmp_path / ".a.elsewhere.1.part"])
    zombie.wait()
