"""Patterns of texts in a record, and what stays of texts that are free on disk. Stdlib only."""

from __future__ import annotations

import re

WITHHELD = "(withheld)"  # stands for a text
WORD = r"[A-Za-z0-9_+-]{0,40}"
VERSION = r"[0-9][A-Za-z0-9_.+-]{0,39}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+]00:00)"
LABEL = r"[A-Za-z0-9_-]{0,40}"
# A clock may end the name of a processor. A dot between letters would be that of a host's name.
# What nvidia-smi has for an unknown value is in brackets.
HARDWARE = (
    r"(?!.*[A-Za-z]\.[A-Za-z])[A-Za-z0-9][A-Za-z0-9 ()+,.-]{0,79}"
    r"(@ [0-9]+(\.[0-9]+)? ?[GM]Hz|w/ Radeon[A-Za-z0-9 ()+-]{0,30})?|\[(N/A|Not Supported)\]"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")
_SYSTEM = re.compile(r"([A-Za-z]{1,20}) ([0-9]+(?:\.[0-9]+)*)\S* ([a-z0-9_]{1,20})")
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}(\.[0-9]{1,19})?[KMGBkmgb]?")
_INTERFACE = re.compile(
    r"(lo|docker0|(eth|ib|bond|wlan|hsn|team|br|enP?|ens|eno|enp)[0-9]+[a-z0-9]{0,8})"
)
_PARTS = re.compile(r"[\s,:;=(){}^*]+")
# Words that libraries read from their variables.
_LIBRARY_WORDS = """
true false on off yes no none auto default disabled enabled disable enable all close spread master
primary threads cores sockets ll_caches numa_domains compact scatter balanced granularity fine
core thread tile respect norespect verbose noverbose explicit active passive static dynamic guided
serial turnaround throughput infinite ring tree collnet collnetdirect collnetchain nvls nvlstree
pat simple ll ll128 version warn info trace debug error sse41 avx avx2 avx2_vnni avx512
avx512_core avx512_core_vnni avx512_core_bf16 avx512_core_fp16 avx512_core_amx avx10_1_512
capability zvector vsx haswell skylakex zen cooperlake sapphirerapids sandybridge nehalem
excavator neoversen1 neoversev1 neoversen2 armv8 armv8sve backend native cudamallocasync
expandable_segments max_split_size_mb garbage_collection_threshold roundup_power2_divisions
pinned_use_cuda_host_register tcp rc rc_x rc_v ud ud_x dc dc_x sm self shm cma knem xpmem posix
sysv cuda cuda_copy cuda_ipc gdr_copy rocm verbs efa psm2 psm3 opx ofi_rxm any strict bind
"""
_WORDS = frozenset(_LIBRARY_WORDS.split())


def name(text: str) -> str:
    """A name of letters, digits and _.+-, of at most 80 characters; "" of any other text."""
    return text if _NAME.fullmatch(text) else ""


def system(text: str) -> str:
    """Kernel, its release and the architecture, without what a release is followed by: "Linux
    6.18.44 x86_64" of "Linux 6.18.44-custom x86_64"; "" of any other text."""
    match = _SYSTEM.fullmatch(text)
    return " ".join(match.groups()) if match else ""


def variable(name: str, value: str) -> str:
    """The value of an environment variable where it is of numbers, words that libraries read, and
    for a variable of interfaces their usual names; else "(withheld)"."""
    parts = [part for part in _PARTS.split(value) if part]
    known = len(value) <= 80 and all(
        _NUMBER.fullmatch(part)
        or part.lower() in _WORDS
        or (name.endswith("IFNAME") and _INTERFACE.fullmatch(part))
        for part in parts
    )
    return value if known else WITHHELD
