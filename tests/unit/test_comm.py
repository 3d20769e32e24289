"""Ranks: what one process stands in for, normalisation over a global batch, and refusals."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from jeoparda import comm
from jeoparda.comm import Single, SyncBatchNorm2d, cores_of, synchronise_norm
from jeoparda.errors import CommError, JeopardaError, Stopped
from jeoparda.launchers import LAUNCHERS


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name, _ in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


class Threads:
    """`size` ranks as threads of this process: a sum waits for all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(size, timeout=60)

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        with self._lock:
            self._parts.setdefault(name, []).append(tensor)
        self._barrier.wait()
        total = torch.stack(self._parts[name]).sum(0)
        self._barrier.wait()
        self._parts.pop(name, None)
        self._barrier.wait()
        return total


def norm(total: Callable[[torch.Tensor, str], torch.Tensor] | None, seed: int = 0) -> nn.BatchNorm2d:
    """A BatchNorm2d of 5 channels with random weights, or its synchronised twin."""
    made = nn.BatchNorm2d(5, eps=1e-3, momentum=0.2).double()
    g = torch.Generator().manual_seed(seed)
    for p in (made.weight, made.bias, made.running_mean, made.running_var):
        p.data.copy_(torch.rand(5, generator=g, dtype=torch.float64) + 0.5)
    if total:
        made.__class__ = SyncBatchNorm2d
        made.total, made.label = total, "norm.test"
    return made


def data(batch: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and the gradient that comes back, both (batch, 5, 6, 3) float64."""
    g = torch.Generator().manual_seed(1)
    shift = torch.tensor([0.0, 3.0, -2.0, 0.1, 7.0], dtype=torch.float64)[:, None, None]
    x = torch.randn(batch, 5, 6, 3, generator=g, dtype=torch.float64) + shift
    return x, torch.randn(batch, 5, 6, 3, generator=g, dtype=torch.float64)


def passed(layer: nn.BatchNorm2d, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that one forward and backward pass gives and changes."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    out = {"y": y.detach(), "dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}
    return out | {k: v.clone() for k, v in layer.named_buffers()}


def test_synchronised_norm_of_one_rank_is_torch_s_own():
    x, dy = data()
    expected, found = passed(norm(None), x, dy), passed(norm(lambda t, _: t.clone()), x, dy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cut", [[4, 3], [1, 6], [2, 4, 1]])
def test_synchronised_norm_over_ranks_is_torch_s_on_the_merged_batch(cut):
    x, dy = data()
    expected = passed(norm(None), x, dy)
    ranks = Threads(len(cut))
    found: list[dict[str, torch.Tensor]] = [{} for _ in cut]

    def rank(i: int, xi: torch.Tensor, dyi: torch.Tensor) -> None:
        found[i] = passed(norm(ranks.sum), xi, dyi)

    parts = enumerate(zip(x.split(cut), dy.split(cut), strict=True))
    threads = [threading.Thread(target=rank, args=(i, *part)) for i, part in parts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for name in ("y", "dx"):
        torch.testing.assert_close(torch.cat([f[name] for f in found]), expected[name], atol=1e-12, rtol=1e-12)
    for name in ("dweight", "dbias"):  # of each rank its own part: the optimizer sums them, like all gradients
        torch.testing.assert_close(sum(f[name] for f in found), expected[name], atol=1e-12, rtol=1e-12)
    for f in found:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(f[name], expected[name], atol=1e-12, rtol=1e-12)


def test_local_norm_is_another_matter():
    x, dy = data()
    merged, local = passed(norm(None), x, dy), passed(norm(None), x[:4], dy[:4])
    assert (merged["y"][:4] - local["y"]).abs().max() > 1e-2  # so the tests above can fail


def test_gradients_against_finite_differences():
    layer, (x, _) = norm(lambda t, _: t.clone()), data(2)

    def forward(x, weight, bias):
        return comm._SyncNorm.apply(x, weight, bias, layer.eps, layer.total, "n")[0]

    inputs = [t.detach().clone().requires_grad_() for t in (x[:, :, :2, :2], layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(forward, inputs, eps=1e-6, atol=1e-6)


def test_evaluation_uses_running_statistics_and_asks_no_one():
    def never(*_):
        raise AssertionError("evaluation asked the other ranks")

    x, _ = data()
    torch.testing.assert_close(norm(never).eval()(x), norm(None).eval()(x), rtol=0, atol=0)


def test_synchronise_norm_turns_all_and_only_with_others():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    assert not any(isinstance(m, SyncBatchNorm2d) for m in synchronise_norm(model, Single()).modules())
    names = {k: v.shape for k, v in model.state_dict().items()}
    synchronise_norm(model, Threads(2))  # type: ignore[arg-type]
    found = [m for m in model.modules() if isinstance(m, SyncBatchNorm2d)]
    assert len(found) == 2 and len({m.label for m in found}) == 2  # a name of its own for each message
    assert {k: v.shape for k, v in model.state_dict().items()} == names


def test_one_process_is_its_own_ranks():
    one = comm.start()
    assert isinstance(one, Single) and (one.rank, one.size, one.local_rank, one.local_size) == (0, 1, 0, 1)
    t = torch.ones(3)
    total = one.sum(t, "x")
    total += 1
    assert t.tolist() == [1, 1, 1]  # a new tensor
    assert one.gather("a", "x") == ["a"] and one.broadcast("a", "x") == "a"


@pytest.mark.parametrize(("name", "who"), [(n, w) for n, w in LAUNCHERS])
def test_the_launcher_is_recognised(monkeypatch, name, who):
    monkeypatch.setenv(name, "4")
    assert comm.launched() == (4, who)


def test_mpirun_within_a_slurm_step_counts_as_mpirun(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert comm.launched()[0] == 2


def test_several_ranks_refuse_to_be_single(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(CommError, match=r"mpirun \(Open MPI\) launched 2 ranks, but comm=single"):
        comm.start("single")


class Fake(Single):
    """Horovod that found `size` ranks."""

    backend, size = "horovod", 1


@pytest.mark.parametrize(("name", "found"), [("SLURM_STEP_NUM_TASKS", 1), ("OMPI_COMM_WORLD_SIZE", 4)])
def test_ranks_that_did_not_find_each_other_are_refused(monkeypatch, name, found):
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(comm, "Horovod", type("Other", (Fake,), {"size": found}))
    with pytest.raises(CommError, match=rf"started 2 ranks, but Horovod sees {found} .*try --mpi=pmix"):
        comm.start()


def test_without_horovod_several_ranks_are_refused(monkeypatch):
    def absent():
        raise ImportError("No module named 'horovod'")

    monkeypatch.setattr(comm, "Horovod", absent)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(CommError, match="asks for 2 ranks, but Horovod is not installed"):
        comm.start()
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
    assert isinstance(comm.start(), Single)


def left(monkeypatch, error: BaseException, size: int) -> tuple[list[int], list[int]]:
    """How `abandon` leaves after `error`: exit codes of the process, and how often the backend was closed."""
    exits: list[int] = []
    closed: list[int] = []
    ranks = type("Ranks", (Fake,), {"size": size, "rank": 1, "close": lambda _: closed.append(1)})()
    monkeypatch.setattr(comm.os, "_exit", exits.append)
    try:
        raise error
    except BaseException:
        comm.abandon(ranks)
    return exits, closed


def test_after_an_error_a_rank_leaves_at_once_and_says_which_it_was(monkeypatch, capsys):
    assert left(monkeypatch, JeopardaError("no disk"), 4) == ([1], [])
    assert capsys.readouterr().err == "jeoparda: rank 1 of 4: no disk\n"
    assert left(monkeypatch, RuntimeError("bug"), 4) == ([1], [])
    assert "Traceback" in capsys.readouterr().err


def test_a_stop_on_purpose_and_a_single_process_close_in_peace(monkeypatch):
    assert left(monkeypatch, Stopped("time is up"), 4) == ([], [1])
    assert left(monkeypatch, RuntimeError("bug"), 1) == ([], [1])


@pytest.mark.parametrize(
    ("hosts", "bound", "share"),
    [
        (["here"] * 4, [{0, 1}, {2, 3}, {4, 5}, {6, 7}], 2),  # srun --cpu-bind=cores: each has its own
        (["here"] * 4, [set(range(8))] * 4, 2),  # mpirun --bind-to none: all share all
        (["here", "here", "there", "there"], [set(range(8))] * 4, 4),
        (["here"] * 4, [{0, 1}, {0, 1}, {2, 3}, {2, 3}], 1),
        (["here"] * 4, [{0}] * 4, 1),
    ],
)
def test_a_rank_s_cores_are_those_that_no_other_has(monkeypatch, hosts, bound, share):
    class Ranks(Single):
        def gather(self, value, name):
            assert value == ("here", bound[0])
            return list(zip(hosts, bound, strict=True))

    monkeypatch.setattr(comm.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(comm.os, "sched_getaffinity", lambda _: bound[0])
    assert cores_of(Ranks()) == share
