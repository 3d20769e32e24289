"""How a job stands, and how it ended: from Slurm's own word and srun's messages, not from files a job may have left.

submitit takes a result pickle, also an old one, for the end of a job, and a lost node for its end though Slurm runs
the job again. Here a job has ended when the controller says so, and well when its exit code is 0.
"""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jeoparda.errors import LaunchError, Stopped
from jeoparda.launch.script import ATTEMPT, batch_log, rank_log
from jeoparda.signals import EXIT_RESUMABLE

_ON_ITS_WAY = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "STOPPED", "RESIZING", "")
_MAY_COME_BACK = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
_COME_BACK_S = 20.0  # how long a job in one of these may take to be back in the queue
_HELD = (
    "JobHeldAdmin",
    "JobHoldMaxRequeue",
    "launch_failed_requeued_held",
    "BadConstraints",
    "DependencyNeverSatisfied",
)
_TAIL = 15  # lines of a log that an error shows

# srun: error: node2: task 3: Exited with exit code 1      srun: error: node1: tasks 0-1: Killed
_RANK_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (?!unknown)(.+?)(?: \(core dumped\))?$", re.M)


@dataclass(frozen=True)
class State:
    """How a job stands. `code` is its exit code once it has ended."""

    name: str  # Slurm's: PENDING, RUNNING, COMPLETED ...
    reason: str = ""
    nodes: str = ""
    code: int = 0
    signal: int = 0
    restarts: int = 0
    requeue: bool = False


def _slurm(*words: str) -> tuple[str, str]:
    """(stdout, stderr) of a Slurm command; ("", why) where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        return "", str(e)
    return (done.stdout, "") if done.returncode == 0 else ("", done.stderr.strip())


def parse(line: str) -> State:
    """A job of `scontrol --oneliner show job`."""
    found = dict(re.findall(r"(?:^|\s)(JobState|Reason|NodeList|ExitCode|Restarts|Requeue)=(\S*)", line))
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    tidy = {k: "" if v in ("(null)", "None") else v for k, v in found.items()}
    return State(
        tidy.get("JobState", ""),
        tidy.get("Reason", ""),
        tidy.get("NodeList", ""),
        int(code),
        int(number or 0),
        int(found.get("Restarts", "0")),
        found.get("Requeue") == "1",
    )


def state(job_id: str) -> State | None:
    """The job as the controller knows it, or accounting where it has forgotten; None when neither answers now."""
    out, _ = _slurm("scontrol", "--oneliner", "show", "job", job_id)
    if out.strip():
        return parse(out)
    out, _ = _slurm("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,NodeList")
    if not out.strip():
        return None
    name, exit_code, nodes = out.strip().splitlines()[-1].split("|")
    code, _, number = exit_code.partition(":")
    return State(name.split()[0], "", nodes, int(code), int(number))


def wait(job_id: str, folder: Path, poll_s: float, say: Callable[[str], None], since: float = 0.0) -> State:
    """Follow the job to its end, whatever restarts it takes, and say what rank 0 says. Returns the last state.

    `since`: time of submission; a log from before it is another job's, of a cluster that counted anew.
    Raises LaunchError when Slurm holds the job back for good, or answers no more for ten minutes.
    """
    last, heard, doubt = "", time.monotonic(), 0.0
    output = _follow(rank_log(folder, job_id, 0, "out"), since)
    while True:
        now = state(job_id)
        for line in next(output):
            say(line)
        if now is None:
            if time.monotonic() - heard > 600:
                raise LaunchError(f"job {job_id}: neither scontrol nor sacct knows of it any more; see {folder}")
            time.sleep(poll_s)
            continue
        heard = time.monotonic()
        spoken = f"job {job_id} {now.name}" + _details(now)
        if spoken != last:
            say(spoken)
            last = spoken
        if now.name == "PENDING" and now.reason in _HELD:
            raise LaunchError(f"job {job_id} will not start: {now.reason}; see `scontrol show job {job_id}`")
        if now.name in _MAY_COME_BACK and now.requeue:
            doubt = doubt or heard
            if heard - doubt > _COME_BACK_S:
                return now
        elif now.name not in _ON_ITS_WAY:
            return now
        else:
            doubt = 0.0
        time.sleep(poll_s)


def _details(now: State) -> str:
    told = [now.reason if now.name == "PENDING" else "", f"on {now.nodes}" if now.nodes else ""]
    told += [f"restart {now.restarts}" if now.restarts else ""]
    words = ", ".join(t for t in told if t)
    return f" ({words})" if words else ""


def _follow(path: Path, since: float) -> Iterator[list[str]]:
    """The whole lines that a file has gained since the last time; the file may not be there yet."""
    at = path.stat().st_size if path.exists() and path.stat().st_mtime < since else 0
    while True:
        lines: list[str] = []
        if path.exists():
            with open(path, "rb") as f:
                f.seek(at)
                new = f.read()
            whole = new.rfind(b"\n") + 1
            at += whole
            lines = [
                line for line in new[:whole].decode(errors="replace").splitlines() if not line.startswith("submitit ")
            ]
        yield lines


def judge(job_id: str, folder: Path, end: State) -> None:
    """Nothing when the job ended well. Stopped when it saved and stopped early, LaunchError otherwise."""
    if end.name == "COMPLETED" and end.code == 0:
        return
    rank = first_to_fail(_read(batch_log(folder, job_id)))
    if end.name == "FAILED" and end.code == EXIT_RESUMABLE:
        lost = f": rank {rank[0]} on {rank[1]} {rank[2]}" if rank else " and saved"
        raise Stopped(f"job {job_id} stopped early{lost}; submit it again to go on (logs: {folder}/{job_id}_*)")
    told = [f"job {job_id} ended as {end.name}" + _how(end) + _advice(end)]
    if rank is None:
        told += [f"log: {batch_log(folder, job_id)}", *_tail(batch_log(folder, job_id))]
    else:
        number, node, how = rank
        log = rank_log(folder, job_id, number, "err")
        told += [f"rank {number} on {node}: {how}; its log: {log}", *_tail(log)]
        told += [f"all logs: {folder}/{job_id}_*"]
    raise LaunchError("\n".join(told))


def _how(end: State) -> str:
    code = f", signal {end.signal}" if end.signal else f", exit code {end.code}" if end.code else ""
    return code + (f" on {end.nodes}" if end.nodes else "")


def _advice(end: State) -> str:
    if end.name == "TIMEOUT":
        return ": the time limit came before it could save; take a longer --time or a larger signal_before_s"
    if end.name == "OUT_OF_MEMORY":
        return ": ask for more memory (site key mem), or take a smaller batch"
    return ""


def first_to_fail(log: str) -> tuple[int, str, str] | None:
    """(rank, node, how) of the rank that srun saw fail first in the last attempt; None when it tells of none."""
    last = log[log.rfind(ATTEMPT) :] if ATTEMPT in log else log
    match = _RANK_ENDED.search(last)
    if match is None:
        return None
    node, ranks, how = match.groups()
    return int(re.split("[,-]", ranks)[0]), node, how[:1].lower() + how[1:]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _tail(path: Path) -> list[str]:
    lines = [line for line in _read(path).splitlines() if line.strip()]
    return [f"    {line}" for line in lines[-_TAIL:]] or ["    (nothing was written there)"]
