"""What a run tells of itself: its first line, and one each epoch."""

from typing import Any

from jeoparda.config import as_dict
from jeoparda.journal import provenance
from jeoparda.ranks import RankEpoch, combine
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


def epoch_line(t: Training, mine: RankEpoch, figures: dict[str, float]) -> dict[str, Any]:
    """The epoch's journal line; on every rank, for it gathers from all. mine: of this rank's training steps."""
    ranks, losses = zip(*t.comm.gather((mine, t.loop.loss_sum), "train.line"), strict=True)
    return {
        "epoch": t.loop.epoch + 1,
        "step": (t.loop.epoch + 1) * t.steps,
        "loss": sum(losses) / t.steps,
        "lr": t.averaging.optimizer.param_groups[0]["lr"],
        "val": figures,
        "val_seconds": t.clock.spent_s["validation"],
        "last_save_seconds": t.saved_s,  # of the checkpoint after the epoch before: this line comes before its own
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
