"""`hydra/launcher=moe`: all cells of a multirun to the bench in one call, so that it can validate
them together and measure many in one set of processes. Any other program's jobs run serially."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


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
        from runners.jobs import Asked

        first = self._compose(list(job_overrides[0]), initial_job_idx)
        known: dict[str, Any] = {}
        asked = [
            Asked(number, plain(config, known), list(overrides))
            for number, (config, overrides) in enumerate(
                self._composed(first, job_overrides, initial_job_idx)
            )
        ]
        sweep_dir = Path(str(first.hydra.sweep.dir))
        outcomes = bench.run_all(asked, sweep_dir, self.cluster)
        return [_returned(first, one.overrides, outcomes[one.number]) for one in asked]

    def _composed(
        self, first: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Iterator[tuple[DictConfig, Sequence[str]]]:
        """One at a time: with Hydra's own node, ten thousand of them fill a machine's memory."""
        yield first, job_overrides[0]
        for number, overrides in enumerate(job_overrides[1:], start=1):
            yield self._compose(list(overrides), initial_job_idx + number), overrides


def plain(config: DictConfig, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Resolved, without Hydra's node (a copy without it would copy it first).

    Top-level references such as ${model.topk}, and nodes that ask nothing but the environment
    (`known` keeps these from job to job), are seen to here: OmegaConf parses each of them anew in
    every one of ten thousand jobs, which takes most of the time.
    """
    nodes = {str(k): node for k, node in config.items_ex(resolve=False) if k != "hydra"}
    found = {
        key: _resolved(node, {} if known is None else known)
        for key, node in nodes.items()
        if OmegaConf.is_config(node)
    }
    for key, node in nodes.items():
        if key not in found:
            found[key] = _looked_up(node, found, config, key)
    return {key: found[key] for key in nodes}


def _resolved(node: Any, known: dict[str, Any]) -> Any:
    raw = OmegaConf.to_container(node, resolve=False)
    text = repr(raw)
    if "${" not in text and "???" not in text:
        return raw
    if text in known:
        return known[text]
    found = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if text.count("${") == text.count("${oc.env:"):
        known[text] = found
    return found


def _looked_up(raw: Any, found: dict[str, Any], config: DictConfig, key: str) -> Any:
    """A leaf's value; what is no plain reference to another node's leaf, OmegaConf resolves."""
    reference = REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
    node = found.get(reference[1]) if reference else None
    if reference and isinstance(node, dict) and not isinstance(node.get(reference[2]), dict | None):
        return node[reference[2]]
    return config[key]


def _returned(config: DictConfig, overrides: Sequence[str], outcome: str) -> JobReturn:
    """What the sweeper is given back; `config` is the first job's, whose Hydra node all share."""
    result = JobReturn(
        overrides=overrides,
        hydra_cfg=OmegaConf.create({"hydra": config.hydra}),
        working_dir=str(Path.cwd()),
        task_name=str(config.hydra.job.name),
    )
    result.status = JobStatus.COMPLETED
    result.return_value = outcome
    return result
