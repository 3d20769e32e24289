"""The whole chain as a newcomer meets it, smaller."""

import re
from pathlib import Path

import pytest

from jeoparda.journal import read
from jeoparda.store import StoreInfo


@pytest.mark.needs("mpirun", "horovod-mpi")
def test_the_demo_runs_the_whole_chain(cli, tmp_path):
    done = cli("demo", tmp_path / "demo", "--patches", 150, "--epochs", 1, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    demo = tmp_path / "demo"
    assert StoreInfo.read(demo / "real-store").patches == 29
    assert done.stdout.count("S2A_MSIL2A_20170613T101031_0_46_labels_metadata.json: not valid JSON") == 1
    events = read(demo / "run" / "journal.jsonl")
    assert [e["event"] for e in events] == ["start", "epoch", "stop"]
    assert (events[0]["ranks"], events[0]["backend"]) == (2, "horovod")
    page = (demo / "run" / "report.html").read_text()
    assert "L1C" in page and "trained on synthetic patches" in page and "T33UUU_20170216T102101" in page
    where = done.stdout[done.stdout.index("Where everything is") : done.stdout.index("What to try next")]
    for path in re.findall(rf"{demo}\S+", where):
        assert Path(path).exists(), path  # what it names at the end is there
    again = cli("demo", demo, "--patches", 150, "--epochs", 1, timeout=600)
    assert again.returncode == 0 and "already mapped" in again.stdout
    assert len([e for e in read(demo / "run" / "journal.jsonl") if e["event"] == "epoch"]) == 1
