"""Ranks: what one process stands in for, normalisation over a global batch, how ranks meet, and refusals."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jeoparda import comm
from jeoparda.comm import ExchangeRecipe, Single, SyncBatchNorm2d, cores_of, norm, rendezvous, same_everywhere
from jeoparda.comm.ddp import refuse
from jeoparda.comm.lost import told_from_mistakes
from jeoparda.comm.norm import synchronise_norm
from jeoparda.comm.rendezvous import interface_of, meet, ports
from jeoparda.comm.same import checksum
from jeoparda.errors import CommError, JeopardaError, RanksLost, RecipeError, Stopped
from jeoparda.launchers import LAUNCHERS, Place, first_node, launched, place, tasks_per_node


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*(name for name, _ in LAUNCHERS), "RANK", "SLURM_PROCID", "MPI_LOCALRANKID"):
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


def layer_of(total: Callable[[torch.Tensor, str], torch.Tensor] | None, seed: int = 0) -> nn.BatchNorm2d:
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
    expected, found = passed(layer_of(None), x, dy), passed(layer_of(lambda t, _: t.clone()), x, dy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cut", [[4, 3], [1, 6], [2, 4, 1]])
def test_synchronised_norm_over_ranks_is_torch_s_on_the_merged_batch(cut):
    x, dy = data()
    expected = passed(layer_of(None), x, dy)
    ranks = Threads(len(cut))
    found: list[dict[str, torch.Tensor]] = [{} for _ in cut]

    def rank(i: int, xi: torch.Tensor, dyi: torch.Tensor) -> None:
        found[i] = passed(layer_of(ranks.sum), xi, dyi)

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


def test_statistics_are_left_alone_where_they_are_not_tracked():
    """As while activations are computed again: the first pass has counted the batch already."""
    x, dy = data()
    layer = layer_of(lambda t, _: t.clone())
    layer.track_running_stats = False
    before = {k: v.clone() for k, v in layer.named_buffers()}
    found, expected = passed(layer, x, dy), passed(layer_of(None), x, dy)
    torch.testing.assert_close(found["dx"], expected["dx"], atol=1e-12, rtol=1e-12)
    for name, value in before.items():
        assert torch.equal(found[name], value), name


def test_without_a_momentum_statistics_are_plain_means():
    own, synchronised = layer_of(None), layer_of(lambda t, _: t.clone())
    for layer in (own, synchronised):
        layer.momentum = None
        for batch in (3, 5, 2):
            layer(data(batch)[0])
    for name, value in own.named_buffers():
        torch.testing.assert_close(dict(synchronised.named_buffers())[name], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_types_and_memory_format_are_kept(dtype, digits, memory):
    """Weights and moments are float32 under autocast: only input and output are rounded."""
    x, dy = (t.to(dtype).contiguous(memory_format=memory) for t in data())
    layer = layer_of(lambda t, _: t.clone()).float()
    expected = passed(layer_of(None), x.double(), dy.double())
    found = passed(layer, x, dy)
    for name in ("y", "dx"):
        assert found[name].dtype == dtype and found[name].is_contiguous(memory_format=memory)
    for name, value in expected.items():
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error < 4 * digits if name in ("y", "dx") else error < 1e-5, (name, error)


def test_local_norm_is_another_matter():
    x, dy = data()
    merged, local = passed(layer_of(None), x, dy), passed(layer_of(None), x[:4], dy[:4])
    assert (merged["y"][:4] - local["y"]).abs().max() > 1e-2  # so the tests above can fail


def test_gradients_against_finite_differences():
    layer, (x, _) = layer_of(lambda t, _: t.clone()), data(2)

    def forward(x, weight, bias):
        return norm._SyncNorm.apply(x, weight, bias, layer.eps, layer.total, "n")[0]

    inputs = [t.detach().clone().requires_grad_() for t in (x[:, :, :2, :2], layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(forward, inputs, eps=1e-6, atol=1e-6)


def test_evaluation_uses_running_statistics_and_asks_no_one():
    def never(*_):
        raise AssertionError("evaluation asked the other ranks")

    x, _ = data()
    torch.testing.assert_close(layer_of(never).eval()(x), layer_of(None).eval()(x), rtol=0, atol=0)


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


@pytest.mark.parametrize(("name", "who"), LAUNCHERS)
def test_the_launcher_is_recognised(monkeypatch, name, who):
    monkeypatch.setenv(name, "4")
    if who == "torchrun":
        assert launched() == (1, "")  # job scripts set WORLD_SIZE for other programs
        monkeypatch.setenv("RANK", "0")
    assert launched() == (4, who)


def test_mpirun_within_a_slurm_step_counts_as_mpirun(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert launched()[0] == 2


def test_srun_that_serves_pmi2_is_not_taken_for_mpich(monkeypatch):
    for name, value in {"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == (4, "srun")
    monkeypatch.setenv("MPI_LOCALRANKID", "0")  # its mpiexec sets this, also within a step
    assert launched() == (4, "mpiexec (MPICH)")


STEP = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_rank_of_srun_knows_its_place(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert place() == Place("srun", 3, 5, 1, 2, 1, (2, 2, 1))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SLURM_PROCID", "", "srun started 5 ranks, but SLURM_PROCID='' does not say which one this is"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x2)", r"started 5 ranks, but SLURM_STEP_TASKS_PER_NODE=2\(x2\)"),
        ("SLURM_NODEID", "3", "on node 3"),
    ],
)
def test_a_place_that_cannot_be_is_refused(monkeypatch, name, value, message):
    for key, text in (STEP | {name: value}).items():
        monkeypatch.setenv(key, text)
    with pytest.raises(CommError, match=message):
        place()


@pytest.mark.parametrize(
    ("short", "counts"), [("4", (4,)), ("2(x3),1", (2, 2, 2, 1)), ("1,12(x2)", (1, 12, 12)), ("", ())]
)
def test_slurm_s_short_form_of_counts(short, counts):
    assert tasks_per_node(short) == counts


@pytest.mark.parametrize(
    ("short", "first"),
    [
        ("node1", "node1"),
        ("gpu[03-07,9],cpu1", "gpu03"),
        ("a,b[1-2]", "a"),
        ("r[1-2]n[4,6-8]-ib,x", "r1n4-ib"),
        ("n[007]", "n007"),
    ],
)
def test_the_first_node_of_slurm_s_short_form(short, first):
    assert first_node(short) == first


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
    monkeypatch.setattr(comm, "Horovod", lambda _: type("Other", (Fake,), {"size": found})())
    with pytest.raises(CommError, match=rf"started 2 ranks, but Horovod sees {found} .*try --mpi=pmix"):
        comm.start()


def test_without_horovod_several_ranks_are_refused(monkeypatch):
    def absent(_):
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
    assert left(monkeypatch, RanksLost("a rank is gone"), 4) == ([75], [])  # closing would wait for it
    assert capsys.readouterr().err == "jeoparda: rank 1 of 4: a rank is gone\n"
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


# ---- whether all ranks hold the same


class Gathering(Single):
    """Rank `rank` of ranks whose values are known."""

    def __init__(self, others: list[dict[str, torch.Tensor]], rank: int) -> None:
        self._others, self.rank, self.size, self.gathers = others, rank, len(others), 0

    def gather(self, value: Any, name: str) -> list[Any]:
        self.gathers += 1
        sums = [{k: checksum(t).item() for k, t in held.items()} for held in self._others]
        found = [hash(tuple(s.values())) for s in sums] if name == "same.whole" else sums
        assert found[self.rank] == value
        return found


def flipped(t: torch.Tensor, at: int, bit: int) -> torch.Tensor:
    raw = np.frombuffer(t.numpy().tobytes(), np.uint8).copy()
    raw[at * t.element_size() + bit // 8] ^= 1 << bit % 8
    return torch.frombuffer(raw, dtype=t.dtype).reshape(t.shape)


DTYPES = [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
    t = (torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 50).abs().to(dtype)
    sums = {checksum(flipped(t, at, bit)).item() for at in range(21) for bit in range(8 * t.element_size())}
    assert len(sums) == 21 * 8 * t.element_size() and checksum(t).item() not in sums


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_counts(dtype):
    t = torch.arange(40).to(dtype)
    if dtype.is_floating_point:
        t[1] = -t[30]  # apart by the sign's bit alone
    for i, j in ((0, 1), (1, 30), (3, 35), (38, 39)):
        other = t.clone()
        other[[i, j]] = other[[j, i]]
        assert checksum(other) != checksum(t), (i, j)
    assert checksum(t.clone()) == checksum(t)


def test_what_differs_is_named_on_all_ranks_alike():
    same = {"a": torch.randn(5), "b": torch.randn(4, 4), "c": torch.randn(3)}
    odd = {name: t.clone() for name, t in same.items()}
    odd["b"][3, 3] += 1e-6
    odd["c"][0] += 1
    held = [same, odd, same, odd]
    for rank in range(4):
        with pytest.raises(CommError, match="weights after epoch 3: b differs from rank 0 on rank 1, 3: "):
            same_everywhere(Gathering(held, rank), held[rank], "weights after epoch 3")
    quiet = Gathering([same, same], 0)
    same_everywhere(quiet, same, "weights")
    assert quiet.gathers == 1  # one number a rank


# ---- a rank that is gone


@pytest.mark.parametrize(
    "said",
    [
        "[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:42683",
        "[/x/gloo/transport/tcp/pair.cc:589] Read error [127.0.0.1]:21224: Connection reset by peer",
        "Horovod has been shut down. This was caused by an exception on one of the ranks",
        "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21",
    ],
)
def test_a_lost_rank_is_told_from_a_mistake(said):
    with pytest.raises(RanksLost, match="a rank is gone, waited for in the sum"), told_from_mistakes("the sum"):
        raise RuntimeError(said)


@pytest.mark.parametrize("said", ["Mismatched ALLREDUCE tensor shapes", "CUDA out of memory", "NCCL invalid usage"])
def test_a_mistake_stays_what_it_is(said):
    with pytest.raises(RuntimeError, match=said) as e, told_from_mistakes("the sum"):
        raise RuntimeError(said)
    assert not isinstance(e.value, RanksLost)


# ---- meeting


def ranks_of(size: int, nodes: int = 1) -> list[Place]:
    per = size // nodes
    return [Place("srun", r, size, r % per, per, r // per, (per,) * nodes) for r in range(size)]


def met(places: list[Place], token: str, wait_s: float = 30, delay_s: float = 0) -> list[Any]:
    """What `meet` gives or raises for each of these ranks, each a thread; rank 0 comes last."""
    found: list[Any] = [None] * len(places)

    def come(i: int) -> None:
        time.sleep(delay_s * (places[i].rank == 0))
        try:
            found[i] = meet(places[i], "localhost", token, lambda: {"port": 1234}, wait_s)
        except CommError as e:
            found[i] = str(e)

    threads = [threading.Thread(target=come, args=(i,)) for i in range(len(places))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


def test_ranks_meet_also_when_the_first_comes_late():
    assert met(ranks_of(4, 2), "late", delay_s=1) == [({"port": 1234}, "127.0.0.1", "127.0.0.1")] * 4


def test_a_port_that_another_program_has_is_passed_over(monkeypatch):
    """One says nothing, one says something, the third port is free."""
    monkeypatch.setattr(rendezvous, "_ANSWER_S", 0.5)
    silent, loud = (socket.create_server(("", port)) for port in ports("taken")[:2])

    def shout() -> None:
        while True:
            try:
                connection, _ = loud.accept()
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            except OSError:
                return

    threading.Thread(target=shout, daemon=True).start()
    with silent, loud:
        assert met(ranks_of(3), "taken") == [({"port": 1234}, "127.0.0.1", "127.0.0.1")] * 3
        loud.shutdown(socket.SHUT_RDWR)


def test_strangers_are_not_taken_for_ranks():
    def knock() -> None:
        time.sleep(0.3)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "another step", "rank": 1, "node": 0}\n'):
            with socket.create_connection(("localhost", ports("mine")[0]), timeout=5) as connection:
                connection.sendall(words)
                assert connection.recv(100) == b""

    stranger = threading.Thread(target=knock)
    stranger.start()
    here = ranks_of(2)
    first = threading.Thread(target=lambda: met(here[:1], "mine"))
    first.start()
    stranger.join()
    assert met(here[1:], "mine") == [({"port": 1234}, "127.0.0.1", "127.0.0.1")]
    first.join()


def test_ranks_that_never_come_are_named():
    first, second = met(ranks_of(4)[:2], "absent", wait_s=1.5)
    assert "of 4 ranks, 2, 3 did not come to rank 0 on " in first
    assert "rank 1 found rank 0, which ended before all ranks had come" in second or "rank 1 of 4" in second


def test_without_a_first_rank_the_others_end():
    (told,) = met(ranks_of(2)[1:], "nobody", wait_s=0.5)
    assert "rank 1 of 2 on " in told and "did not find rank 0 on localhost" in told and "refused" in told


def test_ports_are_those_of_the_step():
    assert ports("a") == ports("a") and len(set(ports("a"))) == rendezvous.PORTS
    assert not set(ports("a")) & set(ports("b"))
    assert all(rendezvous.FIRST_PORT <= port < rendezvous.LAST_PORT for port in ports("a"))


def test_the_interface_is_known_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(CommError, match=r"no network interface has 203.0.113.7; there are .*lo"):
        interface_of("203.0.113.7")


@pytest.mark.parametrize(
    ("exchange", "key"),
    [({"reduce": "adasum"}, "reduce"), ({"reduce": "hierarchical"}, "reduce"), ({"cycle_ms": 2.0}, "cycle_ms")],
)
def test_what_ddp_cannot_do_is_refused_by_its_key(exchange, key):
    refuse(ExchangeRecipe(compression="float16", fusion_mb=8.0))
    with pytest.raises(RecipeError, match=f"exchange.{key} = "):
        refuse(ExchangeRecipe(**exchange))
