"""How ranks find each other where the launcher does not bring them together.

mpirun's ranks hear of rank 0 by mpi4py, horovodrun's by its key-value store, torchrun's by its own variables. Slurm
only says who they are and on which nodes. So `meet` has the first rank wait at a port that follows from the job and the
step, on the first node of the step. Where another program has that port the next of PORTS is taken; a rank knows by a
token that it found its own step's. When all have come, each is told where the real service is.
"""

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import psutil  # type: ignore[import-untyped]

from jeoparda.errors import CommError
from jeoparda.launchers import Place, first_node

PORTS = 8  # tried, of FIRST_PORT to LAST_PORT, which lie below those that Linux gives to outgoing connections
FIRST_PORT, LAST_PORT = 20_000, 32_000
MEET_S = 300.0  # until all ranks must have come: starting from a cold filesystem takes minutes
LINE = 10_000  # characters at most
NAMED = 8  # missing ranks that are told one by one
_ANSWER_S = 10.0  # of whoever has the port; it may be another program, which says nothing


def step_token(env: Mapping[str, str] = os.environ) -> str:
    """What only the ranks of this start of this Slurm step have in common."""
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return ".".join(["jeoparda", *(env.get(name, "-") for name in names), str(os.getuid())])


def ports(token: str) -> list[int]:
    """Where rank 0 may wait, the same on all ranks."""
    return random.Random(hashlib.sha256(token.encode()).digest()).sample(range(FIRST_PORT, LAST_PORT), PORTS)


def meet(place: Place, host: str, token: str, serve: Callable[[], Any], wait_s: float = MEET_S) -> tuple[Any, str, str]:
    """When all ranks have come: (what rank 0's `serve` gives, by JSON; rank 0's address; this rank's own).

    host: rank 0's. Addresses are those by which nodes reach each other. CommError when not all come within `wait_s`
    seconds, naming those that are missing.
    """
    until = time.monotonic() + wait_s
    return _wait_for_all(place, token, serve, until) if place.rank == 0 else _ask(place, host, token, until)


def _wait_for_all(place: Place, token: str, serve: Callable[[], Any], until: float) -> tuple[Any, str, str]:
    asked: dict[int, socket.socket] = {}
    address = "127.0.0.1"
    with _listen(token) as server:
        while len(asked) < place.size - 1:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise CommError(_missing(place, set(asked))) from None
            hello = _hello(connection, token)
            if hello:  # else a stranger, or a rank that asks again
                asked[hello["rank"]] = connection
                if hello["node"] != place.node:
                    address = connection.getsockname()[0]
    service = serve()
    for rank, connection in asked.items():
        with connection:
            try:
                _write(connection, {"service": service, "address": address})
            except OSError as e:
                raise CommError(f"rank {rank} ended while the ranks gathered ({e})") from e
    return service, address, address


def _hello(connection: socket.socket, token: str) -> dict[str, Any]:
    """What a rank of ours says, which is answered; {} for others, who hear nothing."""
    with connection.makefile() as lines:
        hello = _read(connection, lines, _ANSWER_S)
    if hello.get("token") == token:
        try:
            _write(connection, {"token": token})
            return hello
        except OSError:
            connection.close()
            return {}
    connection.close()
    return {}


def _missing(place: Place, asked: set[int]) -> str:
    missing = [str(rank) for rank in range(1, place.size) if rank not in asked]
    named = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
    return (
        f"of {place.size} ranks, {named} did not come to rank 0 on {socket.gethostname()}: see whether they ended "
        "early, and whether nodes reach each other"
    )


def _listen(token: str) -> socket.socket:
    for port in ports(token):
        try:
            return socket.create_server(("", port), backlog=1024)
        except OSError:
            continue  # taken; the others, who try the same ports, hear that it is not us
    raise CommError(
        f"{socket.gethostname()}: ports {', '.join(map(str, ports(token)))} are taken; start the step again"
    )


def _ask(place: Place, host: str, token: str, until: float) -> tuple[Any, str, str]:
    last = "nobody answers"
    while time.monotonic() < until:
        for port in ports(token):
            try:
                with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
                    told = _told(place, connection, token, until)
                    own = connection.getsockname()[0]
            except OSError as e:  # rank 0 is not there yet, or waits at another port
                last = str(e)
                continue
            if told:
                return told["service"], told["address"], own if place.node else told["address"]
        time.sleep(0.2)
    raise CommError(
        f"rank {place.rank} of {place.size} on {socket.gethostname()} did not find rank 0 on {host} ({last}): see "
        "whether it ended early, and whether nodes reach each other"
    )


def _told(place: Place, connection: socket.socket, token: str, until: float) -> dict[str, Any]:
    """What rank 0 says when all have come; {} from a stranger at its port."""
    _write(connection, {"token": token, "rank": place.rank, "node": place.node})
    with connection.makefile() as lines:
        if _read(connection, lines, _ANSWER_S).get("token") != token:
            return {}
        told = _read(connection, lines, until - time.monotonic())
    if not told:
        raise CommError(f"rank {place.rank} found rank 0, which ended before all ranks had come")
    return told


def _write(connection: socket.socket, value: dict[str, Any]) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _read(connection: socket.socket, lines: TextIO, wait_s: float) -> dict[str, Any]:
    """One line of JSON; {} where the other end says nothing in time, hangs up, or says something else."""
    connection.settimeout(max(wait_s, 0.01))
    try:
        value = json.loads(lines.readline(LINE))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def interface_of(address: str) -> str:
    """The network interface that has this IP address. CommError where none has."""
    found = psutil.net_if_addrs()
    for name, addresses in found.items():
        if address in (a.address for a in addresses):
            return name
    raise CommError(f"{socket.gethostname()}: no network interface has {address}; there are {', '.join(found)}")


def step_meet(place: Place, serve: Callable[[], Any]) -> tuple[Any, str]:
    """`meet` of the ranks of a Slurm step: (what rank 0 serves, its address). Gloo is told the interface that leads to
    the others, where nobody chose one: by itself it takes that of the node's name, which may be the loopback."""
    host = first_node(os.environ.get("SLURM_STEP_NODELIST", "")) or "localhost"
    service, address, own = meet(place, host, step_token(), serve)
    for variable in ("HOROVOD_GLOO_IFACE", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface_of(own))
    return service, address
