"""How many ranks were launched, by whom, and which one this is: what mpirun, srun, horovodrun and torchrun say in the
environment."""

import os
import re
from dataclasses import dataclass

from jeoparda.errors import CommError

# (variable with the number of ranks, who sets it); the first that is set counts
LAUNCHERS = (
    ("HOROVOD_SIZE", "horovodrun"),
    ("OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"),
    ("PMI_SIZE", "mpiexec (MPICH)"),
    ("WORLD_SIZE", "torchrun"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
)
# the variables with the rank, the rank on its node, and the number of ranks on the node
RANKS = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "mpirun (Open MPI)": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mpiexec (MPICH)": ("PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "torchrun": ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", ""),
}


@dataclass(frozen=True)
class Place:
    """One rank among all. per_node: ranks on each node of a Slurm step, in its order, of which `node` is this one's."""

    who: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int = 0
    per_node: tuple[int, ...] = ()


def launched() -> tuple[int, str]:
    """(number of ranks, who launched them); (1, "") without a launcher."""
    for variable, who in LAUNCHERS:
        if os.environ.get(variable) and _by_its_launcher(variable):
            return int(os.environ[variable]), who
    return 1, ""


def _by_its_launcher(variable: str) -> bool:
    if variable == "WORLD_SIZE":  # job scripts set it too, for programs that find the rest by Slurm
        return "RANK" in os.environ
    if variable == "PMI_SIZE":  # srun --mpi=pmi2 sets it too
        return "MPI_LOCALRANKID" in os.environ or "SLURM_PROCID" not in os.environ
    return True


def place() -> Place:
    """Which rank this process is. CommError when the launcher does not say."""
    size, who = launched()
    if not who:
        return Place("", 0, 1, 0, 1)
    rank, local_rank, local_size = RANKS[who]
    if who != "srun":
        return Place(who, _number(rank, who), size, _number(local_rank, who), _number(local_size, who))
    number, node = _number(rank, who), _number("SLURM_NODEID", who)
    per_node = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if sum(per_node) != size or node >= len(per_node):
        raise CommError(
            f"srun started {size} ranks, but SLURM_STEP_TASKS_PER_NODE={os.environ.get('SLURM_STEP_TASKS_PER_NODE')}, "
            f"on node {node}: start them anew with srun, without changing its variables"
        )
    return Place(who, number, size, _number(local_rank, who), per_node[node], node, per_node)


def _number(variable: str, who: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise CommError(
            f"{who} started {launched()[0]} ranks, but {variable}={text!r} does not say which one this is; start the "
            "ranks with one launcher alone, and do not set its variables by hand"
        )
    return int(text)


def tasks_per_node(text: str) -> tuple[int, ...]:
    """Slurm's short form: "2(x3),1" is (2, 2, 2, 1)."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return tuple(int(n) for n, times in runs for _ in range(int(times or 1)))


def first_node(nodes: str) -> str:
    """Of Slurm's short form: "gpu[03-07,9],cpu1" begins with gpu03."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[0] if found else "")
