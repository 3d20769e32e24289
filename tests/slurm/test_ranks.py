"""Plain srun on 2 nodes x 2 ranks, no variable set: ranks find each other however srun was told to serve MPI."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.slurm.conftest import Cluster

PROGRAM = (sys.executable, "-m", "tests.parallel.backend_ranks")
HOROVOD = pytest.mark.needs("horovod-mpi", "horovod-gloo")


def served(cluster: Cluster, mpi: str) -> bool:
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, env=cluster.env, check=True)
    return mpi in (done.stdout + done.stderr).split()


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("mpi", ["pmix", "pmi2", "none"])
@pytest.mark.parametrize("backend", [pytest.param("horovod", marks=HOROVOD), "torch"])
def test_ranks_under_plain_srun(cluster: Cluster, tmp_path: Path, backend: str, mpi: str):
    if not served(cluster, mpi):
        pytest.skip(f"this Slurm was built without --mpi={mpi}")
    size = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", f"--mpi={mpi}"]
    cluster.call("srun", *size, *PROGRAM, "collectives", backend, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    assert found == [[0, 4, 0, 2], [1, 4, 1, 2], [2, 4, 0, 2], [3, 4, 1, 2]]


@pytest.mark.needs("slurm")
def test_two_steps_of_a_job_do_not_meet_each_other(cluster: Cluster, tmp_path: Path):
    """Each has a port and a token of its own."""
    one, other = tmp_path / "one", tmp_path / "other"
    steps = []
    for folder in (one, other):
        folder.mkdir()
        step = f"srun --nodes=2 --ntasks=2 --exact --mem=100 {' '.join(PROGRAM)} collectives torch {folder}"
        steps.append(f"{step} & p{len(steps)}=$!")
    script = tmp_path / "two.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(steps) + "\nwait $p0 && wait $p1\n")
    cluster.call("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/two.log", script)
    for folder in (one, other):
        assert [torch.load(folder / f"{rank}.pt") for rank in (0, 1)] == [[0, 2, 0, 1], [1, 2, 0, 1]]
