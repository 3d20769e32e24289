"""Ingest as jobs on a real Slurm: an array that loses a task and does another twice; ranks that srun starts."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jeoparda.config import check
from jeoparda.ingest import IngestRecipe, run
from jeoparda.store import Store
from tests.conftest import ROOT
from tests.slurm.conftest import Cluster
from tests.unit.test_ingest import Content, content

pytestmark = pytest.mark.needs("slurm")
PARTS, ENDED = 4, ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
SIZE = ("--cpus-per-task=1", "--time=5")


@pytest.fixture
def given(tiny_archive) -> dict:
    split = {"block_m": 1200, "val": 0.25, "test": 0.25}
    return {"archive": str(tiny_archive), "patches_per_shard": 3, "split": split}


@pytest.fixture
def truth(given, tmp_path_factory) -> Content:
    """The store by one process."""
    store = tmp_path_factory.mktemp("one") / "store"
    run(check(IngestRecipe, given | {"store": store, "workers": 1}), lambda _: None)
    return content(store)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where jobs on every node can write."""
    made = Path(tempfile.mkdtemp(prefix="array", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def recipe(given, folder) -> Path:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(given | {"store": str(folder / "s"), "workers": 1}))
    return path


def sbatch(cluster: Cluster, recipe: Path, step: str, *more: str) -> str:
    """Send slurm/ingest.sbatch as it is; the job's number."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [*SIZE, f"--chdir={recipe.parent}", f"--export=ALL,PATH={path}", *more]
    return cluster.call("sbatch", "--parsable", *words, ROOT / "slurm" / "ingest.sbatch", step, recipe).strip()


def states(cluster: Cluster, job: str) -> list[str]:
    """Of all tasks of a job."""
    told = cluster.call("scontrol", "--oneliner", "show", "job", job)
    return [word.partition("=")[2] for word in told.split() if word.startswith("JobState=")]


def ended(cluster: Cluster, job: str) -> bool:
    return all(s in ENDED for s in states(cluster, job))


def logs(folder: Path) -> str:
    return "".join(f"---- {p.name}\n{p.read_text()}" for p in sorted(folder.glob("*.log")))


def test_an_array_that_loses_a_task_and_does_another_twice(cluster: Cluster, recipe, truth, folder, until):
    one = sbatch(cluster, recipe, "init")
    parts, after = f"load/{PARTS}", f"--dependency=afterok:{one}"
    every = sbatch(cluster, recipe, parts, after, f"--array=1-{PARTS}")
    twice = sbatch(cluster, recipe, parts, after, "--array=2")  # at the same time as the other one
    cluster.call("scancel", f"{every}_3")
    last = sbatch(cluster, recipe, "finalise", f"--dependency=afterok:{every}", "--kill-on-invalid-dep=yes")
    until(lambda: ended(cluster, every) and ended(cluster, twice))
    assert states(cluster, every).count("COMPLETED") == 3, logs(folder)
    assert states(cluster, twice) == ["COMPLETED"], logs(folder)
    until(lambda: ended(cluster, last))
    assert states(cluster, last) == ["CANCELLED"] and not (folder / "s" / "store.json").exists()
    early = sbatch(cluster, recipe, "finalise")
    until(lambda: ended(cluster, early))
    assert states(cluster, early) == ["FAILED"]
    assert "4 of 16 shards are missing or damaged: 8-11" in logs(folder)
    lost = sbatch(cluster, recipe, parts, "--array=2,3")
    last = sbatch(cluster, recipe, "finalise", f"--dependency=afterok:{lost}")
    until(lambda: ended(cluster, last))
    assert states(cluster, last) == ["COMPLETED"], logs(folder)
    assert content(folder / "s") == truth
    journals = sorted(p.name for p in (folder / "s" / "journal").iterdir())
    assert journals == [f"load-{n}-of-{PARTS}.jsonl" for n in range(1, PARTS + 1)]


@pytest.mark.needs("mpi4py")
def test_ranks_of_srun_over_nodes(cluster: Cluster, recipe, truth, folder):
    words = ["--nodes=3", "--ntasks=3", *SIZE, "--mpi=pmix", sys.executable, "-m", "jeoparda", "ingest", recipe]
    told = cluster.call("srun", *words)
    assert content(folder / "s") == truth
    assert told.count(f"{folder / 's'}: 48 patches") == 1  # rank 0 alone speaks
    assert '"workers": 3' in (folder / "s" / "journal" / "ingest.jsonl").read_text()
    assert len(Store(folder / "s")) == 48


@pytest.mark.needs("mpi4py")
def test_steps_by_ranks_of_srun(cluster: Cluster, recipe, truth, folder):
    """Each of the three steps by several ranks, as in a job of its own."""
    for step in (["init"], ["load", "--part", "1/1"], ["finalise"]):
        words = ["--nodes=2", "--ntasks=2", *SIZE, "--mpi=pmix", sys.executable, "-m", "jeoparda", "store"]
        cluster.call("srun", *words, step[0], recipe, *step[1:])
    assert content(folder / "s") == truth
