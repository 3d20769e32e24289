"""A rank that is gone, told from a mistake: only the first is worth another start."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jeoparda.errors import RanksLost

# What Horovod, Gloo and NCCL say when a peer's process or node has ended. All other errors of an exchange are
# mistakes, such as tensors of different shapes, which would come again at each start.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|connect(ion)? .*timed? ?out|broken pipe|socket (closed|timeout)"
    r"|horovod has been shut down|remote process exited|no route to host|network is unreachable"
    r"|timed out waiting .*(recv|send|ms for)|watchdog .*timeout|timeout caused pair closure"
    r"|failed to connect.*timed out|socket has timed out|communicator was aborted",
    re.IGNORECASE | re.DOTALL,
)


@contextmanager
def told_from_mistakes(what: str) -> Iterator[None]:
    """RanksLost for an error in the exchange `what` that says that another rank is gone; all others pass."""
    try:
        yield
    except RuntimeError as e:  # also Horovod's HorovodInternalError and torch's DistBackendError
        if isinstance(e, RanksLost) or not _GONE.search(str(e)):
            raise
        said = " ".join(str(e).split())[:150]
        raise RanksLost(
            f"a rank is gone, waited for in {what} ({said}); the run goes on from its last checkpoint when started "
            "again"
        ) from e
