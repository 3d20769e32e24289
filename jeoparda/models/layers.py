"""What several networks are made of: stages of convolution and BatchNorm, and gradient checkpointing."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def stage(inputs: int, outputs: int, kernel_px: int, pool: bool = False) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU and, with `pool`, the maximum of each 2 x 2 pixels; what is left over at an odd
    edge is dropped. Zeros around the image: an odd kernel keeps its size, an even one adds a pixel."""
    conv = nn.Conv2d(inputs, outputs, kernel_px, padding=kernel_px // 2, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def run(block: nn.Module, *x: torch.Tensor, recompute: bool) -> torch.Tensor:
    """block(*x). recompute: only x is kept for the backward pass, which computes what lies within anew (Chen et al.
    2016, Training Deep Nets with Sublinear Memory Cost, section 4), with the same random numbers. Gradients and
    BatchNorm's running statistics are those without it."""
    if not recompute or not torch.is_grad_enabled():
        return block(*x)
    contexts = lambda: (nullcontext(), _same_statistics(block))  # noqa: E731
    return checkpoint(block, *x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _same_statistics(block: nn.Module) -> Iterator[None]:
    """The second forward pass moves copies of the running statistics: the first has moved them. They are not switched
    off, as BatchNorm without any saves other tensors, which `checkpoint` takes for an error."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    held = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in held:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in held:
            setattr(norm, name, buffer)
