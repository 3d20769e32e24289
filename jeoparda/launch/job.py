"""What each rank of a job runs: the stage, as the command line would."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jeoparda import stages
from jeoparda.errors import JeopardaError, LaunchError, Stopped
from jeoparda.launch.script import starts_file, stop_mark
from jeoparda.signals import STOPPING, ignore_late

_AGAIN_S = 1.0  # when a signal that came too early is sent again
IDLE_STARTS = 3  # so many in a row that saved nothing are enough


@dataclass
class StageJob:
    """Goes to the job as submitit's pickle. It holds no state: a stage keeps its own, and goes on from there."""

    stage: str
    recipe: Path  # the resolved recipe, as it was at submission
    folder: Path

    def __call__(self) -> None:
        """Run the stage, to leave with an exit code that the job script understands."""
        self._forget()
        _listen(later=stages.STAGES[self.stage].ranks == "comm")
        try:
            self._refuse_to_stand_still()
            stages.call(self.stage, self.recipe, ())
        except Stopped as e:
            print(f"jeoparda: {e}", file=sys.stderr, flush=True)
            if _rank() == 0:
                stop_mark(self.folder, _job()).touch()
        except JeopardaError as e:
            print(f"jeoparda: {e}", file=sys.stderr, flush=True)
            sys.exit(1)
        finally:
            ignore_late()

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """For a signal between submitit's start and ours: the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args, **kwargs)

    def _forget(self) -> None:
        """A result that an earlier attempt left would be taken for this one's."""
        from submitit import JobEnvironment

        JobEnvironment().paths.result_pickle.unlink(missing_ok=True)

    def _refuse_to_stand_still(self) -> None:
        """LaunchError on rank 0 when the last starts of this job all began where this one would."""
        if _rank() != 0 or not stages.STAGES[self.stage].elastic:
            return
        file = starts_file(self.folder, _job())
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # else the file is another job's of this number
        before = file.read_text().splitlines() if again and file.exists() else []
        here = stages.progress(self.stage, self.recipe)
        if before[-IDLE_STARTS:] == [here] * IDLE_STARTS:
            raise LaunchError(
                f"{IDLE_STARTS} starts of this job in a row ended before they saved anything after {here}, so that a "
                f"further one would too; {self.folder}/{_job()}_* tell how each ended"
            )
        file.write_text("".join(f"{line}\n" for line in (*before, here)))


def _job() -> str:
    return os.environ["SLURM_JOB_ID"]


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def _listen(later: bool) -> None:
    """Take the signals over from submitit, whose handlers know nothing of a stage's state.

    A stage with ranks takes them in turn as soon as it can save (`later`): until then a signal is kept and sent
    again, for ranks must stop together. Any other stage may stop anywhere, and finds what is done when run again.
    """

    def note(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not later:
            raise Stopped(f"stopped by {name}; started again, it goes on with what is left")
        timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    for number in STOPPING:
        signal.signal(number, note)
