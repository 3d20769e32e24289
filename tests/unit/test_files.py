"""Files that are whole or not there."""

import pytest

from jeoparda.files import sha256, whole


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
