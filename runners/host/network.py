"""Addresses that other nodes can reach. Stdlib only.

Many hosts resolve their own name to loopback, and a rank that offers a loopback address keeps the
others waiting forever. So the kernel's routes are asked instead: the source address that this host
uses towards another node is the one by which that node reaches it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import MutableMapping

SIOCGIFADDR = 0x8915
ANY_PORT = 9  # nothing is sent
SHARED = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def resolve(name: str) -> str:
    """The first address of a name, IPv4 before IPv6; raises OSError naming it."""
    try:
        addresses = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"{name}: no address is known for it ({error})") from error
    addresses.sort(key=lambda one: one[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def route_to(address: str) -> str:
    """This host's source address towards another; raises OSError where there is no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, ANY_PORT))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The network interface with this IPv4 address, or ""."""
    if address.startswith("127."):
        return "lo"
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # no IPv4 address
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return ""


def is_own(address: str) -> bool:
    """Whether this host has the address."""
    return is_loopback(address) or bool(interface_of(address))


def own_address(first: str) -> str:
    """This node's address towards the first node, whose own address is `first`."""
    return first if is_own(first) else route_to(first)


def first_address(addresses: list[str]) -> str:
    """The address by which other nodes reach this one, the first of `addresses`.

    Loopback only where all addresses are loopback (one machine). Raises OSError without a route.
    """
    others = [one for one in addresses[1:] if not is_loopback(one)]
    if not others:
        return addresses[0] if len(addresses) > 1 else "127.0.0.1"
    return route_to(others[0])


def free_port(address: str) -> int:
    """A TCP port that is not in use now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def use_interface(variables: MutableMapping[str, str], first: str, interface: str = "") -> None:
    """Sets the interface of gloo and NCCL to the one towards `first`, unless the user did."""
    name = interface or interface_of(own_address(first))
    for variable in SHARED:
        if name and not os.environ.get(variable):
            variables[variable] = name
