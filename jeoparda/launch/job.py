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
from jeoparda.errors import JeopardaError, Stopped
from jeoparda.launch.script import stop_mark
from jeoparda.signals import STOPPING, ignore_late

_AGAIN_S = 1.0  # when a signal that came too early is sent again


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
            stages.call(self.stage, self.recipe, ())
        except Stopped as e:
            print(f"jeoparda: {e}", file=sys.stderr, flush=True)
            if _rank() == 0:
                stop_mark(self.folder, os.environ["SLURM_JOB_ID"]).touch()
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
