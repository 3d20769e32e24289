"""Stopping early on purpose: a signal sets a flag, the loop looks at it between steps."""

import signal
from types import FrameType

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later
STOPPING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)  # what Slurm sends before a time limit and at preemption


def ignore_late() -> None:
    """To call when a stage has ended: a signal that comes now must not turn its end into a failure."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """`asked` is the signal's name once one has come, "" before."""

    def __init__(self) -> None:
        self.asked = ""
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name


def asked() -> str:
    """What the newest StopRequest of this process was asked, "" without any."""
    newest = getattr(signal.getsignal(STOPPING[0]), "__self__", None)
    return newest.asked if isinstance(newest, StopRequest) else ""
