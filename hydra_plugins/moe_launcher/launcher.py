"""`hydra/launcher=moe`: all cells of a multirun to the bench in one call, so that it can validate
them together and measure many in one set of processes. Any other program's jobs run serially."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class MoeLauncherConf:
    _target_: str = "hydra_plugins.moe_launcher.launcher.MoeLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="moe", node=MoeLauncherConf, provider="moe_launcher"
)


class MoeLauncher(BasicLauncher):
    """Imports of the measuring side wait until there is something to launch."""

    cluster: dict[str, Any] | None = None  # the scheduler's settings, where one is used

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        bench = getattr(self.task_function, "moe_bench", None)
        if bench is None:
            return super().launch(job_overrides, initial_job_idx)
        assert self.config is not None and self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [
            self._compose(list(overrides), initial_job_idx + number)
            for number, overrides in enumerate(job_overrides)
        ]
        return self._run(bench, configs, job_overrides, initial_job_idx)

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
        configs: list[DictConfig],
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,
    ) -> list[JobReturn]:
        from runners.jobs import Asked

        sweep_dir = Path(str(configs[0].hydra.sweep.dir))
        plain = [OmegaConf.masked_copy(c, [str(k) for k in c if k != "hydra"]) for c in configs]
        asked = [
            Asked(number, _container(config), list(overrides))
            for number, (config, overrides) in enumerate(zip(plain, job_overrides, strict=True))
        ]
        outcomes = bench.run_all(asked, sweep_dir, self.cluster)
        return [
            _returned(configs[n], plain[n], list(job_overrides[n]), outcomes[n])
            for n in range(len(configs))
        ]


def _container(config: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _returned(
    config: DictConfig, plain: DictConfig, overrides: list[str], outcome: str
) -> JobReturn:
    result = JobReturn(
        overrides=overrides,
        cfg=plain,
        hydra_cfg=OmegaConf.create({"hydra": config.hydra}),
        working_dir=str(Path.cwd()),
        task_name=str(config.hydra.job.name),
    )
    result.status = JobStatus.COMPLETED
    result.return_value = outcome
    return result
