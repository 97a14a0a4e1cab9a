"""`hydra/launcher=moe`: passes all cells of a multirun to the bench in one call, so that it can
validate them together and measure many in one set of processes. Other programs' jobs run serially.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

from runners.config.resolution import Composed, plain

PACKAGE = "hydra_plugins.moe"  # Hydra instantiates only classes of modules below hydra_plugins


@dataclass
class MoeLauncherConf:
    _target_: str = f"{PACKAGE}.MoeLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="moe", node=MoeLauncherConf, provider="moe_launcher"
)


class MoeLauncher(BasicLauncher):
    """All cells of the bench in one call; other programs' jobs one after the other."""

    __module__ = PACKAGE

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        bench = getattr(self.task_function, "moe_bench", None)
        if bench is None:
            return super().launch(job_overrides, initial_job_idx)
        assert self.config is not None and self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return self._run(bench, job_overrides, initial_job_idx)

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config

    def _run(
        self,
        bench: Any,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,
    ) -> list[JobReturn]:
        first = self._compose(list(job_overrides[0]), initial_job_idx)
        cache: dict[str, Any] = {}
        configs = [
            Composed(plain(config, cache), list(overrides))
            for config, overrides in self._composed(first, job_overrides, initial_job_idx)
        ]
        sweep_dir = Path(str(first.hydra.sweep.dir))
        outcomes = bench.run_all(configs, sweep_dir, plain(first.hydra.launcher))
        return [
            _returned(first, one.overrides, outcome)
            for one, outcome in zip(configs, outcomes, strict=True)
        ]

    def _composed(
        self, first: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Iterator[tuple[DictConfig, Sequence[str]]]:
        """One at a time: ten thousand configs with Hydra's own node fill a machine's memory."""
        yield first, job_overrides[0]
        for number, overrides in enumerate(job_overrides[1:], start=1):
            yield self._compose(list(overrides), initial_job_idx + number), overrides


def _returned(config: DictConfig, overrides: Sequence[str], outcome: str) -> JobReturn:
    """The sweeper's result of a job; `config` is the first job's, whose Hydra node all share."""
    result = JobReturn(
        overrides=overrides,
        hydra_cfg=OmegaConf.create({"hydra": config.hydra}),
        working_dir=str(Path.cwd()),
        task_name=str(config.hydra.job.name),
    )
    result.status = JobStatus.COMPLETED
    result.return_value = outcome
    return result
