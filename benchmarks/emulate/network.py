"""Network namespaces of ranks, joined by one bridge, with links shaped in both directions.

A rank's interface is eth0 with the address 10.77.NODE.(LOCAL RANK + 1). Its sending is shaped on
eth0, its receiving on the bridge's port: without that, a rank that receives more than its share
would be too fast. Every direction has two classes of HTB: the rank's own node, and all other nodes.

- While sending, every peer has a leaf of its own, so that peers share the link fairly. A leaf's own
  rate is a twentieth of its share and all else is borrowed: guaranteed shares would together exceed
  the link after each pause.
- Packets that only acknowledge are not shaped, or traffic in one direction would slow the other.
- Packets leave the sender one by one (gso_max_segs 1), or a burst of 64 KiB would pass at once.

It needs a mount namespace of its own, in which /run may be changed: see `launch`. All of it is gone
with the agent's last process, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from runners.records.emulation import ETHERNET_BYTES, Emulation

CLONE_NEWNET = 0x40000000
NETWORK = "10.77"
HUB = "hub"
COMMAND_S = 60.0
# reno: a namespace may not choose every algorithm, and must not follow the host's choice. Buffers
# are larger than any message in flight, so that the link alone limits the rate.
SETTINGS = {
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_slow_start_after_idle": "0",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_rmem": "4096 16777216 33554432",
    "ipv4/tcp_wmem": "4096 16777216 33554432",
}
ROUTE = "rto_min 3s initcwnd 2000 initrwnd 2000"  # nothing is dropped: a timeout is a mistake
UNSHAPED, NODE, OTHERS = 3, 1, 2  # classes
FIRST_LEAF = 256


class NetworkError(RuntimeError):
    """A namespace or a link cannot be set up here."""


def namespace(rank: int) -> str:
    """Name of a rank's namespace."""
    return f"rank{rank}"


def address(rank: int, ranks_per_node: int) -> str:
    node, local = divmod(rank, ranks_per_node)
    return f"{NETWORK}.{node}.{local + 1}"


def enter(name: str) -> None:
    """Moves this process into the namespace; call it while the process has a single thread."""
    handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
        raise NetworkError(f"{name}: {os.strerror(ctypes.get_errno())}")
    os.close(handle)


def set_up(ranks: int, cluster: Emulation) -> None:
    """Namespaces, links and shaping of all ranks; raises NetworkError."""
    names = [namespace(rank) for rank in range(ranks)]
    _batch("ip", "", [f"netns add {name}" for name in (HUB, *names)])
    mtu = cluster.mtu
    _batch("ip", HUB, ["link add name bridge type bridge", f"link set dev bridge mtu {mtu} up"])
    for rank, name in enumerate(names):
        own, port = address(rank, cluster.ranks_per_node), f"port{rank}"
        _batch("ip", HUB, [
            f"link add name {port} mtu {mtu} type veth peer name eth0 netns {name}",
            f"link set dev {port} master bridge", f"link set dev {port} up",
        ])  # fmt: skip
        _batch("ip", name, [
            f"link set dev eth0 mtu {mtu} gso_max_segs 1 gso_max_size {mtu + ETHERNET_BYTES} up",
            "link set dev lo up", f"addr add {own}/16 dev eth0",
            f"route replace {NETWORK}.0.0/16 dev eth0 src {own} {ROUTE}",
        ])  # fmt: skip
        _batch("tc", name, [*_classes("eth0", cluster), *_sending(rank, ranks, cluster)])
        _batch("tc", HUB, [*_classes(port, cluster), *_receiving(port, rank, cluster)])
        _set(name)


def _classes(device: str, cluster: Emulation) -> Iterator[str]:
    frame = cluster.mtu + ETHERNET_BYTES
    yield f"qdisc add dev {device} root handle 1: htb default {UNSHAPED}"
    yield (
        f"class add dev {device} parent 1: classid 1:{UNSHAPED} htb rate 20gbit ceil 20gbit "
        f"quantum {frame}"
    )
    for number, mbit_s in ((NODE, cluster.intra_mbit_s), (OTHERS, cluster.inter_mbit_s)):
        burst = _burst(mbit_s, frame)
        yield (
            f"class add dev {device} parent 1: classid 1:{number} htb rate {mbit_s:g}mbit "
            f"ceil {mbit_s:g}mbit burst {burst} cburst {burst} quantum {frame}"
        )
    # TCP packets of at most 63 bytes in all carry no data
    yield (
        f"filter add dev {device} parent 1: protocol ip prio 1 u32 match ip protocol 6 0xff "
        f"match u16 0x0000 0xffc0 at 2 flowid 1:{UNSHAPED}"
    )


def _burst(mbit_s: float, frame: int) -> int:
    """Bytes of 1 ms: a timer that fires late must not cost rate."""
    return max(2 * frame, int(mbit_s * 125))


def _sending(rank: int, ranks: int, cluster: Emulation) -> Iterator[str]:
    each, frame = cluster.ranks_per_node, cluster.mtu + ETHERNET_BYTES
    for peer in range(ranks):
        if peer == rank:
            continue
        near = peer // each == rank // each
        number, mbit_s = (NODE, cluster.intra_mbit_s) if near else (OTHERS, cluster.inter_mbit_s)
        peers = each - 1 if near else ranks - each
        leaf = f"1:{FIRST_LEAF + peer:x}"
        yield (
            f"class add dev eth0 parent 1:{number} classid {leaf} htb "
            f"rate {mbit_s * 1e6 / max(1, peers) / 20:.0f}bit ceil {mbit_s:g}mbit burst {frame} "
            f"cburst {_burst(mbit_s, frame)} quantum {frame}"
        )
        yield f"qdisc add dev eth0 parent {leaf} pfifo limit 100000"
        yield (
            f"filter add dev eth0 parent 1: protocol ip prio 2 u32 match ip dst "
            f"{address(peer, each)}/32 flowid {leaf}"
        )


def _receiving(device: str, rank: int, cluster: Emulation) -> Iterator[str]:
    node = rank // cluster.ranks_per_node
    for number in (NODE, OTHERS):
        yield f"qdisc add dev {device} parent 1:{number} pfifo limit 100000"
    for order, (source, number) in enumerate(
        ((f"{NETWORK}.{node}.0/24", NODE), (f"{NETWORK}.0.0/16", OTHERS)), 2
    ):
        yield (
            f"filter add dev {device} parent 1: protocol ip prio {order} u32 match ip src "
            f"{source} flowid 1:{number}"
        )


def _set(name: str) -> None:
    """The namespace's settings of TCP, written by a fork that enters it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            enter(name)
            for key, value in SETTINGS.items():
                Path(f"/proc/sys/net/{key}").write_text(value, "ascii")
            code = 0
        except (OSError, NetworkError) as error:
            os.write(2, f"{name}: {error}\n".encode())
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise NetworkError(f"{name}: its settings of TCP cannot be written")


def _batch(tool: str, name: str, lines: Sequence[str]) -> None:
    where = ["-n", name] if name else []
    try:
        done = subprocess.run(
            [tool, *where, "-batch", "-"], input="\n".join(lines) + "\n", text=True,
            capture_output=True, timeout=COMMAND_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise NetworkError(f"{tool}: {error}") from error
    if done.returncode:
        raise NetworkError(f"{tool} {' '.join(where)}: {done.stderr.strip()}")
