"""What a rank can say of its own work: where its time went, how much arithmetic that was, how much memory it took."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Stopwatch:
    """Seconds by part, of one thread. Parts may lie within each other, and each second belongs to the innermost:

    with watch("compute"):
        ...
        with watch("communication"):  # not in compute as well
            ...

    Its clock is the program's. With a GPU work is only queued, so that a part holds what the program took to queue it,
    and what the device takes shows in the part in which the program waits for it: its next copy back, or an exchange.
    """

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since_s = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def each(self, part: str, items: Iterable) -> Iterator:
        """The items; the time that each took to come belongs to `part`."""
        items, end = iter(items), object()
        while True:
            with self(part):
                item = next(items, end)
            if item is end:
                return
            yield item

    def restart(self) -> None:
        """Every part begins at 0."""
        self._turn()
        self.spent_s = defaultdict(float)

    def _turn(self) -> None:
        now_s = time.perf_counter()
        if self._open:
            self.spent_s[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s


# ---- arithmetic


def flops(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a training step for each image: three times those of a forward pass in its
    convolutions and products of matrices, a multiplication and an addition being two. image_shape: (band, row, col).

    Three times, because the backward pass makes two products of each one: the gradient by the input and that by the
    weights (Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1). What gradient checkpointing
    computes again is not in it, as utilisation of model FLOPs wants it (Chowdhery et al. 2022, PaLM, appendix B).

    Counted from shapes alone, so that nothing is computed, and the model, its statistics and the random numbers are
    left as they are. The model as it was built: torch.compile and DDP hide the operations from the count.
    """
    tensors = chain(model.named_parameters(), model.named_buffers())
    shapes = {name: torch.empty_like(x, device="meta") for name, x in tensors}
    dtype = next((x.dtype for x in model.parameters() if x.is_floating_point()), torch.get_default_dtype())
    image = torch.empty(1, *image_shape, dtype=dtype, device="meta")  # (1, band, row, col)
    with _evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, (image,))
    return 3 * counter.get_total_flops()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation, then each module as it was: some may be in training and others not."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# Dense peaks in 10^12 FLOP/s at boost clock, of NVIDIA's data sheets: V100 (January 2020), T4 (March 2019), A10, A30
# and A40 (2021), A100 (June 2021), H100 (2022 for PCIe, 2024 for SXM and NVL), H200 (November 2024), GH200 (2024), L4,
# L40 and L40S (2023). Where a sheet gives tensor cores "with sparsity", half of it. float64 is that of tensor cores
# where there are such, float32 never is: that is tf32.
_PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16")
_PEAKS: dict[str, tuple[float | None, ...]] = {
    r"V100-SXM2-\d+GB": (7.8, 15.7, None, None, 125),
    r"V100-PCIE-\d+GB": (7, 14, None, None, 112),
    r"V100S-PCIE-\d+GB": (8.2, 16.4, None, None, 130),
    r"T4": (None, 8.1, None, None, 65),
    r"A10": (None, 31.2, 62.5, 125, 125),
    r"A30": (10.3, 10.3, 82, 165, 165),
    r"A40": (None, 37.4, 74.8, 149.7, 149.7),
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": (19.5, 19.5, 156, 312, 312),
    r"H100 80GB HBM3|H200": (67, 67, 494.5, 989.5, 989.5),
    r"GH200 \d+GB": (67, 67, 494.5, 989.5, 989.5),
    r"H100 PCIe": (51, 51, 378, 756.5, 756.5),
    r"H100 NVL|H200 NVL": (60, 60, 417.5, 835.5, 835.5),
    r"L4": (None, 30.3, 60, 121, 121),
    r"L40": (None, 90.5, 90.5, 181.05, 181.05),
    r"L40S": (None, 91.6, 183, 362.05, 362.05),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most FLOP/s that the device's maker promises without sparsity; None for a CPU, a part of a GPU (MIG), or a
    GPU that the table lacks. precision: float64, float32, tf32, bfloat16 or float16, that products are made in."""
    return peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_of(name: str, precision: str) -> float | None:
    """The same by the name that the driver gives a GPU. ValueError for another precision."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision {precision!r}: there are {', '.join(_PRECISIONS)}")
    column = _PRECISIONS.index(precision)
    model = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    peaks = (row[column] for pattern, row in _PEAKS.items() if re.fullmatch(pattern, model))
    tera = next(peaks, None)
    return None if tera is None else tera * 1e12


# ---- memory


def restart_memory(device: torch.device) -> None:
    """The device's peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_bytes(device: torch.device) -> int | None:
    """The most that tensors of this process held on the device since `restart_memory`; None for the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def resident_bytes() -> int:
    """The most memory that this process ever held at a time, shared pages included: Linux's VmHWM (proc(5)). getrusage
    would also tell of the program that started it."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
