"""What software reaches of a cluster's hardware, from conf/software/NAME.yaml.

A grouped product of `rows` rows an expert and inner width K takes, beside its FLOPs at the share
`matrix` of the matrix rate,

    (1 + depth / K) (1 + tile / (2 rows))      rows > tile; no padding where all have equally many

Each output tile starts and ends once, whatever its K (`depth` is that time in terms of K), and the
last tile of an expert is half empty on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from analysis.errors import InputError
from runners.host import project_paths

FOLDER = project_paths.CONF / "software"
DEFAULT = "ours"
EVERY = "every"  # operations of every dispatcher


@dataclass(frozen=True)
class KernelModel:
    """Shares of the matrix rate and of the bandwidth that a kernel's products reach.

    `depth` and `tile` are explained above. A kernel that `gathers` reads tokens where they are;
    others read rows that were permuted. `activation` is how often kernels between the products move
    their hidden units: 0 in the product itself, 1 in one kernel that reads F and writes U columns.
    """

    matrix: float
    read: float
    depth: float = 0.0
    tile: int = 0
    gathers: bool = False
    activation: float = 1.0

    def slowdown(self, inner: float, rows: float) -> float:
        """Time of a product over its time at the share `matrix`; rows of 0 are not padded."""
        padding = self.tile / (2 * rows) if rows else 0.0
        return (1 + self.depth / inner) * (1 + padding)


@dataclass(frozen=True)
class SoftwareProfile:
    """Seconds and counts are per rank and step; `operations` by dispatcher, then by phase."""

    name: str
    kernels: Mapping[str, KernelModel]
    move_efficiency: float  # share of the bandwidth that permutes and other copies reach
    operation_s: float  # of the host, to start one operation
    kernel_s: float  # of the device, for one operation however small
    wait_s: float  # of the host for the device, once
    operations: Mapping[str, Mapping[str, int]]
    waits: Mapping[str, int] = field(default_factory=dict)  # by dispatcher, before its exchange
    fused_permutes: bool = True  # a permute moves rows once, and `dedup` sends tokens in place

    def started(self, dispatcher: str, phase: str) -> int:
        """Operations of a phase: those of every dispatcher and this one's own."""
        return sum(self.operations.get(key, {}).get(phase, 0) for key in {EVERY, dispatcher})


def names() -> list[str]:
    """Names of the profiles in conf/software, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> SoftwareProfile:
    """Raises InputError for an unknown name."""
    if name not in names():
        raise InputError(f"--software {name}: allowed are {', '.join(names())}; choose one")
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    kernels = {key: KernelModel(**values) for key, values in config.pop("kernels").items()}
    return SoftwareProfile(kernels=kernels, **config)
