"""The job script: submitit's own, with what a site wants before the ranks and what a stop wants after them."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from jeoparda.errors import LaunchError
from jeoparda.launch.site import SiteRecipe
from jeoparda.signals import EXIT_RESUMABLE
from jeoparda.stages import STAGES

ATTEMPT = "jeoparda: attempt"  # begins the line by which the batch log tells one start of a job from the next


def batch_log(folder: Path, job_id: str) -> Path:
    """What the job script and srun say; %j stands for the job."""
    return folder / f"{job_id}_batch.log"


def rank_log(folder: Path, job_id: str, rank: int | str, stream: str) -> Path:
    """What a rank says on `out` or `err`: submitit's names."""
    return folder / f"{job_id}_{rank}_log.{stream}"


def stop_mark(folder: Path, job_id: str) -> Path:
    """The file by which rank 0 tells the job script that the stage saved and stopped early.

    Not an exit code: with --kill-on-bad-exit the first rank to leave with one would end the others, rank 0 perhaps
    in the middle of its checkpoint, and srun would report how they were killed.
    """
    return folder / f"{job_id}_stopped"


def starts_file(folder: Path, job_id: str) -> Path:
    """A line for each start of the job: how far its stage had come."""
    return folder / f"{job_id}_starts"


def make_executor(stage: str, site: SiteRecipe, folder: Path) -> Any:
    """submitit's Slurm executor for this stage. Making one asks nothing of Slurm, so that a dry run works anywhere."""
    try:
        from submitit import SlurmExecutor
    except ImportError as e:
        raise LaunchError(f"submitit is not installed ({e}); `pip install jeoparda[slurm]` brings it") from e

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # the base class wants srun in the PATH already here

    executor = Executor(folder, python=site.python or shlex.quote(sys.executable))
    executor.update_parameters(**_parameters(stage, site, folder.absolute()))
    return executor


def text(executor: Any) -> str:
    """The script that the executor gives to sbatch."""
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _parameters(stage: str, site: SiteRecipe, folder: Path) -> dict[str, Any]:
    log = str(batch_log(folder, "%j"))
    more: dict[str, Any] = {"output": log, "error": log, "time": site.time, **_gpus(site), **site.sbatch}
    if site.requeue:
        more["requeue"] = True  # also where the site's own default is not to
    if site.min_nodes:
        more["no-kill"] = True  # a lost node ends the ranks, but not this script, which may go on without it
    wanted = {
        "job_name": f"jeoparda-{stage}",
        "time": math.ceil(site.time_s / 60),
        "nodes": site.nodes,
        "ntasks_per_node": site.ranks_per_node,
        "cpus_per_task": site.cpus_per_rank,
        "signal_delay_s": site.signal_before_s,
        "setup": _before(site, folder),
        "teardown": _after(stage, site, folder),
        "srun_args": _srun(site),
        "additional_parameters": more,
        "wckey": None,  # submitit's own would be refused where keys are checked
    }
    optional = {name: getattr(site, name) for name in ("partition", "account", "qos", "constraint", "mem")}
    return wanted | {name: value for name, value in optional.items() if value}


def _gpus(site: SiteRecipe) -> dict[str, str]:
    if not site.gpus_per_node:
        return {}
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    if site.gpus == "gres":
        return {"gres": f"gpu:{kind}{site.gpus_per_node}"}
    return {"gpus-per-node": f"{kind}{site.gpus_per_node}"}


def _srun(site: SiteRecipe) -> list[str]:
    words = [f"--mpi={site.mpi}"] if site.mpi else []
    words += ["--kill-on-bad-exit=1", "--open-mode=append"]
    words += [f"--cpus-per-task={site.cpus_per_rank}"]  # not inherited from sbatch since Slurm 22.05
    words += [f"--cpu-bind={site.cpu_bind}"] if site.cpu_bind else []
    return words + site.srun


def _before(site: SiteRecipe, folder: Path) -> list[str]:
    return [
        "trap : TERM USR1 USR2  # for the ranks: this shell outlives them, to put the job back into the queue",
        *[f"module load {shlex.quote(name)}" for name in site.modules],
        *[f"export {name}={shlex.quote(value)}" for name, value in site.env.items()],
        # as the job's size is now; Slurm keeps that of its submission
        *([f"export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * {site.ranks_per_node}))"] if site.min_nodes else []),
        *site.setup,
        f"stopped={shlex.quote(str(folder))}/{stop_mark(Path(), '${SLURM_JOB_ID}')}",
        'rm -f "$stopped"',
        f'echo "{ATTEMPT} $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date)"',
    ]


def _after(stage: str, site: SiteRecipe, folder: Path) -> list[str]:
    lines = ["code=$?", f'[ $code -eq 0 ] && [ -e "$stopped" ] && code={EXIT_RESUMABLE}']
    if STAGES[stage].elastic:
        log = f"{shlex.quote(str(folder))}/{batch_log(Path(), '${SLURM_JOB_ID}')}"
        lines += [
            "# A rank was killed, or left because others were gone or stood still, and none by an error of its own,",
            "# which would come again.",
            f"[ $code -ne 0 ] && awk '/^{ATTEMPT}/ {{ lost = mistake = 0 }}",
            "  /^srun: error: Node failure on / { lost = 1 }",
            "  /^srun: error: .*: tasks? [0-9,-]+: / {",
            f"    if (/Out Of Memory/ || /Exited with exit code/ && !/exit code {EXIT_RESUMABLE}$/) mistake = 1",
            "    else lost = 1",
            f"  }} END {{ exit mistake || !lost }}' {log} && code={EXIT_RESUMABLE}",
        ]
    if site.requeue:
        lines += [
            "# RUNNING: not cancelled meanwhile.",
            f"if [ $code -eq {EXIT_RESUMABLE} ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {site.max_requeues} ] &&",
            '  scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q " JobState=RUNNING "; then',
            '  echo "jeoparda: stopped early; back into the queue, to go on from its last checkpoint"',
            *(_count() if site.min_nodes else []),
            '  scontrol requeue "$SLURM_JOB_ID" || exit $code',
            *(_shrink(site) if site.min_nodes else []),
            "  sleep 30",
            "fi",
        ]
    return [*lines, "exit $code", ""]


def _count() -> list[str]:
    """How many of the job's nodes can be had again."""
    gone = "down|drain|drng|fail|maint|[*]"  # *: does not answer
    return [f'  n=$(sinfo -h -N -n "$SLURM_JOB_NODELIST" -o "%N %t" | sort -u | grep -Ecv "{gone}")']


def _shrink(site: SiteRecipe) -> list[str]:
    """After the requeue, which ends what this shell calls, and the shell some seconds later: what waits can be made
    smaller, what runs cannot."""
    ranks, cpus = site.ranks_per_node, site.ranks_per_node * site.cpus_per_rank
    size = f"NumNodes=$n-$n NumTasks=$((n * {ranks})) NumCPUs=$((n * {cpus}))"
    return [
        f"  if [ $n -ge {site.min_nodes} ] && [ $n -lt $SLURM_JOB_NUM_NODES ]; then",
        '    echo "jeoparda: going on with the $n nodes that are left"',
        f'    until scontrol update JobId="$SLURM_JOB_ID" {size}; do sleep 0.2; done',
        "  fi",
    ]
