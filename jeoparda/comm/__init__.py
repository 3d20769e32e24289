"""Ranks: the only home of horovod and torch.distributed.

`start()` looks at what the launcher said (Open MPI, MPICH, Slurm, Horovod's own, torchrun), starts the backend and
refuses when the number of ranks that found each other is not the number that was launched. Everything else is a few
collectives that mean the same for one rank and for many.
"""

import os
import socket
import sys
import traceback

import torch

from jeoparda.comm.ddp import Torch, gpu_of
from jeoparda.comm.elastic import elastic
from jeoparda.comm.horovod import Horovod
from jeoparda.comm.norm import SyncBatchNorm2d, synchronise_norm
from jeoparda.comm.protocol import Averaging, Backend, Comm, ExchangeRecipe
from jeoparda.comm.same import same_everywhere
from jeoparda.comm.single import Single
from jeoparda.errors import CommError, JeopardaError, RanksLost, Stopped
from jeoparda.launchers import launched, place
from jeoparda.signals import EXIT_RESUMABLE

__all__ = [
    "Averaging",
    "Backend",
    "Comm",
    "ExchangeRecipe",
    "Horovod",
    "Single",
    "SyncBatchNorm2d",
    "Torch",
    "abandon",
    "cores_of",
    "device_of",
    "elastic",
    "same_everywhere",
    "start",
    "synchronise_norm",
]


def start(backend: Backend = "auto", exchange: ExchangeRecipe | None = None) -> Comm:
    """Find the other ranks. `auto`: Horovod when a launcher started more than one, else a single process.

    CommError when the backend is not there, or when it sees another number of ranks than were launched (an MPI build
    under a foreign launcher gives every rank a silent size of 1: each would train alone and write over the rest).
    RecipeError when the backend cannot exchange as `exchange` says.
    """
    size, who = launched()
    if who == "torchrun" and backend != "torch":
        raise CommError("torchrun's ranks meet by torch.distributed: take comm=torch, or start them with mpirun")
    if backend == "single" or (backend == "auto" and size == 1):
        if size > 1:
            raise CommError(f"{who} launched {size} ranks, but comm=single: start one process, or take comm=auto")
        return Single()
    if backend == "torch":
        return Torch(place(), exchange or ExchangeRecipe())
    try:
        comm = Horovod(exchange or ExchangeRecipe())
    except ImportError as e:
        raise CommError(
            f"{who or 'comm=horovod'} asks for {size} ranks, but Horovod is not installed ({e}); "
            "`make demo` builds it, or take comm=torch, or start one process"
        ) from e
    if comm.size != size:
        raise CommError(
            f"{who or 'no launcher'} started {size} ranks, but Horovod sees {comm.size} (rank {comm.rank} on "
            f"{socket.gethostname()}): its MPI is not the launcher's; under srun try --mpi=pmix, or use mpirun"
        )
    return comm


def device_of(comm: Comm) -> torch.device:
    """This rank's GPU, or the CPU with its share of this machine's cores; collective."""
    cores = cores_of(comm)  # on every rank, whatever its environment
    if torch.cuda.is_available():
        gpu = gpu_of(comm.local_rank)
        torch.cuda.set_device(gpu)
        return torch.device("cuda", gpu)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores)
    return torch.device("cpu")


def cores_of(comm: Comm) -> int:
    """This rank's share of the cores that it may use; collective. A rank bound to cores of its own shares them with
    nobody, others share them all."""
    mine = os.sched_getaffinity(0)
    ranks = comm.gather((socket.gethostname(), mine), "cores")
    return max(1, len(mine) // sum(host == socket.gethostname() and bool(mine & cores) for host, cores in ranks))


def abandon(comm: Comm) -> None:
    """Leave after an error. With other ranks the process ends at once: they may wait in a collective that this one
    will never join, and only the launcher, seeing an exit, ends them. A stop on purpose is agreed on by all, but for
    that of a rank whose others are gone: closing would wait for them."""
    error = sys.exc_info()[1]
    lost = isinstance(error, RanksLost)
    if comm.size == 1 or (isinstance(error, Stopped) and not lost):
        comm.close()
        return
    if isinstance(error, JeopardaError):
        print(f"jeoparda: rank {comm.rank} of {comm.size}: {error}", file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_RESUMABLE if lost else 1)
