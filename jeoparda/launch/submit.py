"""From a stage and its recipe to a job in the queue."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jeoparda.config import dump, load
from jeoparda.errors import LaunchError
from jeoparda.launch import script
from jeoparda.launch.job import StageJob
from jeoparda.launch.site import SiteRecipe
from jeoparda.stages import STAGES


@dataclass(frozen=True)
class Work:
    """What a job is to do: a stage, with a recipe."""

    stage: str
    recipe: str | Path
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submitted:
    """A job in the queue, and where its logs will be."""

    job_id: str
    folder: Path


def dry_run(work: Work, site: SiteRecipe, folder: Path) -> str:
    """The job script that `submit` would give to sbatch. Nothing is written, and Slurm need not be there."""
    _resolve(work, site)
    return script.text(script.make_executor(work.stage, site, folder))


def submit(work: Work, site: SiteRecipe, folder: Path) -> Submitted:
    """Put the stage into the queue. Its recipe is kept in `folder` as it is now: editing the file later, while the
    job waits or between its restarts, changes nothing. Raises RecipeError, and LaunchError when sbatch refuses."""
    recipe_text = dump(_resolve(work, site))
    executor = script.make_executor(work.stage, site, folder)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise LaunchError("there is no sbatch here: submit on a login node, or install Slurm's client programs")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{work.stage}-{hashlib.sha256(recipe_text.encode()).hexdigest()[:12]}.yaml"
    kept.write_text(recipe_text)
    try:
        job = executor.submit(StageJob(work.stage, kept, folder))
    except (FailedJobError, FailedSubmissionError) as e:
        raise LaunchError(f"sbatch refuses the job: {e}") from e
    return Submitted(job.job_id, folder)


def _resolve(work: Work, site: SiteRecipe) -> Any:
    """The stage's recipe, checked: what cannot work never reaches the queue. Raises RecipeError, LaunchError."""
    stage = STAGES[work.stage]
    if site.ranks > 1 and stage.ranks == "one":
        raise LaunchError(
            f"{work.stage} is one process, which uses the CPUs of one node itself; {site.nodes} node(s) x "
            f"{site.ranks_per_node} rank(s) would do its work {site.ranks} times over: take --nodes 1 "
            "--ranks-per-node 1, and as many --cpus-per-rank as it has workers"
        )
    return load(stage.recipe_type(), work.recipe, work.words)
