"""What is needed to make a report's numbers again: commands, commit, versions, machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.text import captions, status

if TYPE_CHECKING:
    from analysis.plots.canvas import PlotData

VERSIONED = ("torch", "Python")  # facts that the summary has
NOT_RECORDED = "# the command of the sweep is not in these records"


@dataclass(frozen=True)
class Box:
    """`facts` are (name, value); `commands` (what it makes, command line)."""

    summary: str
    facts: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def box(frame: pd.DataFrame, scene: PlotData) -> Box:
    """Facts that the records do not have are left out."""
    known = facts(frame)
    short = [captions.source(frame).removesuffix(".")]
    short += [f"commit {sha}" for sha in captions.commits(frame, digits=10)[:1]]
    short += [f"{name} {version}" for name, version in known if name in VERSIONED]
    measured = sorted(filter(None, status.sweep_commands(scene.sources))) or [NOT_RECORDED]
    verbs = (("The tables", "show"), ("The plots", "plot"), ("This page", "report"))
    lines = [(what, captions.command(v, scene.sources, *scene.options)) for what, v in verbs]
    return Box(
        summary="; ".join(short),
        facts=known,
        commands=[*(("The sweep", line) for line in measured), *lines],
    )


def facts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(name, value) of what was measured with what; without those that the records do not have."""
    known = [
        ("Sweep", ", ".join(captions.sweeps(frame))),
        ("Commit", ", ".join(captions.commits(frame))),
        ("torch", _each(frame, "torch_version")),
        ("Python", _each(frame, "python_version")),
        ("System", _each(frame, "os")),
        ("Machine", " | ".join(captions.machines(frame))),
    ]
    return [(name, value) for name, value in known if value]


def _each(frame: pd.DataFrame, name: str) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in frame[name] if value))
