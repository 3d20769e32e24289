"""The small training that the tests of this folder start, stop and compare."""

from pathlib import Path


def train_recipe(folder: Path, store: Path, more: str) -> Path:
    """A recipe file in `folder` for a run in FOLDER/run, in steps small enough that rounding does not grow; `more`:
    further keys, as YAML."""
    path = folder / "train.yaml"
    path.write_text(
        f"{{store: {store}, run: {folder / 'run'}, model: {{width: 16}}, feed: {{kind: plain}}, "
        f"optimizer: {{kind: sgd, lr: 0.002}}, {more}}}\n"
    )
    return path


def rank_of(pid: int) -> int:
    """The rank of a process that Open MPI's mpirun started."""
    variables = dict(word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word)
    return int(variables["OMPI_COMM_WORLD_RANK"])
