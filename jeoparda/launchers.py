"""How many ranks were launched, and by whom: what mpirun, srun and horovodrun say in the environment."""

import os

# (variable with the number of ranks, who sets it); the first that is set counts
LAUNCHERS = (
    ("HOROVOD_SIZE", "horovodrun"),
    ("OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"),
    ("PMI_SIZE", "mpiexec (MPICH)"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
)


def launched() -> tuple[int, str]:
    """(number of ranks, who launched them); (1, "") without a launcher."""
    for variable, who in LAUNCHERS:
        if os.environ.get(variable):
            return int(os.environ[variable]), who
    return 1, ""
