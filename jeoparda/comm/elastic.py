"""Going on with the ranks that are left, as Horovod's elastic launcher has them."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from jeoparda.comm.horovod import Horovod
from jeoparda.comm.protocol import Backend, Comm, ExchangeRecipe
from jeoparda.errors import CommError, RanksLost
from jeoparda.signals import EXIT_RESUMABLE, asked

T = TypeVar("T")


def elastic(act: Callable[[Comm], T], backend: Backend, exchange: ExchangeRecipe) -> T:
    """`act` with the ranks there are; when some are gone, again with those that are left, as often as it takes. So
    `act` has to go on by itself from what it saved. CommError where the launcher cannot do without a rank."""
    if os.environ.get("HOROVOD_ELASTIC") != "1" or backend not in ("auto", "horovod"):
        raise CommError(
            "--elastic: wants Horovod's ranks, started by horovodrun with --min-np, as in `horovodrun -np 8 --min-np 4 "
            "-H a:4,b:4 jeoparda train ...`; other launchers end all ranks with one: start the run again on fewer, and "
            "it goes on"
        )
    import horovod.torch as hvd
    from horovod.common.elastic import State
    from horovod.common.exceptions import HorovodInternalError

    class Nothing(State):  # type: ignore[misc]
        """All that is to be kept is in the last checkpoint."""

        save = restore = sync = lambda self: None

    @hvd.elastic.run  # type: ignore[untyped-decorator]
    def attempt(_: State) -> T:
        comm = Horovod(exchange)
        try:
            return act(comm)
        except RanksLost as e:
            stop = asked()
            then = f"ended, as told by {stop}" if stop else "going on with the nodes that are left"
            print(f"jeoparda: rank {comm.rank} of {comm.size}: {e}; {then}", file=sys.stderr, flush=True)
            if stop:
                os._exit(EXIT_RESUMABLE)
            raise HorovodInternalError(str(e)) from e  # by which Horovod knows to gather the ranks anew

    result: T = attempt(Nothing(hvd.broadcast_object, hvd.rank))
    hvd.shutdown()
    return result
