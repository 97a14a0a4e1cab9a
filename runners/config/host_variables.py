"""conf/hosts/auto.yaml: this host's place among hosts, from the variables that its platform sets.

The conventions, in the order in which a value is taken from them:

    this project's   NNODES NODE_RANK RDZV_ENDPOINT MOE_RUN
    Kubeflow         PET_NNODES PET_NODE_RANK PET_MASTER_ADDR PET_MASTER_PORT
    SkyPilot         SKYPILOT_NUM_NODES SKYPILOT_NODE_RANK SKYPILOT_NODE_IPS SKYPILOT_TASK_ID
    Indexed Job      JOB_COMPLETION_INDEX: only which node this is (NNODES says how many); node 0's
                     address and the run's name follow from the pod's host name
    Open MPI         OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK: no address (RDZV_ENDPOINT has it)
    MPICH            PMI_SIZE PMI_RANK: the same

Several may be set, as in a Kubeflow TrainJob, whose pods belong to an Indexed Job. What they say of
nodes, this node, address and port must agree. The run's name need not: it is MOE_RUN, else what
comes first of node 0's name, the task and the job. An empty variable counts as not set.
Free of torch and Hydra.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from runners.config.hosts import PORTS, endpoint
from runners.config.schema import LABEL_CHARACTERS
from runners.errors import ConfigError
from runners.mpi.start import PLACES

Value = TypeVar("Value", int, str)
DEFAULT_PORT = 29500  # torchrun's
MAX_NAME = 80
ADDRESS = re.compile(r"[A-Za-z0-9_.-]+")
WHOLE = re.compile(r"[0-9]{1,10}")
INDEX = "JOB_COMPLETION_INDEX"
OMPI_RANK, OMPI_SIZE, _, OMPI_LOCAL_SIZE = PLACES["Open MPI"]
PMI_RANK, PMI_SIZE, _, PMI_LOCAL_SIZE = PLACES["MPICH"]
NODES = ("NNODES", "PET_NNODES", "SKYPILOT_NUM_NODES", OMPI_SIZE, PMI_SIZE)
RANKS = ("NODE_RANK", "PET_NODE_RANK", "SKYPILOT_NODE_RANK", INDEX, OMPI_RANK, PMI_RANK)
ONE_PER_HOST = {OMPI_LOCAL_SIZE: "--map-by ppr:1:node", PMI_LOCAL_SIZE: "-ppn 1"}  # of mpiexec
READ = (
    *("NNODES", "NODE_RANK", "RDZV_ENDPOINT", "MOE_RUN"),
    *("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    *("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS", "SKYPILOT_TASK_ID"),
    INDEX,
    *(OMPI_SIZE, OMPI_RANK, OMPI_LOCAL_SIZE),
    *(PMI_SIZE, PMI_RANK, PMI_LOCAL_SIZE),
)


@dataclass(frozen=True)
class HostVariables:
    """What the variables say: the values of conf/hosts/auto.yaml."""

    nnodes: int
    node_rank: int
    rdzv_endpoint: str | None  # None only on a single host
    run: str | None  # None where no variable offers a name
    convention: str  # names of the variables that are set


def read(variables: Mapping[str, str], host_name: str = "") -> HostVariables:
    """`host_name` is this host's fully qualified name, used with JOB_COMPLETION_INDEX only.

    Raises ConfigError for variables that are missing, not valid or contradict each other.
    """
    given = {name: text for name in READ if (text := variables.get(name, "").strip())}
    nnodes = _nnodes(given)
    node_rank = _node_rank(given, nnodes)
    for name, option in ONE_PER_HOST.items():
        if name in given and _whole(given, name) != 1:
            raise ConfigError(
                f"{name}={given[name]}: allowed is one process on a host, which starts the ranks "
                f"itself; start it with mpiexec {option}"
            )
    rdzv_endpoint = _endpoint(given, nnodes, host_name)
    run = _run(given, host_name)
    return HostVariables(nnodes, node_rank, rdzv_endpoint, run, ", ".join(given))


def of_this_host(field: str) -> int | str | None:
    """The resolver `host_variables`: one field of HostVariables. Raises ConfigError."""
    names = [one.name for one in fields(HostVariables)]
    if field not in names:
        raise ConfigError(
            f"host_variables:{field}: allowed are {', '.join(names)}; write one of them"
        )
    host_name = _own_name() if os.environ.get(INDEX) else ""
    value: int | str | None = getattr(read(os.environ, host_name), field)
    return value


@functools.cache
def _own_name() -> str:
    return socket.getfqdn()


def _nnodes(given: Mapping[str, str]) -> int:
    counts = {name: _whole(given, name, least=1) for name in NODES if name in given}
    if counts:
        return _agreed(given, counts, "number of nodes")
    if INDEX in given:
        raise ConfigError(
            f"{INDEX}={given[INDEX]}: allowed with NNODES only, since it does not say how many "
            "nodes there are; set NNODES to the job's completions"
        )
    raise ConfigError(
        f"hosts=auto: none of {', '.join((*NODES, INDEX))} is set: allowed is a host whose "
        "platform sets one; set NNODES, NODE_RANK, RDZV_ENDPOINT and MOE_RUN, or use hosts=one"
    )


def _node_rank(given: Mapping[str, str], nnodes: int) -> int:
    ranks = {name: _whole(given, name) for name in RANKS if name in given}
    count = _pair(given, next(name for name in NODES if name in given))
    if not ranks:
        if nnodes == 1:
            return 0
        raise ConfigError(
            f"{count}: allowed with the number of this node, and none of {', '.join(RANKS)} is "
            "set; set NODE_RANK on every host"
        )
    rank = _agreed(given, ranks, "number of this node")
    if rank >= nnodes:
        raise ConfigError(
            f"{_pair(given, next(iter(ranks)))}, {count}: allowed are 0 to {nnodes - 1} for this "
            "node; correct one of them"
        )
    return rank


def _endpoint(given: Mapping[str, str], nnodes: int, host_name: str) -> str | None:
    """address:port of node 0; None where nothing has it and no other host needs it."""
    addresses: dict[str, str] = {}
    ports: dict[str, int] = {}
    if "RDZV_ENDPOINT" in given:
        addresses["RDZV_ENDPOINT"], ports["RDZV_ENDPOINT"] = endpoint(given["RDZV_ENDPOINT"])
    if "PET_MASTER_ADDR" in given:
        addresses["PET_MASTER_ADDR"] = _address(given)
    if "SKYPILOT_NODE_IPS" in given:
        addresses["SKYPILOT_NODE_IPS"] = _first_ip(given, nnodes)
    if "PET_MASTER_PORT" in given:
        ports["PET_MASTER_PORT"] = _whole(given, "PET_MASTER_PORT", PORTS[0], PORTS[-1])
    port = _agreed(given, ports, "port of node 0") if ports else DEFAULT_PORT
    if addresses:
        address = _agreed(given, addresses, "address of node 0")
    elif nnodes == 1:
        return None
    elif INDEX in given:
        address = _first_pod(given[INDEX], host_name)
    else:
        raise ConfigError(
            f"{_pair(given, next(name for name in NODES if name in given))}: allowed with the "
            "address of node 0, and no variable that is set has it; set RDZV_ENDPOINT to its "
            f"address:port, 10.0.0.1:{DEFAULT_PORT}, say, on every host"
        )
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _address(given: Mapping[str, str]) -> str:
    text = given["PET_MASTER_ADDR"]
    if not ADDRESS.fullmatch(text) and not _is_ip(text):
        raise ConfigError(
            f"PET_MASTER_ADDR={text}: allowed is a host name or an IP address; the port goes into "
            "PET_MASTER_PORT"
        )
    return text


def _first_ip(given: Mapping[str, str], nnodes: int) -> str:
    ips = given["SKYPILOT_NODE_IPS"].split()
    if len(ips) != nnodes or not all(map(_is_ip, ips)):
        count = _pair(given, next(name for name in NODES if name in given))
        raise ConfigError(
            f"{_pair(given, 'SKYPILOT_NODE_IPS')}, {count}: allowed are as many IP addresses as "
            "nodes, one a line, node 0's first; correct one of them"
        )
    return ips[0]


def _first_pod(index: str, host_name: str) -> str:
    """The name of pod 0 of the same job, from this pod's: NAME-<index>.SUBDOMAIN."""
    job, domain = _job(index, host_name), host_name.partition(".")[2]
    if job is None or not domain:
        raise ConfigError(
            f"{INDEX}={index}: allowed is a pod called JOB-{index}.SUBDOMAIN, from which node 0's "
            f"address follows, and this host is called {host_name}; set `subdomain` in the pod's "
            f"template to the name of a headless service, or RDZV_ENDPOINT=JOB-0.SUBDOMAIN:"
            f"{DEFAULT_PORT}"
        )
    return f"{job}-0.{domain}"


def _job(index: str, host_name: str) -> str | None:
    """The job's name in a pod's, without the index; None where the pod is not named so."""
    pod, suffix = host_name.partition(".")[0], f"-{index}"
    return pod.removesuffix(suffix) if pod.endswith(suffix) else None


def _run(given: Mapping[str, str], host_name: str) -> str | None:
    """A name that is the same on all nodes, and stays when the job is started again."""
    if "MOE_RUN" in given:
        return given["MOE_RUN"]
    name = None
    master = given.get("PET_MASTER_ADDR", "")
    if master and master != "localhost" and not _is_ip(master):
        name = re.sub(r"-\d+$", "", master.partition(".")[0])
    if not name and "SKYPILOT_TASK_ID" in given:
        name = given["SKYPILOT_TASK_ID"]
    if not name and INDEX in given:
        name = _job(given[INDEX], host_name)
    return _safe(name) if name else None


def _safe(name: str) -> str:
    return "".join(c if c in LABEL_CHARACTERS else "-" for c in name)[:MAX_NAME]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _whole(given: Mapping[str, str], name: str, least: int = 0, most: int = 2**31 - 1) -> int:
    text = given[name]
    if not WHOLE.fullmatch(text) or not least <= int(text) <= most:
        elastic = "; an elastic range has no fixed number of nodes" if ":" in text else ""
        raise ConfigError(
            f"{name}={text}: allowed are whole numbers from {least} to {most}{elastic}; set {name} "
            "to one of them"
        )
    return int(text)


def _agreed(given: Mapping[str, str], values: Mapping[str, Value], what: str) -> Value:
    """The first value; raises ConfigError where another differs."""
    first, *others = values
    for name in others:
        if values[name] != values[first]:
            raise ConfigError(
                f"{_pair(given, first)}, {_pair(given, name)}: allowed is the same {what} in both; "
                "correct or unset one of them"
            )
    return values[first]


def _pair(given: Mapping[str, str], name: str) -> str:
    return f"{name}={' '.join(given[name].split())}"
