"""Ranks: the only home of horovod and torch.distributed.

`start()` looks at what the launcher said (Open MPI, MPICH, Slurm, Horovod's own), starts the backend and refuses
when the number of ranks that found each other is not the number that was launched. Everything else is a few
collectives that mean the same for one rank and for many.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import nn

from jeoparda.errors import CommError, JeopardaError, Stopped
from jeoparda.launchers import launched

Backend = Literal["auto", "single", "horovod"]


class Comm(Protocol):
    """What training, evaluation and prediction know of the other ranks."""

    backend: str
    rank: int
    size: int
    local_rank: int
    local_size: int

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A new tensor with the sum over ranks, on every rank; any shape, equal on all ranks."""
        ...

    def gather(self, value: Any, name: str) -> list[Any]:
        """The picklable values of all ranks in rank order, on every rank."""
        ...

    def broadcast(self, value: Any, name: str) -> Any:
        """Rank 0's picklable value, on every rank."""
        ...

    def average_gradients(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer, which averages gradients over ranks while the backward pass goes on."""
        ...

    def finish_averages(self, optimizer: torch.optim.Optimizer) -> None:
        """Wait until all gradients are averages over ranks, as clipping and `step` want them."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer by the gradients as they are, after `finish_averages`."""
        ...

    def same_weights(self, model: nn.Module) -> None:
        """Give every rank rank 0's parameters and buffers."""
        ...

    def barrier(self) -> None: ...

    def close(self) -> None: ...


class Single:
    """One process: every collective is the identity."""

    backend, rank, size, local_rank, local_size = "single", 0, 1, 0, 1

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        return tensor.clone()

    def gather(self, value: Any, name: str) -> list[Any]:
        return [value]

    def broadcast(self, value: Any, name: str) -> Any:
        return value

    def average_gradients(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer

    def finish_averages(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def same_weights(self, model: nn.Module) -> None:
        pass

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class Horovod:
    """Ranks under Horovod. Every operation has a name: unnamed ones can pair wrongly after uneven counts."""

    backend = "horovod"

    def __init__(self) -> None:
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name=name)

    def gather(self, value: Any, name: str) -> list[Any]:
        return self._hvd.allgather_object(value, name=name)

    def broadcast(self, value: Any, name: str) -> Any:
        return self._hvd.broadcast_object(value, root_rank=0, name=name)

    def average_gradients(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        return self._hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    def finish_averages(self, optimizer: Any) -> None:
        optimizer.synchronize()

    def step(self, optimizer: Any) -> None:
        with optimizer.skip_synchronize():
            optimizer.step()

    def same_weights(self, model: nn.Module) -> None:
        # state_dict holds buffers too (BatchNorm's running statistics); broadcast_parameters skips none of them
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def barrier(self) -> None:
        self._hvd.barrier()

    def close(self) -> None:
        self._hvd.shutdown()


def start(backend: Backend = "auto") -> Comm:
    """Find the other ranks. `auto`: Horovod when a launcher started more than one, else a single process.

    CommError when Horovod is not there, or when it sees another number of ranks than were launched (an MPI build
    under a foreign launcher gives every rank a silent size of 1: each would train alone and write over the rest).
    """
    size, who = launched()
    if backend == "single" or (backend == "auto" and size == 1):
        if size > 1:
            raise CommError(f"{who} launched {size} ranks, but comm=single: start one process, or take comm=auto")
        return Single()
    try:
        comm = Horovod()
    except ImportError as e:
        raise CommError(
            f"{who or 'comm=horovod'} asks for {size} ranks, but Horovod is not installed ({e}); "
            "`make demo` builds it, or start one process"
        ) from e
    if comm.size != size:
        raise CommError(
            f"{who or 'no launcher'} started {size} ranks, but Horovod sees {comm.size} (rank {comm.rank} on "
            f"{socket.gethostname()}): its MPI is not the launcher's; under srun try --mpi=pmix, or use mpirun"
        )
    return comm


def device_of(comm: Comm) -> torch.device:
    """This rank's GPU, or the CPU with its share of this machine's cores."""
    if torch.cuda.is_available():
        torch.cuda.set_device(comm.local_rank)
        return torch.device("cuda", comm.local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores_of(comm))
    return torch.device("cpu")


def cores_of(comm: Comm) -> int:
    """This rank's share of the cores that it may use; collective. A rank bound to cores of its own shares them with
    nobody, others share them all."""
    mine = os.sched_getaffinity(0)
    ranks = comm.gather((socket.gethostname(), mine), "cores")
    return max(1, len(mine) // sum(host == socket.gethostname() and bool(mine & cores) for host, cores in ranks))


class _SyncNorm(torch.autograd.Function):
    """Batch normalisation with the moments of the whole global batch (Ioffe and Szegedy 2015, over ranks)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, total, name):  # type: ignore[no-untyped-def]
        # x: (batch, channel, row, col). One message of 2 * channel + 1 numbers, in float64: the variance is a
        # difference of two large sums.
        channels = x.shape[1]
        count_here = x.numel() // channels
        mean, var = (m.double() for m in torch.batch_norm_update_stats(x, None, None, 0.0))
        here = torch.cat([mean, var + mean * mean, mean.new_ones(1)]) * count_here
        *sums, count = total(here, f"{name}.forward").split([channels, channels, 1])
        mean64 = sums[0] / count
        var64 = (sums[1] / count - mean64 * mean64).clamp_min(0)
        unbiased = var64 * (count / (count - 1).clamp_min(1))
        mean, var = mean64.to(x.dtype), var64.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.total, ctx.name, ctx.count = eps, total, name, float(count)
        ctx.mark_non_differentiable(mean64, unbiased)
        return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean64, unbiased

    @staticmethod
    def backward(ctx, dy, _mean, _var):  # type: ignore[no-untyped-def]
        x, weight, mean, var = ctx.saved_tensors
        # with fixed statistics the parameters' gradients are the sums of dy and of dy times the normalised input
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        # the input's gradient needs the global sums; the parameters' are summed by the optimizer, like all others
        both = ctx.total(torch.cat([dbias, dweight]).double(), f"{ctx.name}.backward") / ctx.count
        mean_dy, mean_dy_normal = both.to(dy.dtype).chunk(2)
        invstd = (var + ctx.eps).rsqrt()
        scale = weight * invstd
        slope = -scale * invstd * mean_dy_normal
        # scale * (dy - mean_dy - normal * mean_dy_normal), gathered as a factor a channel of dy, one of x, and a rest
        dx = (dy * scale[:, None, None]).addcmul_(x, slope[:, None, None])
        return dx.sub_((scale * mean_dy + slope * mean)[:, None, None]), dweight, dbias, None, None, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training moments are those of the global batch; also on the CPU, where Horovod has none."""

    total: Callable[[torch.Tensor, str], torch.Tensor]
    label: str

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, unbiased = _SyncNorm.apply(x, self.weight, self.bias, self.eps, self.total, self.label)
        with torch.no_grad():
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return y


def synchronise_norm(model: nn.Module, comm: Comm) -> nn.Module:
    """Turn every BatchNorm2d of the model into one over all ranks, in place. With one rank nothing changes."""
    if comm.size == 1:
        return model
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
            module.total = comm.sum  # type: ignore[assignment]
            module.label = f"norm.{name}"  # type: ignore[assignment]
    return model


def abandon(comm: Comm) -> None:
    """Leave after an error. With other ranks the process ends at once: they may wait in a collective that this one
    will never join, and only the launcher, seeing an exit, ends them. A stop on purpose is agreed on by all."""
    error = sys.exc_info()[1]
    if comm.size == 1 or isinstance(error, Stopped):
        comm.close()
        return
    if isinstance(error, JeopardaError):
        print(f"jeoparda: rank {comm.rank} of {comm.size}: {error}", file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
