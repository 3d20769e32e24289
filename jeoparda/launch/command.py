"""`jeoparda submit`: a stage as a Slurm job."""

from pathlib import Path
from time import time as now
from typing import Any

import click

from jeoparda.stages import STAGES


@click.command()
@click.option("--site", "name", default="generic", show_default=True, help="A shipped profile, or a YAML file.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes.")
@click.option("--min-nodes", type=click.IntRange(1), help="Go on with so many at least when nodes are lost.")
@click.option("--ranks-per-node", type=click.IntRange(1), help="Ranks on each node.")
@click.option("--gpus-per-node", type=click.IntRange(0), help="GPUs on each node.")
@click.option("--cpus-per-rank", type=click.IntRange(1), help="CPUs for each rank.")
@click.option("--time", metavar="HH:MM:SS", help="Time limit.")
@click.option("--partition", help="Partition.")
@click.option("--account", help="Account that pays.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default="jobs", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the job script, submit nothing.")
@click.option("--wait", is_flag=True, help="Stay until the job has ended, and exit as it did.")
@click.argument("stage", type=click.Choice(list(STAGES)), metavar="STAGE")
@click.argument("recipe", type=click.Path(dir_okay=False), metavar="RECIPE")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
def submit(
    name: str, folder: Path, dry_run: bool, wait: bool, stage: str, recipe: str, words: tuple[str, ...], **over: Any
) -> None:
    """Run STAGE with RECIPE as a Slurm job. The recipe is checked first, and kept as it is now.

    The job's size and limits come from the site's profile; the options here go over it. Logs lie in --folder.
    """
    from jeoparda.launch import submit as module
    from jeoparda.launch.site import find

    site = find(name, **over)
    work = module.Work(stage, recipe, words)
    if dry_run:
        click.echo(module.dry_run(work, site, folder), nl=False)
        return
    since = now()
    job = module.submit(work, site, folder)
    click.echo(f"job {job.job_id}: {stage} on {site.nodes} node(s) x {site.ranks_per_node} rank(s)")
    if wait:
        _see_out(job.job_id, job.folder, site.poll_s, since)
    else:
        _tell_how(job.job_id, job.folder)


def _tell_how(job_id: str, folder: Path) -> None:
    click.echo(f"logs:   {folder}/{job_id}_*")
    click.echo(f"state:  squeue -j {job_id}")
    click.echo(f"follow: tail -F {folder}/{job_id}_0_log.out {folder}/{job_id}_batch.log")


def _see_out(job_id: str, folder: Path, poll_s: float, since: float) -> None:
    from jeoparda.launch import watch

    try:
        end = watch.wait(job_id, folder, poll_s, click.echo, since)
    except KeyboardInterrupt:
        click.echo(f"the job goes on; `scancel {job_id}` ends it", err=True)
        raise
    watch.judge(job_id, folder, end)
