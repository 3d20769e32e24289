"""Ranks under Horovod, by MPI where the launcher serves it, else by Gloo."""

import ctypes
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from jeoparda.comm.lost import told_from_mistakes
from jeoparda.comm.protocol import Averaging, ExchangeRecipe
from jeoparda.comm.rendezvous import step_meet
from jeoparda.errors import CommError
from jeoparda.launchers import Place, launched, place

MIB = 2**20
POLL_S = 1e-4  # Horovod itself waits without sleep, and so takes the core from its own thread that does the work
Exchange = Callable[[list[torch.Tensor]], None]  # turns gradients into averages, in place


class Overlapped:
    """Horovod's DistributedOptimizer: each gradient is exchanged as soon as all ranks have it."""

    def __init__(self, hvd: Any, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int, half: bool):
        self.forward = model
        # float16 sums may overflow: divided by the number of ranks before the sum, not after, as DDP does
        self.optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            backward_passes_per_step=parts,
            compression=hvd.Compression.fp16 if half else hvd.Compression.none,
            gradient_predivide_factor=float(hvd.size()) if half else 1.0,
        )

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        with told_from_mistakes("the backward pass"):
            loss.backward()

    def finish(self) -> None:
        with told_from_mistakes("the average of gradients"):
            self.optimizer.synchronize()

    def stepping(self) -> AbstractContextManager[None]:
        return self.optimizer.skip_synchronize()  # type: ignore[no-any-return]


class Together:
    """All gradients exchanged at once, after the backward pass."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, exchange: Exchange) -> None:
        self._exchange, self.forward, self.optimizer = exchange, model, optimizer
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def finish(self) -> None:
        for p in self._parameters:
            if p.grad is None:  # not used on this rank, but maybe on others
                p.grad = torch.zeros_like(p)
        with told_from_mistakes("the average of gradients"):
            self._exchange([p.grad for p in self._parameters if p.grad is not None])

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()


class Hierarchical:
    """Averages in three steps: each rank of a node gets the node's sum of its piece (reduce-scatter), ranks with the
    same piece on other nodes add theirs (all-reduce), and a node's ranks give each other their pieces (all-gather).
    Between nodes goes 1 / (ranks of a node) of what each rank would send alone. Cho et al. 2019, "BlueConnect"."""

    def __init__(self, hvd: Any, half: bool) -> None:
        self._hvd, self._half = hvd, half
        places = hvd.allgather_object((hvd.cross_rank(), hvd.local_rank()), name="hierarchical.places")
        nodes, pieces = _ranks_by(node for node, _ in places), _ranks_by(piece for _, piece in places)
        if len(nodes) * len(pieces) != hvd.size():
            raise CommError(
                "exchange.reduce = 'hierarchical': nodes have different numbers of ranks, "
                f"{', '.join(str(len(ranks)) for ranks in nodes.values())}; give each as many, or take average"
            )
        # all ranks make all sets, in the same order
        within, across = ({i: self._set(ranks) for i, ranks in sorted(sets.items())} for sets in (nodes, pieces))
        self._within, self._across = within[hvd.cross_rank()], across[hvd.local_rank()]

    def _set(self, ranks: list[int]) -> Any:
        """None where a rank is alone."""
        if len(ranks) == 1:
            return None
        return self._hvd.global_process_set if len(ranks) == self._hvd.size() else self._hvd.add_process_set(ranks)

    def __call__(self, gradients: list[torch.Tensor]) -> None:
        kinds = defaultdict[torch.dtype, list[torch.Tensor]](list)
        for gradient in gradients:
            kinds[gradient.dtype].append(gradient)
        for dtype, those in kinds.items():
            flat = torch.cat([g.flatten() for g in those])
            flat = self._sum((flat / self._hvd.size()).to(torch.float16 if self._half else dtype), f"{dtype}")
            for gradient, mean in zip(those, flat.split([g.numel() for g in those]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _sum(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """The sum over all ranks. flat: (number,)"""
        hvd, length = self._hvd, len(flat)
        if self._within:
            flat = nn.functional.pad(flat, (0, -length % self._within.size()))  # pieces of one size
            flat = hvd.reducescatter(flat, op=hvd.Sum, name=f"within.{name}", process_set=self._within)
        if self._across:
            flat = hvd.allreduce(flat, op=hvd.Sum, name=f"across.{name}", process_set=self._across)
        if self._within:
            flat = hvd.allgather(flat, name=f"gathered.{name}", process_set=self._within)
        return flat[:length]


def _ranks_by(groups: Iterable[int]) -> dict[int, list[int]]:
    """The ranks of each group; `groups` in the order of ranks."""
    found = defaultdict[int, list[int]](list)
    for rank, group in enumerate(groups):
        found[group].append(rank)
    return found


class Adasum:
    """Sums what gradients have of their own and averages what they share, pair by pair of ranks, for each parameter:
    g1 (1 - g1 g2 / 2 |g1|^2) + g2 (1 - g1 g2 / 2 |g2|^2). Maleki et al. 2021, "Scaling Distributed Training with
    Adaptive Summation", equation 1."""

    def __init__(self, hvd: Any, half: bool) -> None:
        size = hvd.size()
        if not hvd.mpi_enabled():
            raise CommError(
                "exchange.reduce = 'adasum': Horovod has it by MPI only, and these ranks meet by Gloo; start them with "
                "mpirun, or take exchange.reduce=average"
            )
        if size & (size - 1):
            raise CommError(f"exchange.reduce = 'adasum': ranks must be a power of two, these are {size}")
        self._hvd, self._compression = hvd, hvd.Compression.fp16 if half else hvd.Compression.none

    def __call__(self, gradients: list[torch.Tensor]) -> None:
        hvd, sent = self._hvd, []
        for i, gradient in enumerate(gradients):
            small, how = self._compression.compress(gradient)
            sent.append((hvd.allreduce_async(small, op=hvd.Adasum, name=f"adasum.{i}"), how))
        for gradient, (handle, how) in zip(gradients, sent, strict=True):
            gradient.copy_(self._compression.decompress(hvd.synchronize(handle), how))


class Horovod:
    """Ranks under Horovod. Every operation has a name: unnamed ones can pair wrongly after uneven counts."""

    backend = "horovod"

    def __init__(self, exchange: ExchangeRecipe) -> None:
        import horovod.torch as hvd

        self._server = _gloo(place()) if launched()[1] == "srun" and not _served(hvd) else None
        os.environ.update(_settings(exchange))
        hvd.init()
        self._hvd, self._half = hvd, exchange.compression == "float16"
        self._together = _together(hvd, exchange)
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        hvd = self._hvd
        with told_from_mistakes(name):
            handle = hvd.allreduce_async(tensor.contiguous(), op=hvd.Sum, name=name)
            while not hvd.poll(handle):
                time.sleep(POLL_S)
            return hvd.synchronize(handle)  # type: ignore[no-any-return]

    def gather(self, value: Any, name: str) -> list[Any]:
        with told_from_mistakes(name):
            return self._hvd.allgather_object(value, name=name)  # type: ignore[no-any-return]

    def broadcast(self, value: Any, name: str) -> Any:
        with told_from_mistakes(name):
            return self._hvd.broadcast_object(value, root_rank=0, name=name)

    def average(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int = 1) -> Averaging:
        if self._together:
            return Together(model, optimizer, self._together)
        return Overlapped(self._hvd, model, optimizer, parts, self._half)

    def same_weights(self, model: nn.Module) -> None:
        # state_dict holds buffers too (BatchNorm's running statistics); broadcast_parameters skips none of them
        with told_from_mistakes("the first weights"):
            self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def barrier(self) -> None:
        with told_from_mistakes("barrier"):
            self._hvd.barrier()

    def close(self) -> None:
        self._hvd.shutdown()


def _together(hvd: Any, exchange: ExchangeRecipe) -> Exchange | None:
    """How all gradients are exchanged at once, None where each is by itself. Made once: process sets stay."""
    half = exchange.compression == "float16"
    if exchange.reduce == "hierarchical":
        return Hierarchical(hvd, half)
    return Adasum(hvd, half) if exchange.reduce == "adasum" else None


def _settings(exchange: ExchangeRecipe) -> dict[str, str]:
    """What Horovod reads from the environment when it starts."""
    found = {}
    if exchange.fusion_mb:
        found["HOROVOD_FUSION_THRESHOLD"] = str(int(exchange.fusion_mb * MIB))
    if exchange.cycle_ms:
        found["HOROVOD_CYCLE_TIME"] = str(exchange.cycle_ms)
    if exchange.reduce == "hierarchical":
        found["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
    return found


def _served(hvd: Any) -> bool:
    """Whether srun speaks the language of Horovod's MPI: PMIx for Open MPI, PMI for MPICH and its kin. An MPI that is
    not spoken to ends the process, or sees one rank. CommError when it does not, and there is no Gloo."""
    mpi = _mpi_library() if hvd.mpi_built() else ""
    served = bool(mpi) and ("PMIX_RANK" if "Open MPI" in mpi else "PMI_RANK") in os.environ
    if not served and not hvd.gloo_built():
        raise CommError(
            f"srun started these ranks in a way that Horovod's MPI ({mpi[:40]}) does not understand, and Horovod was "
            "built without Gloo; use srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH"
        )
    return served


def _mpi_library() -> str:
    """The name and version of the MPI that Horovod was built with. To be asked before MPI starts (MPI 3.1, 8.1.1)."""
    from horovod.torch import mpi_lib_v2

    text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
    ctypes.CDLL(mpi_lib_v2.__file__).MPI_Get_library_version(text, ctypes.byref(length))
    return text.value.decode()


def _gloo(here: Place) -> Any:
    """Tell Horovod of the ranks of a Slurm step as horovodrun would. Returns the server by which they find each
    other, which rank 0 starts, and which must outlive them."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()

    def serve() -> int:
        port = server.start()
        server.init(get_host_assignments([HostInfo(_node(i), n) for i, n in enumerate(here.per_node)], here.size))
        return port  # type: ignore[no-any-return]

    port, address = step_meet(here, serve)
    peers = [i for i, n in enumerate(here.per_node) if n > here.local_rank]  # nodes with a rank of this local rank
    os.environ.update(
        HOROVOD_HOSTNAME=_node(here.node),
        HOROVOD_RANK=str(here.rank),
        HOROVOD_SIZE=str(here.size),
        HOROVOD_LOCAL_RANK=str(here.local_rank),
        HOROVOD_LOCAL_SIZE=str(here.local_size),
        HOROVOD_CROSS_RANK=str(peers.index(here.node)),
        HOROVOD_CROSS_SIZE=str(len(peers)),
        HOROVOD_GLOO_RENDEZVOUS_ADDR=address,
        HOROVOD_GLOO_RENDEZVOUS_PORT=str(port),
        HOROVOD_CONTROLLER="gloo",
        HOROVOD_CPU_OPERATIONS="gloo",
    )
    return server


def _node(number: int) -> str:
    return f"node{number}"
