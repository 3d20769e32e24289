"""The keys of a training run."""

from pathlib import Path
from typing import Literal

from jeoparda.comm import Backend, ExchangeRecipe
from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.feed import FeedRecipe
from jeoparda.losses import LossRecipe
from jeoparda.models import ModelRecipe
from jeoparda.optimizers import OptimizerRecipe
from jeoparda.schedule import ScheduleRecipe
from jeoparda.targets import Labels, Task


@recipe
class CheckpointRecipe:
    """What is kept, and how often."""

    every_steps: int = opt(0, "also within an epoch; 0: at each epoch's end only", "steps", ge=0)
    keep: int = opt(2, "newest checkpoints kept, beside the best", ge=1)


@recipe
class OversampleRecipe:
    """Rare classes shown more often."""

    share: float = opt(
        0.0,
        "a patch of a class with a smaller share of the patches than this is drawn sqrt(this / share) times an epoch; "
        "0: every patch once",
        ge=0,
        lt=1,
    )
    most: float = opt(8.0, "times an epoch that a patch is drawn at most", ge=1)


@recipe
class TrainRecipe:
    """jeoparda train: a classifier from a store, on one process or many ranks."""

    store: Path = opt(REQUIRED, "store made by `jeoparda ingest`")
    run: Path = opt(REQUIRED, "folder of this run; started again, it goes on where it stopped")
    labels: Labels = opt("store", "what is learnt: the store's classes, or coarser ones that its CORINE classes make")
    task: Task = opt("auto", "auto: single-label for a store of chips with one class each, else multi-label")
    subset: float = opt(1.0, "share of the training split that is trained on, drawn by the seed", gt=0, le=1)
    model: ModelRecipe = opt(ModelRecipe, "network")
    epochs: int = opt(20, "passes over the training split", ge=1)
    batch: int = opt(64, "patches a step over all ranks; not multiplied by the number of ranks", "patches", ge=1)
    accumulate: int = opt(
        1,
        "parts in which a step is computed one after the other, to save memory; BatchNorm sees a part at a time",
        ge=1,
    )
    oversample: OversampleRecipe = opt(OversampleRecipe, "rare classes shown more often")
    loss: LossRecipe = opt(LossRecipe, "loss")
    optimizer: OptimizerRecipe = opt(OptimizerRecipe, "optimizer")
    schedule: ScheduleRecipe = opt(ScheduleRecipe, "learning rate over the run")
    ema: float = opt(
        0.0,
        "what is validated and used are weights averaged over the steps, each time this share of the average and the "
        "rest of the new; 0: the newest weights",
        ge=0,
        lt=1,
    )
    patience: int = opt(
        0, "stop for good after so many epochs without a better validation micro F1; 0: never", "epochs", ge=0
    )
    norm: Literal["synchronised", "local", "frozen"] = opt(
        "synchronised", "BatchNorm over the global batch, over each rank's share, or with fixed statistics"
    )
    precision: Literal["float32", "tf32", "bfloat16", "float16", "float64"] = opt(
        "float32",
        "of the arithmetic; weights stay float32 in all but float64, which shows that two set-ups take the same steps, "
        "slowly; tf32: of NVIDIA GPUs from A100 on; float16 scales its loss",
    )
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = opt(
        "none", "torch.compile's mode; reduce-overhead: with CUDA graphs. Minutes at the start, for faster steps"
    )
    feed: FeedRecipe = opt(FeedRecipe, "how batches are made")
    comm: Backend = opt("auto", "auto: Horovod when a launcher started more than one rank; torch: DDP")
    exchange: ExchangeRecipe = opt(ExchangeRecipe, "how ranks average their gradients")
    stall_s: float = opt(
        600.0,
        "a run that takes no step for so long, or for half an hour before the first, is ended, to be started again; "
        "0: never",
        "s",
        ge=0,
    )
    threshold: float = opt(0.5, "a class is predicted from this probability on", gt=0, lt=1)
    thresholds: Literal["fixed", "per-class"] = opt(
        "fixed", "per-class: what is used after training is each class's best threshold on the validation split"
    )
    seed: int = opt(0, "of weights, order, augmentation and dropout")
    checkpoint: CheckpointRecipe = opt(CheckpointRecipe, "checkpoints")
    tensorboard: Literal["auto", "always", "never"] = opt(
        "auto", "figures also into RUN/tensorboard; auto: where the package tensorboard is installed"
    )
    control: Literal["none", "shuffled-labels"] = opt(
        "none", "shuffled-labels: training labels dealt out to other patches, which must not be learnable"
    )
