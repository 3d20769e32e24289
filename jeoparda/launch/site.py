"""Sites: what every job at a supercomputing centre needs, as a YAML profile."""

from pathlib import Path
from typing import Any, Literal

from jeoparda.config import as_dict, check, load, opt, recipe
from jeoparda.errors import RecipeError

PROFILES = Path(__file__).parent / "sites"  # shipped with the package; slurm/sites of a checkout points here


@recipe
class SiteRecipe:
    """A Slurm site, and the size of a job there. The options of `jeoparda submit` go over it."""

    partition: str = opt("", "partition; empty: the site's default")
    account: str = opt("", "account that pays; empty: the user's default")
    qos: str = opt("", "quality of service; empty: the default")
    constraint: str = opt("", "node features that a job asks for, as for sbatch --constraint")
    time: str = opt("01:00:00", "time limit", "HH:MM:SS", pattern=r"^\d+:[0-5]\d:[0-5]\d$")
    nodes: int = opt(1, "nodes", ge=1)
    min_nodes: int = opt(0, "when nodes are lost the job goes on with so many at least; 0: with all", ge=0)
    ranks_per_node: int = opt(1, "ranks on each node; one a GPU", ge=1)
    cpus_per_rank: int = opt(1, "CPUs for each rank: its reading threads and DALI's", ge=1)
    gpus_per_node: int = opt(0, "GPUs on each node; all its ranks see them all", ge=0)
    gpus: Literal["gpus-per-node", "gres"] = opt("gpus-per-node", "how the site wants GPUs asked for")
    gpu_type: str = opt("", "type of GPU, such as a100; empty: any")
    mem: str = opt("", "memory a node, as for sbatch --mem, such as 64G; empty: the site's default")
    mpi: str = opt("pmix", "plugin for srun --mpi that Horovod's MPI was built for; empty: the site's default")
    cpu_bind: str = opt("cores", "srun --cpu-bind; empty: the site's default")
    modules: list[str] = opt([], "modules to load, in this order")
    setup: list[str] = opt([], "shell lines before the ranks start, after modules and env")
    env: dict[str, str] = opt({}, "environment variables of the job")
    python: str = opt("", "command of the job's Python, as in a container; empty: the one that submits")
    signal_before_s: int = opt(120, "ranks are told to save and stop this long before the time limit", "s", ge=10)
    requeue: bool = opt(True, "a job that was told to stop, preempted, or lost a node or rank goes back into the queue")
    max_requeues: int = opt(50, "after so many, a stopped job stays stopped", ge=0)
    sbatch: dict[str, str] = opt({}, "more options for sbatch, without the dashes")
    srun: list[str] = opt([], "more options for srun, as they stand")
    poll_s: float = opt(10.0, "how often --wait asks Slurm", "s", gt=0)

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        hours, minutes, seconds = (int(part) for part in self.time.split(":"))
        return hours * 3600 + minutes * 60 + seconds


def profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def find(name: str, **over: Any) -> SiteRecipe:
    """The profile of that name, or in that YAML file, with `over` laid on it where not None.

    Raises RecipeError when there is none, or it cannot work.
    """
    path = PROFILES / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
    elif not path.exists():
        raise RecipeError(f"site {name!r}: there are {', '.join(profiles())}, or give the path of a YAML file")
    data = as_dict(load(SiteRecipe, path)) | {key: value for key, value in over.items() if value is not None}
    site = check(SiteRecipe, data, f"site {name}")
    if site.signal_before_s >= site.time_s:
        raise RecipeError(
            f"site {name}: signal_before_s = {site.signal_before_s} leaves nothing of time = {site.time}; "
            "take a longer --time, or a profile with a smaller signal_before_s"
        )
    if site.min_nodes > site.nodes:
        raise RecipeError(f"site {name}: min_nodes = {site.min_nodes} is more than nodes = {site.nodes}; take fewer")
    return site
