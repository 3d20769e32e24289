"""Stopping early on purpose: a signal sets a flag, the loop looks at it between steps."""

import signal
from types import FrameType

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class StopRequest:
    """True in `asked` once USR1, USR2 or TERM has come. Slurm sends these before a time limit and at preemption."""

    def __init__(self) -> None:
        self.asked = ""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
