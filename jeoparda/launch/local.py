"""Ranks on this machine, without Slurm: what to put before a command so that it runs on several."""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """`prefix` goes before the command, `env` into its environment. `reason`: why it is not what was asked for."""

    ranks: int
    prefix: tuple[str, ...]
    env: dict[str, str]
    reason: str = ""


def launcher(ranks: int) -> Launcher:
    """The best way to start `ranks` Horovod ranks here: mpirun, Horovod's own over Gloo, or one rank and the reason."""
    if ranks == 1:
        return Launcher(1, (), {})
    if importlib.util.find_spec("horovod") is None:
        return Launcher(1, (), {}, "Horovod is not installed; `make setup` builds it where a compiler and cmake are")
    if shutil.which("mpirun") and _built("mpi"):
        env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        # torch's threads fill the cores: a rank that waits must not spin on one (1.45 times faster on 2 cores)
        env["OMPI_MCA_mpi_yield_when_idle"] = "1"
        # cores are shared out by torch; bound to one each, its threads would all sit on that one
        return Launcher(ranks, ("mpirun", "-np", str(ranks), "--oversubscribe", "--bind-to", "none"), env)
    if _built("gloo"):
        return Launcher(ranks, ("horovodrun", "--gloo", "-np", str(ranks)), {})
    return Launcher(1, (), {}, "this build of Horovod has neither Gloo nor an MPI whose mpirun is in PATH")


def _built(what: str) -> bool:
    """Asked in a process of its own: Horovod loads torch, and its MPI must not start in this one."""
    code = f"import sys, horovod.torch as hvd; sys.exit(not hvd.{what}_built())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
