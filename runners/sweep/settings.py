"""Settings of a sweep as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.config import recorded_cells
from runners.config.hosts import pass_env_of
from runners.config.schema import SweepKnobs, TrackerKnobs, safe_name, values
from runners.errors import ConfigError
from runners.records.emulation import Emulation
from runners.track.settings import project_name


@dataclass(frozen=True)
class Settings:
    """`resume_mode` of "" is a new sweep; otherwise it selects the cells that are measured."""

    sweep_dir: Path
    isolation: str = "group"
    on_error: str = "continue"
    tracker: dict[str, Any] = field(default_factory=lambda: {"mode": "disabled"})
    command: str = ""
    pass_env: tuple[str, ...] = ()  # patterns of further variables that ranks inherit
    resume_mode: str = ""
    emulated: Emulation | None = None  # whose times the folder has; bench.py resumes no such folder


def settings_of(config: Mapping[str, Any], sweep_dir: Path, command: str) -> Settings:
    """Settings from the resolved config of any of the cells; raises ConfigError."""
    safe_name(config["name"])
    if config["cells"] is not None:  # which a multirun replaces by the cells themselves
        raise recorded_cells.without_multirun(config["cells"])
    tracker = dict(config["tracker"])
    whole = values(config, SweepKnobs)  # checks what only a part of the sweep reads, too
    values(config, TrackerKnobs)
    try:
        project_name(tracker["project"])
    except ValueError as error:
        raise ConfigError(f"tracker.project={error}") from error
    started_again = config["hosts"]["run"] is not None and (sweep_dir / "plan.json").exists()
    resumes = config["resume"] or started_again  # a requeued job of a cluster has the same name
    return Settings(
        sweep_dir=sweep_dir,
        isolation=whole["isolation"],
        on_error=whole["on_error"],
        tracker=tracker,
        command=command,
        pass_env=pass_env_of(config["hosts"]),
        resume_mode=whole["resume_mode"] if resumes else "",
    )
