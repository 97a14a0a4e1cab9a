"""Rates of one rank's hardware, from conf/cluster/NAME.yaml or from a record's calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import InputError
from analysis.predict import software
from analysis.predict.software import KernelModel, SoftwareProfile
from runners.host import project_paths

FOLDER = project_paths.CONF / "cluster"
NOT_IN_A_FILE = {"calibrated", "read_warm", "links", "exchanged", "own_links", "profile"}


@dataclass(frozen=True)
class Link:
    """Per rank a collective takes alpha_s + messages * message_s + w + ramp sqrt(alpha_s w), w =
    bytes / bytes_per_s: see `network`."""

    bytes_per_s: float
    alpha_s: float
    message_s: float = 0.0
    ramp: float = 0.0


@dataclass(frozen=True)
class HardwareModel:
    """Rates of one rank. Efficiencies are the shares of them that a step reaches: those of links
    are the cluster's, the others the profile's (`with_profile`) unless the cluster's file has them.
    """

    name: str
    ranks_per_node: int
    memory_bytes: float
    matrix_flops_per_s: dict[str, float]
    read_bytes_per_s: float
    intra: Link
    inter: Link
    matrix_efficiency: float | None = None
    read_efficiency: float | None = None
    intra_efficiency: float = 1.0
    inter_efficiency: float = 1.0
    operation_s: float | None = None
    switch_reduces: bool = False  # in a node: NVLink SHARP
    software: str = ""  # the only profile whose exchanges the links are of
    profile: SoftwareProfile | None = None  # None where rates are calibrated
    calibrated: bool = False  # rates are of this machine, not from data sheets
    read_warm: tuple[tuple[float, float], ...] = ()  # (bytes that are re-read, bytes/s): caches
    links: dict[str, Link] = field(default_factory=dict)  # by collective, where calibrated
    exchanged: dict[str, int] | None = None  # as calibrated: see moe.parallel.algorithms
    own_links: bool = False  # of each rank, of known rates; collectives as gloo has them

    def matrix_rate(self, dtype: str) -> float:
        """Peak FLOP/s; the share of it that a step reaches is a coefficient of the model."""
        if dtype not in self.matrix_flops_per_s:
            known = ", ".join(self.matrix_flops_per_s)
            raise InputError(f"dtype={dtype}: cluster {self.name} has {known}; choose one of them")
        return self.matrix_flops_per_s[dtype]

    def read_rate(self, set_bytes: float) -> float:
        """Bytes/s of re-reading a set of this size: log-linear between the calibrated sizes."""
        table = [*self.read_warm]
        if not table or set_bytes >= 4 * table[-1][0]:
            return self.read_bytes_per_s
        table.append((4 * table[-1][0], self.read_bytes_per_s))
        if set_bytes <= table[0][0]:
            return table[0][1]
        at = next(i for i, (size, _) in enumerate(table) if size >= set_bytes)
        (low, slow), (high, fast) = table[at - 1], table[at]
        share = math.log(set_bytes / low) / math.log(high / low)
        return slow ** (1 - share) * fast**share


def names() -> list[str]:
    """Names of the clusters in conf/cluster, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> HardwareModel:
    """The cluster of a name or of a .yaml file; raises InputError for an unknown or bad one."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"--cluster {name}: {error}; allowed are {', '.join(names())} or a .yaml file"
        ) from None
    return of_config(config, name)


def of_config(config: Any, name: str) -> HardwareModel:
    """Raises InputError unless it is a mapping with every key, no others, and no rate of 0."""
    if not isinstance(config, dict):
        raise InputError(f"--cluster {name}: not a mapping; see conf/cluster/h100.yaml")
    allowed = {item.name for item in fields(HardwareModel)} - NOT_IN_A_FILE
    unknown = sorted(set(config) - allowed)
    if unknown:
        raise InputError(
            f"--cluster {name}: {unknown[0]}: no such key; allowed are {', '.join(sorted(allowed))}"
        )
    try:
        values = {**config, **{tier: Link(**config[tier]) for tier in ("intra", "inter")}}
        machine = HardwareModel(**values)
    except (KeyError, TypeError) as error:
        raise InputError(f"--cluster {name}: {error}; see conf/cluster/h100.yaml") from None
    rates = (machine.read_bytes_per_s, machine.intra.bytes_per_s, machine.inter.bytes_per_s)
    if min(rates) <= 0:
        raise InputError(f"--cluster {name}: rates must be above 0")
    return machine


def with_profile(machine: HardwareModel, name: str = "") -> HardwareModel:
    """The cluster with its profile; "" is the one of the cluster's links, else DEFAULT.

    What the cluster's file states of efficiencies and of an operation's time replaces the
    profile's. Raises InputError for a profile whose exchanges are not those of the cluster's links.
    """
    chosen = name or machine.software or software.DEFAULT
    profile = software.load(chosen)
    if machine.software and chosen != machine.software:
        raise InputError(
            f"--software {name}: links of cluster {machine.name} are those of the exchanges of "
            f"{machine.software}; allowed is {machine.software}; or name another cluster"
        )
    stated: dict[str, Any] = {}
    if machine.operation_s is not None:
        stated["operation_s"] = machine.operation_s
    if machine.read_efficiency is not None:
        stated["move_efficiency"] = machine.read_efficiency
    kernels = {key: _stated(kernel, machine) for key, kernel in profile.kernels.items()}
    profile = dataclasses.replace(profile, kernels=kernels, **stated)
    return dataclasses.replace(machine, profile=profile)


def _stated(kernel: KernelModel, machine: HardwareModel) -> KernelModel:
    if machine.matrix_efficiency is not None:
        kernel = dataclasses.replace(kernel, matrix=machine.matrix_efficiency, depth=0.0, tile=0)
    if machine.read_efficiency is not None:
        kernel = dataclasses.replace(kernel, read=machine.read_efficiency)
    return kernel


def of_calibration(
    calibration: Mapping[str, Any], ranks: int, memory_bytes: float = math.inf
) -> HardwareModel:
    """Rates of one of `ranks` ranks: its share of what all reach together. Latencies are of the
    calibrated ranks, `memory_bytes` is of all ranks. KeyError where a rate is missing."""
    shared = calibration["shared"]
    links = {
        name: Link(_rate(fit["beta_s_per_byte"]), float(fit["alpha_s"]))
        for name, fit in calibration["collectives"].items()
    }
    slow = links.get("all_to_all") or Link(math.inf, 0.0)
    warm = sorted((float(n), float(r)) for n, r in calibration["read_warm_bytes_per_s"].items())
    rates = {d: float(r) / ranks for d, r in shared["matmul_flops_per_s"].items()}
    return HardwareModel(
        name="here", ranks_per_node=10**9, memory_bytes=memory_bytes / ranks,
        matrix_flops_per_s=rates, read_bytes_per_s=float(shared["read_bytes_per_s"]) / ranks,
        intra=slow, inter=slow, calibrated=True, read_warm=tuple(warm), links=links,
        exchanged=calibration.get("exchanged"),
    )  # fmt: skip


def _rate(seconds_per_byte: float) -> float:
    return 1 / seconds_per_byte if seconds_per_byte else math.inf
