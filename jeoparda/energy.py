"""Energy: joules by the counters that processors and GPUs keep themselves."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
LOOK_S = 60.0  # a package that draws 1000 W takes four minutes to the 262 kJ after which its counter begins anew


@dataclass
class Counter:
    """One that the hardware keeps. read: how many units so far; OSError where it cannot be read. unit_j: joules of a
    unit. wrap: how many units there are until it begins at 0 again; 0: it never does."""

    read: Callable[[], int]
    unit_j: float
    wrap: int = 0
    last: int = 0
    units: int = 0

    def start(self) -> None:
        self.last, self.units = self.read(), 0

    def joules(self) -> float:
        """Since the start. Of the wrap-arounds since the last call it sees one."""
        now = self.read()
        self.units += (now - self.last) % self.wrap if self.wrap else now - self.last
        self.last = now
        return self.units * self.unit_j


class Energy:
    """What this rank's GPU has taken and, told by the first rank of a node, the node's processor packages: cores,
    caches and memory controllers, without the memory, whoever works on them.

    What is there but cannot be read is None from then on, and the rank whose it is says so.
    """

    def __init__(
        self, device: torch.device, local_rank: int, powercap: Path = POWERCAP, nvml: Any | None = None
    ) -> None:
        """powercap: the kernel's folder of power zones. nvml: what takes the place of the module pynvml."""
        self._local_rank = local_rank
        self._counters: dict[str, list[Counter]] = {}
        self._looked_s = -math.inf
        if device.type == "cuda":
            with self._or_told("gpu"):
                self._counters["gpu"] = [nvml_counter(_uuid(device), nvml or _pynvml())]
        if local_rank == 0:
            with self._or_told("cpu"):
                self._counters["cpu"] = rapl_counters(powercap)
        self.start()

    def start(self) -> None:
        """Count from here."""
        for kind in list(self._counters):
            with self._or_told(kind):
                for counter in self._counters[kind]:
                    counter.start()
        self._looked_s = time.monotonic()

    def joules(self) -> dict[str, float | None]:
        """{"gpu", "cpu"}: J since the start; None where that is not known."""
        out: dict[str, float | None] = {"gpu": None, "cpu": None}
        for kind in list(self._counters):
            with self._or_told(kind):
                each = [counter.joules() for counter in self._counters[kind]]
                out[kind] = sum(each) if each else None
        self._looked_s = time.monotonic()
        return out

    def keep_up(self) -> None:
        """To be called at every step: looks once a minute, so that no wrap-around is missed."""
        if time.monotonic() - self._looked_s >= LOOK_S:
            self.joules()

    @contextmanager
    def _or_told(self, kind: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self._counters.pop(kind, None)
            warnings.warn(
                f"energy of the {kind.upper()} is not told (local rank {self._local_rank}): {e}", stacklevel=3
            )


def rapl_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """The processor packages' counters, Intel's and AMD's: microjoules (Linux, Documentation/power/powercap). [] on a
    machine that shows none; PermissionError where only root may read them, as is usual."""
    zones = (zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1)
    packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    return [_rapl_counter(zone) for zone in packages]


def _rapl_counter(zone: Path) -> Counter:
    file = zone / "energy_uj"
    return Counter(lambda: int(file.read_text()), 1e-6, int((zone / "max_energy_range_uj").read_text()) + 1)


def nvml_counter(uuid: str, nvml: Any) -> Counter:
    """The counter of a GPU, by its UUID, as its number is another one under CUDA_VISIBLE_DEVICES: millijoules since its
    driver was loaded, from Volta on (NVML API, nvmlDeviceGetTotalEnergyConsumption). OSError where there is none."""
    with _as_oserror(nvml):
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def read() -> int:
        with _as_oserror(nvml):
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    return Counter(read, 1e-3)


@contextmanager
def _as_oserror(nvml: Any) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError as e:
        raise OSError(f"NVML: {e}") from e


def _uuid(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if not hasattr(properties, "uuid"):
        raise OSError(f"torch {torch.__version__} does not tell which GPU it uses; 2.5 and later do")
    return f"GPU-{properties.uuid}"


def _pynvml() -> Any:
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found]
    except ImportError as e:
        raise OSError("the package nvidia-ml-py is not installed; pip install 'jeoparda[gpu]'") from e
    return pynvml
