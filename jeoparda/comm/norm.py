"""BatchNorm over the global batch, on any device: Horovod's own wants a GPU, torch's a process group of its kind."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from jeoparda.comm.protocol import Comm

Total = Callable[[torch.Tensor, str], torch.Tensor]  # as Comm.sum: (tensor, name of the exchange) -> sum over ranks


def _type_of_moments(x: torch.Tensor) -> torch.dtype:
    """The type in which moments are kept: half types would lose them."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _SyncNorm(torch.autograd.Function):
    """Batch normalisation with the moments of the whole global batch (Ioffe and Szegedy 2015, over ranks)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, total, name):  # type: ignore[no-untyped-def]
        # x: (batch, channel, row, col). One message of 2 * channel + 1 numbers, in float64: the variance is a
        # difference of two large sums.
        channels, dtype = x.shape[1], _type_of_moments(x)
        count_here = x.numel() // channels
        unused = x.new_zeros(channels, dtype=dtype)  # running statistics, whose type is that of the moments
        mean, var = (m.double() for m in torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0))
        here = torch.cat([mean, var + mean * mean, mean.new_ones(1)]) * count_here
        *sums, count = total(here, f"{name}.forward").split([channels, channels, 1])
        mean64 = sums[0] / count
        var64 = (sums[1] / count - mean64 * mean64).clamp_min(0)
        unbiased = var64 * (count / (count - 1).clamp_min(1))
        mean, var, weight, bias = (t.to(dtype) for t in (mean64, var64, weight, bias))
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.total, ctx.name = eps, total, name
        ctx.mark_non_differentiable(mean64, unbiased)
        return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean64, unbiased

    @staticmethod
    def backward(ctx, dy, _mean, _var):  # type: ignore[no-untyped-def]
        x, weight, mean, var, count = ctx.saved_tensors
        # with fixed statistics the parameters' gradients are the sums of dy and of dy times the normalised input
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        # the input's gradient needs the global sums; the parameters' are summed by the optimizer, like all others
        both = ctx.total(torch.cat([dbias, dweight]).double(), f"{ctx.name}.backward") / count
        mean_dy, mean_dy_normal = both.to(mean.dtype).chunk(2)
        invstd = (var + ctx.eps).rsqrt()
        scale = weight * invstd
        slope = -scale * invstd * mean_dy_normal
        # scale * (dy - mean_dy - normal * mean_dy_normal), gathered as a rest, a factor a channel of x, and one of dy
        rest = -(scale * mean_dy + slope * mean)
        dx = torch.addcmul(rest[:, None, None], x, slope[:, None, None]).addcmul_(dy, scale[:, None, None])
        return dx.to(x.dtype), dweight, dbias, None, None, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training moments are those of the global batch; also on the CPU, where Horovod has none.

    As torch's, it leaves running statistics alone where `track_running_stats` is off, takes float16 and bfloat16 with
    weights of float32, and gives what it was given: type, memory format.
    """

    total: Total
    label: str  # of its exchanges, "norm." and the module's name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        weight = self.weight if self.affine else x.new_ones(self.num_features, dtype=_type_of_moments(x))
        bias = self.bias if self.affine else torch.zeros_like(weight)
        y, mean, unbiased = _exchanged(x, weight, bias, self.eps, self.total, self.label)
        if self.track_running_stats:
            self._track(mean, unbiased)
        return y

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        for kept, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            # without a momentum, the plain mean over all batches so far
            factor = 1 / self.num_batches_tracked.to(kept.dtype) if self.momentum is None else self.momentum  # type: ignore
            kept.lerp_(new.to(kept.dtype), factor)  # type: ignore[union-attr]


@torch.compiler.disable
def _exchanged(*words: Any) -> Any:
    """Not for torch.compile, which cannot look into an exchange: its graphs end here and begin anew."""
    return _SyncNorm.apply(*words)


def synchronise_norm(model: nn.Module, comm: Comm, total: Total | None = None) -> nn.Module:
    """Turn every BatchNorm2d of the model into one over all ranks, in place. With one rank nothing changes. total: what
    sums moments over ranks, None: `comm.sum`; the first such sum of a step is where ranks wait for the slowest."""
    if comm.size == 1:
        return model
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
            module.total = total or comm.sum  # type: ignore[assignment]
            module.label = f"norm.{name}"  # type: ignore[assignment]
    return model
