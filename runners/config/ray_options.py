"""Settings of hydra/launcher=ray. Hydra-free, since nodes of the cluster need no Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from runners.config.schema import integer, number
from runners.errors import ConfigError


@dataclass
class RayOptions:
    """The cluster, and how its nodes are taken."""

    # host:port, ray://host:port or local (a Ray of this machine, for this sweep); "": RAY_ADDRESS,
    # else the cluster that this machine is a node of
    address: str = ""
    exclusive: bool = True  # take all CPUs of a node, so that Ray places nothing else there
    max_restarts: int = 3  # placements after a node was lost, of the cells of a shape
    wait_s: float = 600.0  # for room, while none of this sweep's cells are measured
    runtime_env: dict[str, Any] = field(default_factory=dict)  # further fields of Ray's own


def ray_options(launcher: Mapping[str, Any]) -> RayOptions | None:
    """From Hydra's launcher node; None for any other launcher. Raises ConfigError."""
    if not str(launcher.get("_target_", "")).endswith(".RayLauncher"):
        return None
    names = {f.name for f in fields(RayOptions)}
    options = RayOptions(**{name: launcher[name] for name in names if name in launcher})
    options.address = "" if options.address is None else str(options.address)
    integer(options.max_restarts, "hydra.launcher.max_restarts", 0)
    number(options.wait_s, "hydra.launcher.wait_s")
    for name, kind, allowed in (
        ("exclusive", bool, "true and false"),
        ("runtime_env", dict, "groups of Ray's runtime environment"),
    ):
        if not isinstance(value := getattr(options, name), kind):
            raise ConfigError(
                f"hydra.launcher.{name}={value!r}: allowed are {allowed}; "
                f"set hydra.launcher.{name} to one of them"
            )
    modules = options.runtime_env.get("py_modules", [])
    if not isinstance(modules, list):
        raise ConfigError(
            f"hydra.launcher.runtime_env.py_modules={modules!r}: allowed is a list of folders; set "
            "hydra.launcher.runtime_env.py_modules=[DIR], say"
        )
    return options
