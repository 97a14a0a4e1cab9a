"""The words for results of `workload=balanced`, which are called so wherever they are shown.

That workload gives all experts equally many slots, so its times are the best case of a model whose
router was learned: a result without the label would be read as that model's.
"""

from __future__ import annotations

from collections.abc import Iterable

BALANCED = "balanced"  # of moe.spec.WORKLOADS
LABEL = "forced balance"
TAG = "forced_balance"  # of a W&B run, and a column of `python -m analysis kernels --format csv`
NAME = "Forced balance"
MEANING = (
    f"the workload gives all experts equally many slots (workload={BALANCED}); "
    "a learned router does not give that"
)


def is_forced(kind: str) -> bool:
    """Whether this kind of workload (`WorkloadSpec.kind`) is a forced balance."""
    return kind == BALANCED


def label(kind: str) -> str:
    """What a kind of workload is called in words for people."""
    return LABEL if is_forced(kind) else kind


def notes(kinds: Iterable[str]) -> dict[str, str]:
    """NAME and MEANING where some of these kinds of workloads are a forced balance; else empty."""
    return {NAME: MEANING} if any(map(is_forced, kinds)) else {}


def sentences(kinds: Iterable[str]) -> list[str]:
    """The same as one sentence."""
    return [f"{name}: {meaning}." for name, meaning in notes(kinds).items()]
