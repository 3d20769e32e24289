"""What one rank does in the tests of the backends:
`python -m tests.parallel.backend_ranks WHAT BACKEND FOLDER [KEY=VALUE of the exchange...]`.

It writes what it found to FOLDER/RANK.pt, and leaves as a stage would.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jeoparda.comm import Comm, ExchangeRecipe, abandon, same_everywhere, start, synchronise_norm
from jeoparda.errors import CommError, RanksLost

STEPS, BATCH = 5, 16


def net() -> nn.Sequential:
    """A small network with two norms, the same on every rank, float64."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.BatchNorm2d(4))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9, 5)).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The step's global batch: images (16, 3, 9, 9) and targets (16, 5), float64."""
    g = torch.Generator().manual_seed(100 + step)
    images = torch.randn(BATCH, 3, 9, 9, generator=g, dtype=torch.float64)
    return images, torch.randn(BATCH, 5, generator=g, dtype=torch.float64)


def trained(comm: Comm, parts: int, compiled: bool = False) -> dict[str, torch.Tensor]:
    """Weights and buffers after STEPS steps, whose parts are each spread over all ranks."""
    model = synchronise_norm(net(), comm)
    if compiled:
        model.compile()
    averaging = comm.average(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), parts)
    comm.same_weights(model)
    for step in range(STEPS):
        averaging.optimizer.zero_grad()
        for part, (images, wanted) in enumerate(zip(*(t.chunk(parts) for t in batch(step)), strict=True)):
            here = slice(comm.rank, None, comm.size)
            loss = (averaging.forward(images[here]) - wanted[here]).square().sum() / BATCH
            averaging.backward(loss * comm.size, part == parts - 1)
        averaging.finish()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        with averaging.stepping():
            averaging.optimizer.step()
    same_everywhere(comm, dict(model.named_parameters()), "weights")
    return model.state_dict()


def averages(comm: Comm) -> Any:
    return {parts: trained(comm, parts) for parts in (1, 2)}


def compiled(comm: Comm) -> Any:
    return trained(comm, 1, compiled=True)


def collectives(comm: Comm) -> Any:
    n, r = comm.size, comm.rank
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64):
        mine = torch.arange(6).reshape(2, 3).to(dtype) * (r + 1)
        kept = mine.clone()
        total = comm.sum(mine, f"sum.{dtype}")
        assert torch.equal(mine, kept)
        assert torch.equal(total, torch.arange(6).reshape(2, 3).to(dtype) * (n * (n + 1) // 2)), total
    assert comm.sum(torch.tensor(2.0), "scalar").item() == 2 * n
    assert torch.equal(comm.sum(mine.t() + 1, "strided"), total.t() + n)
    found = comm.gather({"rank": r, "long": "x" * 1000 * r}, "gather")
    assert found == [{"rank": i, "long": "x" * 1000 * i} for i in range(n)]
    assert comm.broadcast({"from": r}, "broadcast") == {"from": 0}
    model = net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(r)
    comm.same_weights(model)
    for name, tensor in net().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    comm.barrier()
    return [r, n, comm.local_rank, comm.local_size]


def gradients(comm: Comm) -> Any:
    """Of a step of one part whose gradient on rank r is `pulls(size)[r]`, without the loop's factor of size."""
    model = nn.Linear(6, 1, bias=False)
    averaging = comm.average(model, torch.optim.SGD(model.parameters(), lr=1.0))
    averaging.backward(averaging.forward(pulls(comm.size)[comm.rank]).sum(), True)
    averaging.finish()
    return model.weight.grad


def pulls(size: int) -> torch.Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(5))


def parted(comm: Comm) -> Any:
    """The last rank holds two weights in each other's place."""
    model = net()
    same_everywhere(comm, dict(model.named_parameters()), "weights before")
    if comm.rank == comm.size - 1:
        weight = model[3].weight.data.view(-1)
        weight[[0, 1]] = weight[[1, 0]]
    try:
        same_everywhere(comm, dict(model.named_parameters()), "weights after")
    except CommError as e:
        return str(e)
    raise AssertionError("not noticed")


def mistaken(comm: Comm) -> Any:
    """Shapes that differ between ranks."""
    try:
        comm.sum(torch.ones(2 + comm.rank), "mistaken")
    except RanksLost:
        raise AssertionError("taken for a lost rank") from None
    except RuntimeError as e:
        return str(e)
    raise AssertionError("not noticed")


def lost(comm: Comm) -> Any:
    """The last rank is killed while the others wait for it."""
    comm.barrier()
    if comm.rank == comm.size - 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    comm.sum(torch.ones(1000), "the sum of the test")


def lost_in_training(comm: Comm) -> Any:
    """The last rank is killed in the middle of a step, whose gradients and norms the others wait for."""
    model = synchronise_norm(net(), comm)
    averaging = comm.average(model, torch.optim.SGD(model.parameters(), lr=0.05))
    for step in range(1000):
        if comm.rank == comm.size - 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        averaging.optimizer.zero_grad()
        averaging.backward(averaging.forward(batch(0)[0]).sum(), True)
        averaging.finish()
        with averaging.stepping():
            averaging.optimizer.step()


def late(comm: Comm) -> Any:
    """Rank 0 comes to the end long after the others."""
    comm.barrier()
    if comm.rank == 0:
        time.sleep(3)


CHECKS = (averages, compiled, collectives, gradients, parted, mistaken, lost, lost_in_training, late)


def main(what: str, backend: str, folder: str, *words: str) -> None:
    exchange: dict[str, Any] = dict(word.split("=") for word in words)
    for number in exchange.keys() & {"fusion_mb", "cycle_ms"}:
        exchange[number] = float(exchange[number])
    comm = start(backend, ExchangeRecipe(**exchange))  # type: ignore[arg-type]
    try:
        found = {f.__name__: f for f in CHECKS}[what](comm)
    except BaseException:
        abandon(comm)
        raise
    torch.save(found, Path(folder) / f"{comm.rank}.pt")
    comm.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
