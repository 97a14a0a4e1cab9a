"""conf/hosts: this process's place among hosts, and a node's resources. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runners.config.schema import safe_name, value
from runners.errors import ConfigError
from runners.host.inherited import withheld
from runners.host.machine import NodeResources

PORTS = range(1, 65536)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


@dataclass(frozen=True)
class Hosts:
    """This process's place among the hosts of a run; `nnodes` of 1 is a single machine."""

    nnodes: int = 1
    node_rank: int = 0
    address: str = ""  # of node 0, as the others reach it
    port: int = 0
    interface: str = ""  # "": the one that leads to node 0
    run: str = ""  # names the folder that all hosts share
    wait_s: float = 600.0
    shared_folder: bool = True  # all hosts see the sweep's folder at the same path
    convention: str = ""  # variables that hosts=auto read

    def auto_line(self) -> str:
        """One line that says what hosts=auto read, and where."""
        at = f", node 0 at {self.address}:{self.port}" if self.address else ""
        run = f", run {self.run}" if self.run else ""
        return f"hosts=auto: node {self.node_rank} of {self.nnodes}{at}{run} ({self.convention})"


def hosts_of(config: Mapping[str, Any]) -> Hosts:
    """Raises ConfigError where a setting that several hosts need is missing or wrong."""
    hosts = config["hosts"]
    nnodes = value(config, "hosts.nnodes")
    node_rank = value(config, "hosts.node_rank")
    if node_rank >= nnodes:
        raise ConfigError(
            f"hosts.node_rank={node_rank}: allowed are 0 to nnodes - 1 = {nnodes - 1}; "
            "set NODE_RANK, or NNODES, on every host"
        )
    run = "" if hosts["run"] is None else safe_name(hosts["run"])
    interface = "" if hosts["interface"] == "auto" else str(hosts["interface"])
    wait_s = value(config, "hosts.wait_s")
    convention = str(value(config, "hosts.convention") or "")
    if nnodes == 1:
        return Hosts(interface=interface, run=run, wait_s=wait_s, convention=convention)
    shared = value(config, "hosts.shared_folder")
    if shared and not run:
        raise ConfigError(
            "hosts.run=None: allowed with several hosts is a name that all of them are given, "
            "of the folder they share; set MOE_RUN on every host, or hosts.shared_folder=false"
        )
    address, port = endpoint(hosts["rdzv_endpoint"])
    if not shared and port + 1 not in PORTS:
        raise ConfigError(
            f"hosts.rdzv_endpoint={address}:{port}: allowed with hosts.shared_folder=false are "
            f"ports up to {PORTS[-2]}, since the next one is used, too; choose another"
        )
    return Hosts(nnodes, node_rank, address, port, interface, run, wait_s, shared, convention)


def pass_env_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """hosts.pass_env: names of variables, or NAME* for a family; raises ConfigError."""
    names = config["pass_env"]
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(names, list) or not VARIABLE.fullmatch(str(name)):
            raise ConfigError(
                f"hosts.pass_env={names!r}: allowed is a list of names of variables, NAME* for a "
                "family; set hosts.pass_env=[MALLOC_ARENA_MAX,UCX_*], say"
            )
        if withheld(name):
            raise ConfigError(
                f"hosts.pass_env: {name}: allowed are variables that hold no secret and that no "
                "launcher sets for its ranks; leave it out"
            )
    return tuple(names)


def endpoint(value: object) -> tuple[str, int]:
    """address:port; raises ConfigError."""
    address, _, port = str(value).rpartition(":")
    if not address or not port.isdigit() or int(port) not in PORTS:
        raise ConfigError(
            f"hosts.rdzv_endpoint={value}: allowed is address:port of node 0, as the other hosts "
            "reach it; set RDZV_ENDPOINT=10.0.0.1:29500, say"
        )
    return address.strip("[]"), int(port)


def node_of(config: Mapping[str, Any], machine: NodeResources) -> NodeResources:
    """`machine` with the resources that conf/hosts states instead, and its number of nodes."""
    cores, gpus = value(config, "hosts.cores"), value(config, "hosts.gpus")
    gib = value(config, "hosts.memory_gib")
    return NodeResources(
        cores=machine.cores if cores is None else cores,
        cuda_devices=machine.cuda_devices if gpus is None else gpus,
        nodes=max(machine.nodes, value(config, "hosts.nnodes")),
        memory_bytes=machine.memory_bytes if gib is None else int(gib * 2**30),
        gpu_memory_bytes=machine.gpu_memory_bytes,
    )
