"""Every picture by name: a function of a scene that gives a drawing (or several), a sentence in its
place where it would show nothing more, or None without data for it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.output import harmless
from runners.host.hardware import usable_cores

if TYPE_CHECKING:
    from analysis.plots.canvas import PlotData
    from analysis.plots.drawing import Drawing

STYLE = Path(__file__).parent / "style.mplstyle"
# name -> (module, what it shows); modules are imported when drawn, matplotlib is slow to import
PLOTS = {
    "speed_vs_top_k": ("lines", "duration against top-k"),
    "speed_vs_ranks": ("lines", "duration against ranks"),
    "speed_vs_batch": ("lines", "duration against batch size"),
    "throughput_vs_topk": ("lines", "throughput against top-k"),
    "throughput_vs_batch": ("lines", "throughput against batch size"),
    "throughput_vs_total_ranks": ("lines", "throughput against ranks"),
    "axis": ("lines", "any figure against any axis with bands (--group, --metric)"),
    "strong_scaling": ("scaling", "speed-up against ranks, with the ideal and the serial baseline"),
    "weak_scaling": ("scaling", "efficiency where the batch grows with the ranks"),
    "phases": ("bars", "where the time of a step goes"),
    "memory": (
        "bars",
        "peak memory, weights, and the most that a step adds, of the largest rank",
    ),
    "crossover": ("heatmaps", "which strategy is fastest where"),
    "skew": ("heatmaps", "slots of every rank over the mean"),
    "roofline": ("roofline", "arithmetic rate against intensity, under the calibrated roof"),
    "forest": ("forest", "ratios of durations with their intervals"),
    "beside": ("forest", "ours over the best of other systems, setting by setting"),
    "kernels": ("kernels", "FLOP/s of every expert kernel and peer against tokens, by model"),
    "uneven": ("kernels", "what uneven splits cost: a step's time over that of forced balance"),
    "traces": ("samples", "every sample in the order taken, warm-up shaded"),
}


FIRST, SLOW = "lines", ("traces", "skew")


def settle_matplotlib() -> None:
    """Imports matplotlib with our settings alone; call it before the first plot of a process.

    On import matplotlib reads MPLBACKEND and a matplotlibrc, first of the current folder, and may
    fail at either. Where it is imported already, as in a notebook, nothing is changed.
    """
    if "matplotlib" in sys.modules:
        return
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": str(STYLE)}
    with contextlib.chdir(STYLE.parent):
        import matplotlib  # noqa: F401


def maker(name: str) -> Callable[[PlotData], Drawing | list[Drawing] | str | None]:
    """The function that draws a plot; raises InputError for an unknown name."""
    if name not in PLOTS:
        near = difflib.get_close_matches(name, PLOTS, 3, 0.4)
        raise InputError(
            f"--name {name}: no such plot; allowed are {', '.join(PLOTS)}; "
            f"near is {', '.join(near) or 'none of them'}"
        )
    from importlib import import_module

    module = import_module(f"analysis.plots.{PLOTS[name][0]}")
    function: Callable[[PlotData], Drawing | list[Drawing] | str | None] = getattr(module, name)
    return function


def figures(
    scene: PlotData, names: Sequence[str] = ()
) -> Iterator[tuple[str, Drawing | str | None]]:
    """Each picture with its plot's name, in order. Cells that were checked and not timed are in
    none."""
    from analysis.plots import canvas

    cells = scene.cells[scene.cells["outcome"] != "checked"]
    scene = dataclasses.replace(scene, cells=cells)
    for name, make in [(name, maker(name)) for name in names or PLOTS]:
        with canvas.styled():
            drawings = None if cells.empty else make(scene)
            for figure in drawings if isinstance(drawings, list) else [drawings]:
                yield name, figure


def draw(scene: PlotData, folder: Path, names: Sequence[str] = ()) -> dict[str, list[Path | str]]:
    """By name the files of what could be drawn, or a note with the sentence in its place; names
    without data have nothing."""
    from analysis.plots import canvas

    drawn: dict[str, list[Path | str]] = {}
    for name, figure in figures(scene, names):
        files = drawn.setdefault(name, [])
        if figure is None or isinstance(figure, str):
            files += [harmless(f"note: {name}: {figure}")] if figure else []
            continue
        with canvas.styled():
            files += canvas.save(figure, folder, name + figure.suffix)
    return drawn


def draw_all(scene: PlotData, folder: Path) -> Iterator[Path | str]:
    """The files and notes of every plot that the records have data for, as they come: as many at a
    time as there are cores, in forks of this process; lines first, then what takes longest."""
    from analysis.plots import canvas  # noqa: F401  # imported before the forks

    workers = min(usable_cores(), len(PLOTS))
    if workers < 2 or threads() > 1:
        for files in draw(scene, folder).values():
            yield from files
        return
    context = multiprocessing.get_context("fork")
    begin = [name for name, (module, _) in PLOTS.items() if module == FIRST]
    begin += [name for name in SLOW if name in PLOTS]
    with context.Pool(workers, _share, (scene, folder)) as pool:
        for files in pool.imap(_draw_one, dict.fromkeys([*begin, *PLOTS])):
            yield from files


def threads() -> int:
    """Threads of this process; a fork has only the one that forked, so no other may be needed."""
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:  # no Linux
        return sys.maxsize


SHARED: list[tuple[PlotData, Path]] = []  # of a fork, from its parent


def _share(scene: PlotData, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its forks
    SHARED[:] = [(scene, folder)]


def _draw_one(name: str) -> list[Path | str]:
    return draw(*SHARED[0], [name])[name]
