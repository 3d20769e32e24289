"""`--elastic`: when a rank dies the others go on from the last checkpoint, in the same job."""

import os
import signal
import sys
from pathlib import Path

import pytest

from jeoparda.journal import read
from tests.conftest import JEOPARDA, Ranks
from tests.parallel.recipes import train_recipe
from tests.parallel.test_interruption import finished, until_it_trains

HORUN = str(Path(sys.executable).with_name("horovodrun"))
# Horovod drops the whole host of a rank that died, so that two names of this one stand for two
TWO_HOSTS = (HORUN, "--network-interfaces", "lo", "-np", "2", "--min-np", "1", "-H", "localhost:1,127.0.0.1:1")


@pytest.mark.needs("horovod-gloo")
def test_the_others_go_on(ranks: Ranks, cli, tiny_store, tmp_path, apart):
    path = train_recipe(tmp_path, tiny_store, "epochs: 4, batch: 6, precision: float64, checkpoint: {every_steps: 2}")
    assert cli("train", path, f"run={tmp_path / 'undisturbed'}").returncode == 0
    job = ranks.start(0, "single", "train", path, "--elastic", program=(*TWO_HOSTS, *JEOPARDA))
    pids = until_it_trains(job, tmp_path / "run", 2)
    os.kill(pids[0], signal.SIGKILL)
    done = job.end(120)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path / "run") and apart(tmp_path / "run", tmp_path / "undisturbed") < 1e-10
    begun = [e for e in read(tmp_path / "run" / "journal.jsonl") if e["event"] in ("start", "resume")]
    assert [e["ranks"] for e in begun] == [2, 1]
    assert "going on with the nodes that are left" in done.stdout + done.stderr


def test_launchers_that_cannot_say_so(cli, tiny_store, tmp_path):
    done = cli("train", train_recipe(tmp_path, tiny_store, "epochs: 1"), "--elastic")
    assert (
        done.returncode == 1 and "--elastic: wants Horovod's ranks, started by horovodrun with --min-np" in done.stderr
    )
    assert not (tmp_path / "run").exists()
