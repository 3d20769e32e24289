"""All that a rank holds while it trains, and how it is saved and taken up again."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from jeoparda import __version__, checkpoint
from jeoparda.board import Board
from jeoparda.comm import Averaging, Comm
from jeoparda.config import as_dict
from jeoparda.energy import Energy
from jeoparda.errors import CheckpointError
from jeoparda.feed import Feed
from jeoparda.feed.seen import SeenWriter
from jeoparda.losses import Loss
from jeoparda.meter import Stopwatch
from jeoparda.signals import StopRequest
from jeoparda.stall import Watch
from jeoparda.store import Store
from jeoparda.targets import Targets
from jeoparda.train.precision import Precision
from jeoparda.train.recipe import TrainRecipe


@dataclass
class Loop:
    """Where the loop stands: `step` steps of `epoch` are done, and `loss_sum` is the sum of their losses.

    best_f1, best_step: of the checkpoint with the highest validation micro F1, -1 and 0 before there is one.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_f1: float = -1.0
    best_step: int = 0


@dataclass
class Training:
    """All that one rank holds while it trains. model: the network itself; `averaging.forward` is what trains it."""

    r: TrainRecipe
    comm: Comm
    store: Store
    targets: Targets
    model: nn.Module
    loss: Loss
    averaging: Averaging
    precision: Precision
    feed: Feed
    val: Feed
    device: torch.device
    loop: Loop
    stop: StopRequest
    average: AveragedModel | None  # where the recipe asks for one
    left_out: list[int]  # patches that have no label among those that are learnt
    flops: int  # of a step, for one image
    clock: Stopwatch
    energy: Energy
    fresh: str = ""  # what published weights left as it was
    thresholds: list[float] | None = None  # per class, once they are tuned
    watch: Watch = field(default_factory=Watch.none)
    seen: SeenWriter | None = None
    board: Board | None = None
    saved_s: float = 0.0  # that the last epoch's checkpoint took

    @property
    def steps(self) -> int:
        """Steps of the optimizer an epoch."""
        return self.feed.plan.order.steps // self.r.accumulate

    @property
    def done(self) -> int:
        """Steps of the optimizer since the run began."""
        return self.loop.epoch * self.steps + self.loop.step

    @property
    def finished(self) -> str:
        """Why there is nothing left to do, or ""."""
        best_epoch = self.loop.best_step // self.steps
        if self.loop.epoch >= self.r.epochs:
            return f"{self.r.epochs} epochs"
        if self.r.patience and self.loop.best_step and self.loop.epoch - best_epoch >= self.r.patience:
            return f"{self.r.patience} epochs without a better micro F1 than that of epoch {best_epoch}"
        return ""


def _identity(r: TrainRecipe) -> dict[str, Any]:
    """What must not change when a run goes on: all but where, on what and how fast."""
    d = as_dict(r)
    for name in ("run", "store", "comm", "checkpoint", "compile", "stall_s", "tensorboard"):
        del d[name]
    del d["model"]["recompute"]
    d["feed"] = {name: d["feed"][name] for name in ("augment", "bands", "block")}
    d["feed"]["synthetic"] = r.feed.kind == "synthetic"  # the other kinds give the same
    d["exchange"] = {"compression": r.exchange.compression, "adasum": r.exchange.reduce == "adasum"}
    return d


def save(t: Training) -> None:
    """Rank 0 writes; all take part, because the loss so far is spread over them."""
    if t.seen:
        t.seen.sync()  # before the sum, so before the checkpoint is there
    loss_sum = t.comm.sum(torch.tensor(t.loop.loss_sum, dtype=torch.float64), "train.loss_so_far").item()
    if t.comm.rank != 0:
        return
    state = {
        "model": t.model.state_dict(),
        "optimizer": t.averaging.optimizer.state_dict(),
        "scaler": t.precision.scaler.state_dict(),
        "average": t.average.module.state_dict() if t.average else None,
        "thresholds": t.thresholds if t.loop.step == 0 else None,  # within an epoch they are of older weights
        "loop": asdict(t.loop) | {"loss_sum": loss_sum},
        "recipe": _identity(t.r),
        "about": _about(t),
    }
    checkpoint.save(checkpoint.path_of(t.r.run, t.done), state)
    _mark_best(t)
    checkpoint.prune(t.r.run, t.r.checkpoint.keep, t.done)


def _about(t: Training) -> dict[str, Any]:
    """What whoever uses the weights must know."""
    info = t.store.info
    return {
        "jeoparda": __version__,
        "store": t.store.digest,
        "sensor": info.sensor,
        "groups": [asdict(g) | {"bands": list(g.bands)} for g in t.feed.layout.groups],
        "mean": t.feed.mean.tolist(),
        "std": t.feed.std.tolist(),
        "unit": info.unit,
        "rgb": list(info.rgb) if {*info.rgb} <= {*t.feed.layout.bands} else [],
        "nomenclature": info.nomenclature,
        "model": as_dict(t.r.model),
        "threshold": t.r.threshold,
    } | t.targets.about()


def _mark_best(t: Training) -> None:
    """Also when a run goes on: it may have died between a checkpoint and its mark."""
    if t.loop.best_step:
        checkpoint.mark_best(checkpoint.path_of(t.r.run, t.loop.best_step))


def resume(t: Training) -> bool:
    """Take up the newest whole checkpoint of the run folder, where there is one. Rank 0 chooses and reads; the rest are
    told."""
    found = checkpoint.newest(t.r.run) if t.comm.rank == 0 else None
    state = t.comm.broadcast(found[1] if found else None, "train.resume")
    if state is None:
        return False
    was, now = _flat(state["recipe"]), _flat(_identity(t.r))
    changed = [f"{k}: was {was.get(k)}, now {now.get(k)}" for k in sorted(was | now) if was.get(k) != now.get(k)]
    if state["about"]["store"] != t.store.digest:
        changed.append("the store's content")
    if changed:
        raise CheckpointError(f"{t.r.run}: holds another run; give another `run` folder. Changed: {'; '.join(changed)}")
    t.model.load_state_dict(state["model"])
    t.averaging.optimizer.load_state_dict(state["optimizer"])
    t.precision.scaler.load_state_dict(state["scaler"])
    t.thresholds = state.get("thresholds")
    if t.average:
        t.average.module.load_state_dict(state["average"])
        t.average.n_averaged += 1  # it has begun
    t.loop = Loop(**state["loop"])
    if t.comm.rank == 0:
        _mark_best(t)
        print(f"{t.r.run}: going on from epoch {t.loop.epoch + 1}, step {t.loop.step}", flush=True)
    else:
        t.loop.loss_sum = 0.0  # rank 0 carries the sum over all
    return True


def _flat(d: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    out: dict[str, Any] = {}
    for k, v in d.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return out
