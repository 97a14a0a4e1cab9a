"""The order of the strategies, and what each looks like in every plot of every sweep.

A new strategy gets its place and its look by a line here; without one it comes after ours, before
the other systems, and has a look that depends on its name alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from moe.spec import DISPATCHERS, PEER

Look = tuple[str, str, str]  # colour, marker, line: colour and marker each tell strategies apart
LOOKS: dict[str, Look] = {
    "serial": ("#000000", "x", ":"),
    "simple": ("#E69F00", "o", "-"),
    "dp": ("#999999", "v", "-."),
    "tp": ("#0072B2", "s", "--"),
    "ep": ("#009E73", "^", "-"),
    "ep_tp": ("#CC79A7", "D", "--"),
    "dp_ep": ("#D55E00", "P", "-."),
    "fsdp": ("#56B4E9", "h", ":"),
}
PEER_LOOKS: dict[str, Look] = {
    f"{PEER}reference": ("#1B4F72", "<", "--"),
    f"{PEER}transformers": ("#8C564B", "*", "-"),
    f"{PEER}deepspeed": ("#7A5195", "X", "-."),
    f"{PEER}torchtitan": ("#A4133C", ">", ":"),
    f"{PEER}grouped": ("#4E79A7", "p", "--"),
    f"{PEER}liger": ("#B5179E", "d", "--"),
    f"{PEER}moe_ops": ("#5F6368", "8", "-."),
}
# Expert kernels of `simple`, where each is a line of its own.
KERNEL_LOOKS: dict[str, Look] = {
    "auto": ("#E69F00", "o", "-"),
    "loop": ("#6A994E", "v", "-."),
    "bmm": ("#B8860B", "s", "--"),
    "dense": ("#3D405B", "D", ":"),
    "grouped": ("#2A9D8F", "^", "-"),
    "liger": ("#D55E00", "P", "-"),
    "triton": ("#5E3C99", "*", "-"),
}
SPARE = ("#6A994E", "#B8860B", "#3D405B", "#B56576", "#2A9D8F", "#9A031E")
MARKERS = "osD^vPhX*<>pd8"
LINES = ("-", "--", "-.", ":")
FORMS = {"": 0, **{name: number for number, name in enumerate(DISPATCHERS)}}
OTHERS = 4  # of forms that are no dispatchers, from here on: changing it would change colours
ORDER = tuple(LOOKS)


def place_of(strategy: str) -> int:
    """Sorts strategies: ours in their order, unknown ones, then other systems."""
    if strategy in LOOKS:
        return ORDER.index(strategy)
    return len(ORDER) + strategy.startswith(PEER)


def look_of(strategy: str) -> Look:
    """The strategy's own look; an unknown strategy's follows from its name."""
    known = {**LOOKS, **PEER_LOOKS}.get(strategy)
    number = zlib.crc32(strategy.encode())
    return known or (
        SPARE[number % len(SPARE)],
        MARKERS[number // 7 % len(MARKERS)],
        LINES[number // 101 % len(LINES)],
    )


def form_number(form: str, among: Iterable[str] = ()) -> int:
    """A number for each form of a strategy: 0, the strategy's own look, for the plain form and the
    first dispatcher. It follows from the form's name; where two of them would have the same
    number, the later one takes the next."""
    numbers = dict(FORMS)
    for name in sorted({form, *among} - set(FORMS)):
        number = OTHERS + zlib.crc32(name.encode()) % 10
        while number in numbers.values():
            number += 1
        numbers[name] = number
    return numbers[form]


def kernel_look(name: str, among: Iterable[str] = ()) -> Look:
    """Colour, marker and line of an expert kernel or, by their names, of a peer and its variants,
    told apart from others `among` them."""
    first, _, form = name.partition(" ")
    if first in KERNEL_LOOKS:
        return KERNEL_LOOKS[first]
    forms = {f for one, _, f in (other.partition(" ") for other in among) if one == first}
    return form_look(first, form_number(form, forms))


def form_look(strategy: str, number: int) -> Look:
    """The strategy's colour, with another marker and line for every number but 0."""
    color, marker, line = look_of(strategy)
    if not number:
        return color, marker, line
    place, dashes = MARKERS.find(marker) + number, LINES.index(line) + number
    return color, MARKERS[place % len(MARKERS)], LINES[dashes % len(LINES)]
