"""Ranks under torch.distributed: NCCL between GPUs, Gloo between everything else."""

import inspect
import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from jeoparda.comm.lost import told_from_mistakes
from jeoparda.comm.protocol import Averaging, ExchangeRecipe
from jeoparda.comm.rendezvous import MEET_S, step_meet
from jeoparda.errors import CommError, RecipeError
from jeoparda.launchers import Place

OWN_BUCKET_MB = 25  # DDP's default


class Ddp:
    """torch's DistributedDataParallel. Buffers are each rank's own: synchronised norms keep them alike."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int, exchange: ExchangeRecipe
    ) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
        from torch.nn.parallel import DistributedDataParallel

        self.optimizer, self._parts, self._part = optimizer, parts, 0
        # torch 2.13 has a new name for what is broadcast before each forward pass
        known = inspect.signature(DistributedDataParallel).parameters
        own_buffers: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        # views: a gradient lies in its bucket, so that it is neither held nor copied twice
        self._model = DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            bucket_cap_mb=exchange.fusion_mb or OWN_BUCKET_MB,
            **own_buffers,
        )
        if exchange.compression == "float16":
            self._model.register_comm_hook(None, fp16_compress_hook)

    def forward(self, x: torch.Tensor) -> Any:
        # the forward pass already decides whether its backward pass exchanges
        with told_from_mistakes("the forward pass"), self._sync(self._part == self._parts - 1):
            return self._model(x)

    def _sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._model.no_sync()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        if last != (self._part == self._parts - 1):
            raise ValueError(f"part {self._part + 1} of {self._parts} cannot be last={last}")
        self._part = 0 if last else self._part + 1
        with told_from_mistakes("the backward pass"), self._sync(last):
            loss.backward()

    def finish(self) -> None:
        pass  # DDP's backward pass waits itself

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()


class Torch:
    """Ranks under torch.distributed. Objects and tensors of the CPU always go by Gloo."""

    backend = "torch"

    def __init__(self, place: Place, exchange: ExchangeRecipe) -> None:
        import torch.distributed as dist

        refuse(exchange)
        self._dist, self._exchange = dist, exchange
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(gpu_of(self.local_rank))  # before NCCL starts, which takes the current one
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=_store(place), rank=self.rank, world_size=self.size
        )

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        with told_from_mistakes(name):
            self._dist.all_reduce(total)
        return total

    def gather(self, value: Any, name: str) -> list[Any]:
        values: list[Any] = [None] * self.size
        with told_from_mistakes(name):
            self._dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any, name: str) -> Any:
        values = [value]
        with told_from_mistakes(name):
            self._dist.broadcast_object_list(values, src=0)
        return values[0]

    def average(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int = 1) -> Averaging:
        return Ddp(model, optimizer, parts, self._exchange)

    def same_weights(self, model: nn.Module) -> None:
        with told_from_mistakes("the first weights"):
            for tensor in model.state_dict().values():
                self._dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        self.sum(torch.zeros(1), "barrier")

    def close(self) -> None:
        self._dist.destroy_process_group()


def gpu_of(local_rank: int) -> int:
    """The number of a rank's GPU: the only one where the launcher shows each rank its own. CommError where there are
    fewer GPUs than ranks."""
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise CommError(
            f"{socket.gethostname()}: this is rank {local_rank + 1} of this node, which shows {count} GPUs; start "
            f"{count} ranks a node"
        )
    return local_rank if count > 1 else 0


def refuse(exchange: ExchangeRecipe) -> None:
    """RecipeError for what DDP has no like of."""
    if exchange.reduce != "average":
        raise RecipeError(f"exchange.reduce = {exchange.reduce!r}: comm=torch only averages; take comm=horovod")
    if exchange.cycle_ms:
        raise RecipeError(f"exchange.cycle_ms = {exchange.cycle_ms}: comm=torch has no cycle; leave it at 0")


def _store(place: Place) -> Any:
    """torch.distributed's store: rank 0's, at a port that is free, which the others hear of as their launcher allows.
    None under torchrun, which has one. CommError where the ranks cannot hear of it."""
    from torch.distributed import TCPStore

    if place.who == "torchrun":
        return None
    own = TCPStore("localhost", 0, is_master=True, wait_for_workers=False) if place.rank == 0 else None
    host, port = "localhost" if place.local_size == place.size else socket.gethostname(), own.port if own else 0
    if place.who == "srun":
        port, host = step_meet(place, lambda: port)
    elif "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ:
        host, port = _by_horovodrun(place, (host, port))
    elif place.size > 1:
        host, port = _by_mpi(place, (host, port))
    return own or TCPStore(host, port, is_master=False)


def _by_horovodrun(place: Place, told: tuple[str, int]) -> tuple[str, int]:
    """Rank 0's `told`, by the key-value store of horovodrun --gloo."""
    from horovod.runner.http.http_client import put_data_into_kvstore, read_data_from_kvstore

    if "HOROVOD_GLOO_IFACE" in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", os.environ["HOROVOD_GLOO_IFACE"])
    where = (
        os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"],
        os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"],
        "jeoparda",
        "torch",
    )
    if place.rank == 0:
        put_data_into_kvstore(*where, told)
        return told
    until = time.monotonic() + MEET_S
    while True:
        try:
            return read_data_from_kvstore(*where)  # type: ignore[no-any-return]
        except RuntimeError as e:  # rank 0 has not said it yet
            if time.monotonic() > until:
                raise CommError(f"rank {place.rank} has not heard of rank 0 by horovodrun for {MEET_S:.0f} s") from e
        time.sleep(0.1)


def _by_mpi(place: Place, told: tuple[str, int]) -> tuple[str, int]:
    """Rank 0's `told`, by MPI."""
    try:
        from mpi4py import MPI
    except ImportError as e:
        raise CommError(
            f"comm=torch under {place.who} needs mpi4py, by which ranks hear of each other, and it is not there ({e}); "
            "pip install 'jeoparda[mpi]', or start the ranks with torchrun"
        ) from e
    if MPI.COMM_WORLD.size != place.size:
        raise CommError(
            f"{place.who} started {place.size} ranks, but mpi4py sees {MPI.COMM_WORLD.size}: its MPI is not the "
            "launcher's"
        )
    return MPI.COMM_WORLD.bcast(told)  # type: ignore[no-any-return]
