"""Other systems' layers: refused by name, right through the gate, and timed like any strategy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe import peers
from moe.build import supports
from moe.peers import support
from moe.peers.support import LIMITS
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from runners.records import record
from tests.support.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
LAYER = LayerSpec(32, 64, 32, 8, 2, 2, "silu_gated", "none")
CELL = Cell(LAYER, StrategySpec("peer_transformers"), WorkloadSpec(12), RankLayout(2))
SQUARE = ["model.dim_out=32", "model.activation=silu_gated", "model.bias=none"]
GPU = {"device": "cuda", "backend": "nccl", "dtype": "bfloat16"}
QUICK = ["measure=quick", "measure.block_ms=1", "measure.block_gloo_ms=1", "measure.block_floors=2",
         "report=false", "tracker=none", "world_size=2"]  # fmt: skip


def changed(**changes: Any) -> Cell:
    """CELL with fields replaced, wherever they are."""
    found = CELL
    for section in dataclasses.fields(Cell):
        part = getattr(found, section.name)
        own = {k: v for k, v in changes.items() if hasattr(part, k) and k != "peer"}
        found = dataclasses.replace(found, **{section.name: dataclasses.replace(part, **own)})
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bias": "zero"}, "layer.bias=zero: allowed is none"),
        ({"activation": "relu"}, "layer.activation=relu: allowed is silu_gated"),
        ({"dim_out": 64}, "layer.dim_out=64: allowed is 32"),
        ({"dispatcher": "alltoall"}, "strategy.dispatcher=alltoall: allowed is local"),
        ({"kernel": "bmm"}, "strategy.kernel=bmm: allowed is auto"),
        ({"variant": "fastest"}, "strategy.variant=fastest: allowed is grouped_mm|eager"),
        ({"router": RouterSpec(capacity_factor=1.0)}, "router.capacity_factor=1.0: allowed is 0.0"),
        ({"shared_experts": 1}, "model.shared_experts=1: allowed is 0"),
        ({"num_experts": 1}, "topk=2: allowed is 1 to num_experts=1"),
        ({"name": "peer_torchtitan"}, "dtype=float32: allowed is bfloat16"),
        ({"name": "peer_torchtitan", "dtype": "bfloat16", "backend": "mpi"}, "backend=mpi"),
        ({"name": "peer_torchtitan", "dtype": "bfloat16", "num_experts": 9}, "num_experts=9"),
        ({"name": "peer_deepspeed", "topk": 1, "batch_size": 5}, "batch_size=5: allowed is mult"),
        (
            {"name": "peer_deepspeed", "router": RouterSpec(normalize=False)},
            "router.normalize=False",
        ),
        ({"name": "peer_deepspeed", "variant": "autoep", "activation": "relu"}, "layer.activ"),
        (
            {"name": "peer_reference", "activation": "relu", "mode": "train"},
            "mode=train: allowed is fo",
        ),
        (
            {"name": "peer_reference", "activation": "relu", "variant": "ep"},
            "num_experts=8: allowed is",
        ),
        (
            {"name": "peer_reference", "activation": "relu", "variant": "tp", "tokens": "sharded"},
            "toke",
        ),
        ({"variant": "batched_mm", "hidden": 4096, "batch_size": 4096}, "batch_size=4096: allowed"),
        (
            {"hidden": 66},
            "layer.hidden=66: allowed is multiples of 4 in dtype=float32 for strategy",
        ),
        ({"name": "peer_grouped", "kernel": "grouped"}, "strategy.kernel=grouped: allowed is auto"),
        (
            {"name": "peer_grouped", "hidden": 66},
            "layer.hidden=66: allowed is multiples of 4 in dtype=float32 for strategy=peer_grouped",
        ),
        (
            {"name": "peer_grouped", "dim": 36, "dim_out": 36, "dtype": "bfloat16"},
            "layer.dim=36: allowed is multiples of 8 in dtype=bfloat16",
        ),
        (
            {"name": "peer_grouped", **GPU, "num_experts": 1024},
            "num_experts=1024: allowed is at most 1023 for F.grouped_mm on a GPU; lower num_expe",
        ),
        (
            {"name": "peer_reference", "activation": "relu", "device": "cuda"},
            "device=cuda: allowed",
        ),
        (
            {"name": "peer_liger"},
            "dtype=float32: allowed is bfloat16|float16 for strategy=peer_lig",
        ),
        (
            {"name": "peer_liger", "dtype": "bfloat16"},
            "device=cpu: allowed is cuda for strategy=pe",
        ),
        (
            {"name": "peer_liger", **GPU, "activation": "gelu"},
            "layer.activation=gelu: allowed is s",
        ),
        ({"name": "peer_liger", **GPU, "bias": "zero"}, "layer.bias=zero: allowed is none for"),
        ({"name": "peer_liger", **GPU, "kernel": "loop"}, "strategy.kernel=loop: allowed is auto"),
        (
            {"name": "peer_moe_ops"},
            "dtype=float32: allowed is bfloat16|float16 for strategy=peer_m",
        ),
        (
            {"name": "peer_moe_ops", "dtype": "float16"},
            "device=cpu: allowed is cuda for strategy=p",
        ),
        (
            {"name": "peer_moe_ops", **GPU, "num_experts": 12},
            "num_experts=12: allowed is powers of two up to 2048 for strategy=peer_moe_ops",
        ),
        (
            {"name": "peer_moe_ops", **GPU, "num_experts": 4096},
            "num_experts=4096: allowed is power",
        ),
        ({"name": "peer_moe_ops", **GPU, "hidden": 68}, "layer.hidden=68: allowed is multiples of"),
        (
            {"name": "peer_moe_ops", **GPU, "batch_size": 1 << 26},
            f"batch_size={1 << 26}: allowed is less than 2^31 / layer.dim=32",
        ),
    ],
)
def test_what_a_peer_cannot_do_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported) as refused:
        supports(changed(**changes))
    assert words in str(refused.value)


def test_every_peer_takes_the_cell_that_suits_it() -> None:
    for name, limits in LIMITS.items():
        for variant in limits.like:
            experts = 2 if (name, variant) == ("reference", "ep") else 8
            device = limits.devices[-1]
            backend = {"cpu": "gloo", "cuda": "nccl"}[device]
            cell = changed(name=f"peer_{name}", variant=variant, num_experts=experts,
                           activation=limits.activations[-1], dtype=limits.dtypes[-1],
                           device=device, backend=backend)  # fmt: skip
            supports(cell)
            assert peers.equivalent(cell).strategy == limits.like[variant]


@pytest.mark.parametrize("name, module", [("liger", "liger_kernel"), ("moe_ops", "moe_ops")])
def test_peers_of_triton_are_refused_where_they_are_not_installed(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "find_spec", lambda module: None)
    with pytest.raises(Unsupported) as refused:
        peers.check_installed(changed(name=f"peer_{name}"))
    assert f"({module}, triton is not); in the clone: pip install -e '.[gpu]'" in str(refused.value)


def test_an_unknown_peer_names_those_there_are() -> None:
    with pytest.raises(Unsupported, match=r"peer_transformers.*moe_peer_"):
        supports(changed(name="peer_nobody"))


def test_what_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(LIMITS["transformers"], needs=("no_such_module",))
    monkeypatch.setitem(LIMITS, "transformers", missing)
    with pytest.raises(Unsupported) as refused:
        peers.check_installed(CELL)
    assert "no_such_module is not" in str(refused.value)
    assert "pip install -e '.[peers]'" in str(refused.value)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    names = ["faults", "bytes", "transformers", "transformers:eager", "transformers:batched_mm",
             "grouped", "reference", "reference:tp", "reference:ep"]  # fmt: skip
    return ranks(2, names)


def ranks(number: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """What tests/dist/peer_ranks.py finds on so many ranks."""
    found = run_ranks("peer_ranks", number, *names)
    assert isinstance(found, dict)
    return found


def of(verdicts: dict[str, dict[str, Any]], *names: str) -> dict[str, dict[str, Any]]:
    return {k: v for k, v in verdicts.items() if k.split(" ")[0] in names}


@pytest.mark.dist
def test_every_peer_that_ci_has_computes_this_projects_function(
    verdicts: dict[str, dict[str, Any]],
) -> None:
    ways = ("transformers", "transformers:eager", "transformers:batched_mm", "grouped")
    right = of(verdicts, *ways, "reference", "reference:tp", "reference:ep")
    assert {name: v for name, v in right.items() if not v["ok"]} == {}
    assert [len(of(right, way)) for way in ways] == [32] * 4  # dtypes, modes, tokens, skews, sizes
    assert [len(of(right, f"reference{way}")) for way in ("", ":tp", ":ep")] == [8, 4, 8]
    assert all(v["gradient_error"] is not None for name, v in right.items() if " train " in name)


@pytest.mark.dist
def test_planted_faults_in_an_adapter_are_caught(verdicts: dict[str, dict[str, Any]]) -> None:
    planted = of(
        verdicts, "swapped", "not_renormalised", "swapped_reference", "gradients_of_another"
    )
    assert len(planted) == 7
    assert [name for name, verdict in planted.items() if verdict["ok"]] == []


@pytest.mark.dist
def test_collectives_seen_from_outside_are_counted_as_from_inside(
    verdicts: dict[str, dict[str, Any]],
) -> None:
    rows = of(verdicts, "all_reduce", "all_gather", "all_to_all")
    for name in ("all_reduce", "all_gather", "all_to_all"):
        inside, outside = ({**rows[f"{name} {group}"], "group": ""} for group in ("world", "peer"))
        assert inside == outside
        assert inside["sent_bytes"] > 0


def bench(folder: Path, *overrides: str, path: str = "") -> subprocess.CompletedProcess[str]:
    where = [f"hydra.sweep.dir={folder}/sweep", f"hydra.run.dir={folder}/sweep"]
    return subprocess.run(
        [sys.executable, str(ROOT / "runners" / "bench.py"), "-m", *overrides, *QUICK, *where],
        capture_output=True, text=True, timeout=240, cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def records(folder: Path) -> list[record.Record]:
    return [record.read(path) for path in record.paths(folder / "sweep")]


@pytest.mark.dist
def test_peers_are_swept_beside_ours(tmp_path: Path) -> None:
    names = "simple,peer_transformers,peer_transformers_eager"
    done = bench(tmp_path, f"strategy={names}", "mode=forward,train", "measure.phases=2", *SQUARE)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert sorted(r.cell.strategy.variant for r in found) == sorted(2 * ["", "grouped_mm", "eager"])
    assert all(r.outcome == "measured" and (r.gate or {})["ok"] for r in found)
    theirs = [r for r in found if r.cell.strategy.variant]
    assert {(r.kernel or {})["name"] for r in theirs} == {"grouped_mm", "eager"}
    assert all("experts" in (r.phases or {})["per_rank_ns"][0] for r in theirs)
    assert len({json.dumps((r.memory or [])[0]["weights_bytes"]) for r in found}) == 1


@pytest.mark.dist
def test_the_worked_example_of_the_docs_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "moe_peer_notebook.py").write_text(
        next(b for b in blocks if "moe_peer_notebook" in b)
    )
    own = ["strategy.name=peer_notebook", "mode=forward,train", "dtype=float32,bfloat16"]
    done = bench(tmp_path, "strategy=peer", *own, "tokens=sharded", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert [r.outcome for r in found] == ["measured"] * 4
    assert all((r.gate or {})["ok"] for r in found)


def test_a_peer_that_is_not_there_ends_the_sweep_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "moe_peer_absent.py").write_text(
        "from moe.peers.support import SIMPLE, Limits\n"
        "LIMITS = Limits('Absent 3', ('no_such_module',), {'one': SIMPLE}, 'pip install absent')\n"
    )
    done = bench(tmp_path, "strategy=peer", "strategy.name=peer_absent", path=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: strategy=peer_absent: allowed is where Absent 3 is installed "
        "(no_such_module is not); pip install absent"
    )
    assert not list(tmp_path.glob("sweep/cells"))
