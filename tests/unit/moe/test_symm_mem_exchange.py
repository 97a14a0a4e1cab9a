"""Dispatch through symmetric memory: the stand-in of torch's operations against examples by hand
(test_all_to_all_vdev_2d and _offset in torch's test/distributed/test_nvshmem.py draw theirs), and
what the layer's side of it does where steps do not follow each other as usual."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.predict import candidates
from moe import spec
from moe.parallel import symm_mem
from moe.parallel.row_counts import RowCounts
from moe.parallel.symm_mem_limits import Room
from moe.spec import Unsupported
from tests.support.fake_cuda import DEVICE, FakeCuda
from tests.support.fake_symm_mem import FakeSymmMem, from_experts, to_experts

GROUP = "0"
ROOM = Room(slots=5, rows=8, row_bytes=8, places=2)


# The layouts: 2 ranks, 2 experts on each. Rank 0 has the slices c0 to c3 for experts 0 to 3, of
# 2, 0, 1 and 1 rows; rank 1 has d0 to d3, of 1, 0, 0 and 3.
SPLITS = [[2, 0, 1, 1], [1, 0, 0, 3]]


def test_rows_come_by_expert_then_by_source() -> None:
    # (source rank, its row, row here, rows): c0 d0, then the empty expert 1
    here = [(0, 0, 0, 2), (1, 0, 2, 1), (0, 2, 3, 0), (1, 1, 3, 0)]
    assert to_experts(SPLITS, 0, align=1) == here
    there = [(0, 2, 0, 1), (1, 1, 1, 0), (0, 3, 1, 1), (1, 1, 2, 3)]  # c2 d2 c3 d3
    assert to_experts(SPLITS, 1, align=1) == there


def test_experts_begin_at_multiples_and_an_empty_one_takes_up_room() -> None:
    assert [a.target for a in to_experts(SPLITS, 1, align=8)] == [0, 1, 8, 9]
    empty_first = [[0, 1], [0, 2]]  # one rank with one expert each
    assert [a.target for a in to_experts(empty_first, 0, align=8)] == [0, 0]
    three = [[0, 1, 0, 2]]  # one rank with four experts, two of them empty
    assert [a.target for a in to_experts(three, 0, align=1)] == [0, 1, 2, 3]
    assert [a.target for a in to_experts(three, 0, align=4)] == [0, 4, 8, 12]


def test_rows_go_back_by_rank_then_by_its_experts_without_gaps() -> None:
    # what `to_experts` leaves with align=8: rank 0 has c0 d0 | (8:) nothing, rank 1 c2 | (8:) c3 d3
    tables = [([2, 1, 0, 0], [0, 2, 8, 8]), ([1, 0, 1, 3], [0, 1, 8, 9])]
    # to rank 0: c0 c1 from rank 0, c2 c3 from rank 1
    assert from_experts(tables, 0) == [(0, 0, 0, 2), (0, 8, 2, 0), (1, 0, 2, 1), (1, 8, 3, 1)]
    # to rank 1: d0 d1, d2 d3
    assert from_experts(tables, 1) == [(0, 2, 0, 1), (0, 8, 1, 0), (1, 1, 1, 0), (1, 9, 1, 3)]


class Peers:
    """Rank 0 of `ranks`; the others have the same tables and rows, or those in `theirs`."""

    def __init__(self, ranks: int = 2) -> None:
        self.ranks, self.theirs = ranks, list[Any]()

    def gather(self, group: str, mine: Any) -> list[Any]:
        return [mine, *(self.theirs.pop(0) if self.theirs else mine for _ in range(self.ranks - 1))]


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    with FakeCuda(), FakeSymmMem(made.gather, lambda group: 0) as memory:
        memory.set_backend("NVSHMEM")
        made.memory = memory  # type: ignore[attr-defined]
        yield made


def symmetric(peers: Any, values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    given = torch.tensor(values, dtype=dtype)
    made: Tensor = peers.memory.empty(given.numel(), dtype=dtype, device=DEVICE)
    peers.memory.rendezvous(made, GROUP)
    made.value.copy_(given.reshape(-1))  # type: ignore[attr-defined]
    return made.view(given.shape)


def arguments(peers: Any, rows: int = 6) -> dict[str, Tensor]:
    """Of all_to_all_vdev_2d on rank 0 with SPLITS; the other rank's rows are 10, 11, 12, 13."""
    peers.theirs = []
    made = {
        "rows": symmetric(peers, [[0.0], [1.0], [2.0], [3.0]]),
        "out": symmetric(peers, [[5.0]] * rows),
        "splits": symmetric(peers, SPLITS[0], torch.int64),
        "layout": symmetric(peers, [[-1] * 4, [-1] * 4], torch.int64),
    }
    peers.theirs = [(SPLITS[1], torch.tensor([[10.0], [11.0], [12.0], [13.0]]))]
    return made


def call(made: dict[str, Tensor], align: int = 1) -> None:
    torch.ops.symm_mem.all_to_all_vdev_2d(*made.values(), GROUP, major_align=align)


def value(x: Tensor) -> list[Any]:
    found: list[Any] = x.value.nan_to_num(-1).tolist()  # type: ignore[attr-defined]
    return found


def test_an_operation_writes_rows_and_their_layout_and_leaves_the_rest_undefined(
    peers: Peers,
) -> None:
    made = arguments(peers)
    call(made)
    assert value(made["out"]) == [[0.0], [1.0], [10.0], [-1], [-1], [-1]]
    assert value(made["layout"]) == [[2, 1, 0, 0], [0, 2, 3, 3]]
    assert value(made["splits"]) == SPLITS[0]
    table = symmetric(peers, [[2, 1, 0, 0], [0, 2, 3, 3]], torch.int64)
    back, returned = symmetric(peers, [[0.0]] * 4), symmetric(peers, [[0] * 4] * 2, torch.int64)
    peers.theirs = [(([1, 0, 1, 3], [0, 1, 1, 2]), torch.tensor([[2.0], [3.0], [11.0], [12.0]]))]
    torch.ops.symm_mem.all_to_all_vdev_2d_offset(made["out"], back, table, returned, GROUP)
    assert value(back) == [[0.0], [1.0], [2.0], [3.0]]
    assert value(returned) == [[2, 0, 1, 1], [0, 2, 2, 3]]


@pytest.mark.parametrize(("change", "message"), [
    ({"rows": torch.bfloat16}, "same dtype and same stride"),
    ({"splits": torch.int32}, "must be int64"),
    ({"out": "ordinary"}, "not within any SymmetricMemory allocation"),
    ({"rows": "transposed"}, "must be contiguous"),
    ({"out": "short"}, "illegal memory access"),
    ({"layout": "flat"}, "2D with 2 rows"),
    ({"rows": "few"}, "sum of splits is larger"),
    ({"out": "rows"}, "reads what it writes to"),
    ({"rows": "later"}, "must begin where it was made"),
])  # fmt: skip
def test_what_the_operations_do_not_take_is_refused(
    peers: Peers, change: dict[str, Any], message: str
) -> None:
    made = arguments(peers, rows=2 if change.get("out") == "short" else 6)
    theirs, peers.theirs = peers.theirs, []
    ((name, kind),) = change.items()
    changes: dict[Any, Any] = {
        torch.bfloat16: lambda: symmetric(peers, [[0.0]] * 4, torch.bfloat16),
        torch.int32: lambda: symmetric(peers, SPLITS[0], torch.int32),
        "ordinary": lambda: torch.zeros(6, 1, device=DEVICE),
        "transposed": lambda: symmetric(peers, [[0.0] * 4] * 4).t(),
        "short": lambda: made["out"],
        "flat": lambda: made["layout"].view(-1),
        "few": lambda: made["rows"][:2],
        "rows": lambda: made["rows"],
        "later": lambda: symmetric(peers, [[0.0]] * 6)[2:],
    }
    made[name] = changes[kind]()
    peers.theirs = theirs
    with pytest.raises((RuntimeError, AssertionError), match=message):
        call(made)


def test_memory_of_other_sizes_on_other_ranks_is_refused(peers: Peers) -> None:
    peers.theirs = [((7,), "torch.float32")]
    with pytest.raises(RuntimeError, match="not the same on all ranks"):
        symmetric(peers, [0.0] * 6)


def test_what_others_may_still_read_must_not_change(peers: Peers) -> None:
    made = arguments(peers)
    call(made)
    made["rows"].value[0] = 9  # type: ignore[attr-defined]
    peers.theirs = []
    with pytest.raises(RuntimeError, match="other ranks may still read"):
        call(made)


# The layer's side of it.


class Group:
    """Rank 0 of two; `meetings` counts how often the ranks met beside operations."""

    def __init__(self) -> None:
        self.pg = SimpleNamespace(group_name=GROUP)
        self.ranks, self.size, self.index, self.name, self.meetings = (0, 1), 2, 0, "ep", 0
        self.comm = SimpleNamespace(device=DEVICE, is_counting=False)

    def line_up(self) -> None: ...

    def meet(self) -> None:
        self.meetings += 1


@pytest.fixture
def exchange(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> symm_mem.Exchange:
    monkeypatch.setattr(symm_mem, "_kept", {})
    return symm_mem.Exchange(Group(), ROOM)  # type: ignore[arg-type]


def forward(exchange: symm_mem.Exchange, x: Tensor) -> Tensor:
    """Both ranks send a row to each of the 4 places, and the experts do nothing."""
    counts = RowCounts(counts_P=torch.ones(4, dtype=torch.int64, device=DEVICE))
    return exchange.back(exchange.there(x, counts), len(x))


def tokens(requires_grad: bool = False) -> Tensor:
    x = torch.arange(8, dtype=torch.float32, device=DEVICE).view(4, 2)
    return x.requires_grad_(requires_grad)


def test_what_goes_there_comes_back_and_so_do_gradients(exchange: symm_mem.Exchange) -> None:
    assert value(forward(exchange, tokens())) == [[0, 1], [2, 3], [0, 1], [2, 3]]  # from the peer
    x = tokens(requires_grad=True)
    y = forward(exchange, x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None and value(x.grad) == [[1, 1]] * 4


def test_a_backward_pass_after_another_forward_pass_is_refused(
    exchange: symm_mem.Exchange,
) -> None:
    y = forward(exchange, tokens(requires_grad=True))
    forward(exchange, tokens())
    with pytest.raises(RuntimeError, match="overwritten by a later one before its backward pass"):
        y.backward(torch.ones_like(y))


def test_ranks_meet_after_a_step_that_was_not_finished(exchange: symm_mem.Exchange) -> None:
    group: Any = exchange.group
    forward(exchange, tokens())
    forward(exchange, tokens())
    assert group.meetings == 0
    counts = RowCounts(counts_P=torch.ones(4, dtype=torch.int64, device=DEVICE))
    exchange.there(tokens(), counts)  # as far as experts that run out of memory
    exchange.there(tokens(), counts)
    assert group.meetings == 1


def test_buffers_are_shared_by_copies_and_by_layers_that_they_are_large_enough_for(
    exchange: symm_mem.Exchange,
) -> None:
    group: Any = exchange.group
    buffers = exchange.buffers
    assert copy.deepcopy(exchange).buffers is buffers
    assert symm_mem.buffers_of(group, Room(2, 4, 16, 2)) is buffers  # wider, but fewer bytes
    assert symm_mem.buffers_of(group, ROOM._replace(rows=9)) is not buffers
    assert symm_mem.buffers_of(group, ROOM._replace(slots=6)) is not buffers
    assert symm_mem.buffers_of(group, ROOM._replace(places=1)) is not buffers
    assert symm_mem.buffers_of(group, ROOM) is buffers


def test_the_end_of_a_place_is_the_start_of_the_next(exchange: symm_mem.Exchange) -> None:
    exchange.buffers.arrived_2X.value.copy_(  # type: ignore[attr-defined]
        torch.tensor([[0, 0, 2, 3], [0, 0, 1, 3]])  # the first place is empty
    )
    counts = exchange.counts()
    assert value(counts.ends(DEVICE)) == [1, 6]
    assert value(counts.per_expert(DEVICE)) == [0, 5]
    assert counts.on_host == [0, 5]


def test_without_nvshmem_it_is_refused_by_name() -> None:
    group: Any = Group()
    memory = FakeSymmMem(Peers().gather, lambda name: 0, available=False)
    with FakeCuda(), memory, pytest.raises(Unsupported) as refused:
        symm_mem.buffers_of(group, ROOM)
    assert str(refused.value).startswith(
        "strategy.dispatcher=symm_mem: allowed is symm_mem where torch finds NVSHMEM; install torch"
    )


# Nowhere a default.


def test_nothing_asks_for_it_but_a_config() -> None:
    proposed = {
        one.dispatcher
        for degrees in (False, True)
        for one in candidates.strategies(8, degrees=degrees, overlap=True)
    }
    assert proposed == set(spec.DISPATCHERS) - set(spec.EXPERIMENTAL)
    root = Path(__file__).resolve().parents[3]
    files = list((root / "conf").rglob("*.yaml"))
    assert len(files) > 20
    assert [path for path in files if "symm_mem" in path.read_text("utf-8")] == []


def test_the_stand_in_has_torchs_arguments() -> None:
    for name in ("all_to_all_vdev_2d", "all_to_all_vdev_2d_offset"):
        schema = getattr(torch.ops.symm_mem, name).default._schema
        ours = getattr(FakeSymmMem, name).__code__
        words = ours.co_varnames[1 : ours.co_argcount]
        assert words[1:] == tuple(argument.name for argument in schema.arguments)[1:]
