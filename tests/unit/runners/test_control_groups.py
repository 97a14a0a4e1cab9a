"""Limits of control groups, from trees of files as the kernel shows them in each surrounding."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.config import memory
from runners.host import control_groups, hardware
from runners.records import stats
from tests.support import analysis_factory as factory

GIB = 1 << 30
MEMINFO = "MemTotal:  33554432 kB\nMemFree:  1048576 kB\nMemAvailable:  16777216 kB\n"


def mount(point: str, root: str = "/", controllers: str = "", number: int = 31) -> str:
    """A line of mountinfo: version 2 where no controllers are named."""
    kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup rw"
    return f"{number} 23 0:28 {root} {point} rw,nosuid shared:9 - {kind}\n"


def tree(
    root: Path, own: str, mounts: str, files: Mapping[str, str] | None = None, meminfo: str = ""
) -> Path:
    """A file system whose process is in the groups `own`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n{mounts}")
    (root / "proc/meminfo").write_text(meminfo)
    for name, content in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


CASES = {
    "version 2, the process's own group (a Slurm step, systemd-run)": (
        "0::/system.slice/job.scope\n",
        mount("/sys/fs/cgroup"),
        {"sys/fs/cgroup/system.slice/job.scope/cpu.max": "70000 100000"},
        0.7,
    ),
    "version 2, a group above": (
        "0::/a/b/c\n",
        mount("/sys/fs/cgroup"),
        {
            "sys/fs/cgroup/a/cpu.max": "300000 200000",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/b/c/cpu.max": "900000 100000",
        },
        1.5,
    ),
    "version 2, a namespace: the container's group is the root": (
        "0::/\n",
        mount("/sys/fs/cgroup"),
        {"sys/fs/cgroup/cpu.max": "250000 100000"},
        2.5,
    ),
    "version 2, a mount that shows more than the namespace": (
        "0::/inner\n",
        mount("/sys/fs/cgroup", "/../.."),
        {"sys/fs/cgroup/cpu.max": "120000 100000", "sys/fs/cgroup/inner/cpu.max": "1000 100000"},
        1.2,
    ),
    "version 2, the process was moved out of the namespace": (
        "0::/../other\n",
        mount("/sys/fs/cgroup"),
        {"sys/fs/cgroup/cpu.max": "50000 100000", "sys/fs/cgroup/other/cpu.max": "1000 100000"},
        None,
    ),
    "version 1, Docker without a namespace: the mount shows the container's group": (
        "3:cpu,cpuacct:/docker/4f\n1:memory:/docker/4f\n",
        mount("/sys/fs/cgroup/cpu,cpuacct", "/docker/4f", "cpu,cpuacct"),
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000",
        },
        3.0,
    ),
    "version 1, a group inside the container": (
        "3:cpu:/docker/4f/job\n",
        mount("/sys/fs/cgroup/cpu", "/docker/4f", "cpu"),
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "60000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
        },
        0.6,
    ),
    "version 1, another container's mount says nothing": (
        "3:cpu:/docker/4f\n",
        mount("/other", "/docker/99", "cpu"),
        {"other/cpu.cfs_quota_us": "1000", "other/cpu.cfs_period_us": "100000"},
        None,
    ),
    "hybrid: the controller is in version 1": (
        "4:cpu:/job\n1:name=systemd:/s\n0::/s\n",
        mount("/sys/fs/cgroup/cpu", "/", "cpu") + mount("/sys/fs/cgroup/unified"),
        {
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "40000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/s/cpu.stat": "usage_usec 1",
        },
        0.4,
    ),
    "hybrid: the controller is in version 2": (
        "4:pids:/job\n0::/s\n",
        mount("/sys/fs/cgroup/pids", "/", "pids") + mount("/sys/fs/cgroup/unified"),
        {"sys/fs/cgroup/unified/s/cpu.max": "80000 100000"},
        0.8,
    ),
    "odd names: a colon, a space, a group that is gone": (
        "0::/a:b/c d/gone (deleted)\n",
        mount(r"/sys/fs/c\040group"),
        {"sys/fs/c group/a:b/cpu.max": "90000 100000", "sys/fs/c group/a:b/c d/cpu.max": "max 1"},
        0.9,
    ),
    "no files at all": ("", "", {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_quota_in_surroundings(tmp_path: Path, name: str) -> None:
    own, mounts, files, quota = CASES[name]
    assert control_groups.cpu_quota(tree(tmp_path, own, mounts, files)) == quota


LEVELS = st.lists(st.none() | st.integers(1000, 6_400_000), min_size=1, max_size=6)


@given(
    levels=LEVELS,
    version=st.sampled_from([1, 2]),
    hidden=st.integers(0, 5),
    period=st.sampled_from([10_000, 100_000]),
)
def test_the_smallest_of_all_groups_above_is_found(
    levels: list[int | None], version: int, hidden: int, period: int
) -> None:
    """Of those that the mount shows: `hidden` names are above its root."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        above = "".join(f"/h{n}" for n in range(hidden))
        names = [f"g{n}" for n in range(len(levels) - 1)]
        path = "/".join([above, *names]) or "/"
        own = f"7:cpuacct,cpu:{path}\n" if version == 1 else f"0::{path}\n"
        point = "/cg/one"
        files = {}
        for depth, quota in enumerate(levels):
            group = "/".join(["cg/one", *names[:depth]])
            if version == 1:
                files[f"{group}/cpu.cfs_quota_us"] = str(-1 if quota is None else quota)
                files[f"{group}/cpu.cfs_period_us"] = str(period)
                files[f"{group}/memory.limit_in_bytes"] = str((quota or 0) or 9223372036854771712)
            else:
                files[f"{group}/cpu.max"] = f"{quota or 'max'} {period}"
                files[f"{group}/memory.max"] = str(quota or "max")
        controllers = "cpu,memory" if version == 1 else ""
        own += f"8:memory:{path}\n" if version == 1 else ""
        tree(root, own, mount(point, above or "/", controllers), files)
        given = [quota for quota in levels if quota is not None]
        least = min(given, default=None)
        assert control_groups.cpu_quota(root) == (least / period if least else None)
        assert control_groups.memory_limit_bytes(root) == least


@given(
    own=st.text(max_size=40),
    mounts=st.text(max_size=80) | st.just(mount("/cg") + mount("/cg", "/", "cpu,memory")),
    content=st.text(max_size=40) | st.sampled_from(["0 0", "-5 100000", "max", "100000", "1e5 10"]),
)
def test_odd_files_are_no_limit_and_no_error(own: str, mounts: str, content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.stat")
        tree(root, f"{own}\n1:cpu,memory:/\n0::/\n", mounts)
        (root / "cg").mkdir()
        for name in names:
            (root / "cg" / name).write_bytes(content.encode("utf-8", "surrogatepass"))
        found = control_groups.cpu_quota(root)
        assert found is None or found > 0
        assert control_groups.memory_limit_bytes(root) is None
        assert control_groups.memory_room_bytes(root) is None


def test_a_file_that_may_not_be_read_is_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/a\n", mount("/cg"), {"cg/cpu.max": "50000 100000"})
    (root / "cg/a/cpu.max").mkdir(parents=True)  # reading it fails, whoever asks
    assert control_groups.cpu_quota(root) == 0.5


@pytest.mark.parametrize(
    ("files", "total_gib", "available_gib"),
    [
        ({}, 32, 16),
        ({"cg/a/memory.max": f"{8 * GIB}"}, 8, 8),
        ({"cg/a/memory.max": f"{64 * GIB}"}, 32, 16),
        ({"cg/a/memory.max": f"{8 * GIB}", "cg/a/memory.current": f"{3 * GIB}"}, 8, 5),
        ({"cg/a/memory.max": "max", "cg/a/memory.high": f"{6 * GIB}"}, 6, 6),
        (  # the larger limit leaves less: its other groups use it up
            {
                "cg/memory.max": f"{20 * GIB}",
                "cg/memory.current": f"{18 * GIB}",
                "cg/a/memory.max": f"{8 * GIB}",
                "cg/a/memory.current": f"{1 * GIB}",
            },
            8,
            2,
        ),
        (  # cached files can be given back; other counts cannot
            {
                "cg/a/memory.max": f"{8 * GIB}",
                "cg/a/memory.current": f"{7 * GIB}",
                "cg/a/memory.stat": f"anon {GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}\nx",
            },
            8,
            5,
        ),
        ({"cg/a/memory.max": f"{8 * GIB}", "cg/a/memory.current": f"{9 * GIB}"}, 8, 0),
    ],
)
def test_memory_of_version_2(
    tmp_path: Path, files: dict[str, str], total_gib: int, available_gib: int
) -> None:
    found = hardware.memory_bytes(tree(tmp_path, "0::/a\n", mount("/cg"), files, MEMINFO))
    assert found["MemTotal"] == total_gib * GIB
    assert found["MemAvailable"] == available_gib * GIB
    assert found["MemFree"] == GIB


def test_memory_of_version_1(tmp_path: Path) -> None:
    files = {
        "cg/memory.limit_in_bytes": "9223372036854771712",
        "cg/memory.usage_in_bytes": f"{20 * GIB}",
        "cg/job/memory.limit_in_bytes": f"{4 * GIB}",
        "cg/job/memory.usage_in_bytes": f"{3 * GIB}",
        "cg/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0",
    }
    root = tree(tmp_path, "9:memory:/job/step\n", mount("/cg", "/", "memory"), files, MEMINFO)
    found = hardware.memory_bytes(root)
    assert (found["MemTotal"], found["MemAvailable"]) == (4 * GIB, 2 * GIB)


def test_memory_that_is_used_up_is_not_taken_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: {"MemTotal": GIB, "MemAvailable": 0})
    assert memory.available_bytes() == 0


@pytest.mark.parametrize(
    ("cores", "quota", "ranks", "flagged"),
    [(2, None, 2, False), (8, 0.5, 1, True), (2, 2.0, 2, False), (4, 3.5, 4, True)],
)
def test_ranks_beyond_the_quota_are_oversubscribed(
    cores: int, quota: float | None, ranks: int, flagged: bool
) -> None:
    record = factory.measured(factory.cell("tp", ranks=ranks))
    record.environment.update(cores=cores, cpu_quota=quota, local_ranks=ranks)
    assert ("oversubscribed" in stats.flags(record)) == flagged


def test_usable_cores_are_cut_to_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "launch_affinity", lambda: (0, 1, 2, 5))
    for quota, cores in ((None, 4), (9.0, 4), (2.6, 2), (0.3, 1)):
        monkeypatch.setattr(hardware, "cpu_quota", lambda quota=quota: quota)
        assert hardware.usable_cores() == cores


V1_CPU = Path("/sys/fs/cgroup/cpu")


@pytest.mark.skipif(
    not (V1_CPU / "cgroup.procs").exists() or not os.access(V1_CPU, os.W_OK) or os.geteuid() != 0,
    reason="needs root and a writable tree of version 1 for cpu",
)
def test_a_real_group_is_seen_by_a_process_in_it() -> None:
    group = V1_CPU / f"moe-bench-test-{os.getpid()}"
    inner = group / "inner"
    try:
        inner.mkdir(parents=True)
        (group / "cpu.cfs_quota_us").write_text("60000")
        child = os.fork()
        if child == 0:
            (inner / "cgroup.procs").write_text(str(os.getpid()))
            os._exit(int(100 * (control_groups.cpu_quota() or 0)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 60
    finally:
        for folder in (inner, group):
            if folder.exists():
                folder.rmdir()
