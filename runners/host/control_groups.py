"""Limits of this process's control groups: the smallest of its own group and all ancestors.

Version 1 has one tree of groups per controller, version 2 a single tree; a machine may have both.
/proc/self/cgroup names the process's group in each tree, /proc/self/mountinfo says which part of a
tree is mounted where. A missing, unreadable or malformed file counts as no limit. Cores are not
read here: the kernel keeps a process's affinity within its cpusets. `root` stands for / in tests.
Stdlib only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runners.host.files import number, text

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 62  # version 1 writes the largest number of pages where there is no limit


@dataclass(frozen=True)
class Group:
    """One group, as a folder with the controller's files."""

    version: int
    folder: Path

    def positive(self, name: str) -> int | None:
        """A positive number in a file; None where there is none."""
        value = number(text(self.folder / name))
        return value if value and value > 0 else None

    def cores(self) -> float | None:
        """CPU quota in cores; None where unlimited."""
        if self.version == 1:
            quota, period = map(self.positive, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        else:
            parts = (text(self.folder / "cpu.max") or "").split()  # "max 100000", "150000 100000"
            quota, period = map(number, parts) if len(parts) == 2 else (None, None)
        return quota / period if quota and quota > 0 and period and period > 0 else None

    def limit_bytes(self) -> int | None:
        """Memory limit; in version 2 the smaller of the hard and the throttling limit."""
        names = ("memory.limit_in_bytes",) if self.version == 1 else ("memory.max", "memory.high")
        limits = [size for size in map(self.positive, names) if size and size < UNLIMITED_BYTES]
        return min(limits, default=None)

    def room_bytes(self) -> int | None:
        """The limit minus memory in use; page cache does not count, the kernel can reclaim it."""
        limit = self.limit_bytes()
        if limit is None:
            return None
        used = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        prefix = "total_" if self.version == 1 else ""
        rows = [line.split() for line in (text(self.folder / "memory.stat") or "").splitlines()]
        counts = {row[0]: number(row[1]) or 0 for row in rows if len(row) == 2}
        cached = sum(counts.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return min(limit, max(0, limit - max(0, (self.positive(used) or 0) - cached)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPU time that this process may use, in cores; None where unlimited."""
    return min(filter(None, (group.cores() for group in groups("cpu", root))), default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Memory that this process may use; None where unlimited."""
    limits = (group.limit_bytes() for group in groups("memory", root))
    return min(filter(None, limits), default=None)


def memory_room_bytes(root: Path = ROOT) -> int | None:
    """Memory left under the tightest limit; None where unlimited."""
    rooms = (group.room_bytes() for group in groups("memory", root))
    return min((room for room in rooms if room is not None), default=None)


def groups(controller: str, root: Path = ROOT) -> Iterator[Group]:
    """The process's own group and all visible ancestors, in every tree of the controller."""
    own_groups = dict(_memberships(controller, root))
    for version, tree_root, mount_point in _mounts(controller, root):
        if version not in own_groups:
            continue
        below = _below(own_groups[version], tree_root)
        if below is not None:
            top = root / mount_point.relative_to("/")
            steps = [below, *below.parents] if below.parts else [below]
            yield from (Group(version, top / step) for step in steps)


def _memberships(controller: str, root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """(version, path of the process's group): lines are "4:cpu,cpuacct:/a/b" or "0::/a/b"."""
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        number_, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if controller in controllers.split(","):
            yield 1, PurePosixPath(path)
        elif (number_, controllers) == ("0", ""):
            yield 2, PurePosixPath(path)


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """(version, mounted group, mount point) from lines as in proc_pid_mountinfo(5)."""
    for line in (text(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, about = line.partition(" - ")
        words, kind = fields.split(), about.split()
        if len(words) < 5 or len(kind) < 3:
            continue
        tree_root, mount_point = (PurePosixPath(_unescaped(word)) for word in words[3:5])
        if not (tree_root.is_absolute() and mount_point.is_absolute()):
            continue
        if kind[0] == "cgroup2":
            yield 2, tree_root, mount_point
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            yield 1, tree_root, mount_point


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _below(group: PurePosixPath, tree_root: PurePosixPath) -> PurePosixPath | None:
    """The group's path below the mounted one; None where it is outside the mounted part. Both count
    from the root of the process's cgroup namespace; groups above that root appear as "/..", and
    then the mounted group itself is the nearest readable one."""
    if group.is_relative_to(tree_root):
        below = group.relative_to(tree_root)
        return None if ".." in below.parts else below
    above = tree_root.parts[1:]
    if set(above) == {".."} and group.parts[1:].count("..") < len(above):
        return PurePosixPath()
    return None
