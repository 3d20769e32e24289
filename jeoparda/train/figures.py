"""What a run tells of itself: its first line, and one each epoch."""

from typing import Any

from jeoparda import meter
from jeoparda.config import as_dict
from jeoparda.journal import provenance
from jeoparda.ranks import PARTS, RankEpoch, combine
from jeoparda.train.recipe import TrainRecipe
from jeoparda.train.state import Training


def describe(t: Training) -> dict[str, Any]:
    """The journal's line of a start."""
    return provenance() | {
        "ranks": t.comm.size,
        "backend": t.comm.backend,
        "feed": t.feed.kind,
        "device": t.device.type,
        "store": str(t.r.store),
        "store_digest": t.store.digest,
        "classes": list(t.targets.classes),
        "bands": list(t.feed.layout.bands),
        "train_patches": len(t.feed.plan.numbers),
        "drawn_patches": t.feed.plan.order.count,
        "val_patches": t.val.plan.order.count,
        "left_out": t.left_out,
        "model": t.r.model.name,
        "parameters": sum(p.numel() for p in t.model.parameters()),
        "flops_per_image": t.flops,
        "weights": t.fresh,
        "epoch": t.loop.epoch,
        "step": t.loop.step,
        "recipe": as_dict(t.r),
    }


def epoch_line(
    t: Training, first_wait_s: float, images: int, seconds: float, figures: dict[str, float]
) -> dict[str, Any]:
    """The epoch's journal line; on every rank, for it gathers from all. first_wait_s, images, seconds: of this rank's
    training steps."""
    joules, waits, spent_s = t.energy.joules(), t.feed.waits, t.clock.spent_s
    mine = RankEpoch(
        images,
        seconds,
        first_wait_s,
        {part: waits.get(part, 0.0) + spent_s.get(part, 0.0) for part in PARTS},
        meter.resident_bytes(),
        meter.device_bytes(t.device),
        joules["gpu"],
        joules["cpu"],
        meter.peak_flops(t.device, t.r.precision),
    )
    ranks, losses = zip(*t.comm.gather((mine, t.loop.loss_sum), "train.line"), strict=True)
    return {
        "epoch": t.loop.epoch + 1,
        "step": (t.loop.epoch + 1) * t.steps,
        "loss": sum(losses) / t.steps,
        "lr": t.averaging.optimizer.param_groups[0]["lr"],
        "val": figures,
        "val_seconds": spent_s["validation"],
    } | combine(ranks, t.flops)


def spoken(r: TrainRecipe, line: dict[str, Any]) -> str:
    """The line for a terminal."""
    val, late = line["val"], line["slowest"]
    said = (
        f"epoch {line['epoch']}/{r.epochs}  loss {line['loss']:.4f}  val loss {val['loss']:.4f}  "
        f"micro F1 {val['micro_f1']:.3f}  macro F1 {val['macro_f1']:.3f}  mAP {val['map']:.3f}  "
        f"{line['images_per_s']:.1f} images/s  {line['seconds']:.0f} s  utilisation {line['utilisation']:.0%}"
    )
    if line["mfu"] is not None:
        said += f"  MFU {line['mfu']:.0%}"
    return said + (f"  slowest rank {late['rank']} ({late['why']})" if late else "")
