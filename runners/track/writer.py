"""Writes one run with W&B, offline or online: the only module here that imports its client.

Nothing is measured or sent that is not asked for, the log is flushed at once, and every wait for a
server is bounded. Settings of the surroundings are kept out by `runners.track.settings`.
"""

from __future__ import annotations

import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from runners.track.run import Run
from runners.track.settings import drop_server_variables, timeout_s
from runners.track.signals import Interruption, end_children

TEARDOWN_S = 10.0
FLUSH_INTERVAL_S = 0.1
PAGE = 1000
ARTIFACT_TYPE = "moebench"


class OnServer(NamedTuple):
    """What the server has of a run; `lines` is its number of history rows."""

    state: str
    summary: dict[str, Any]
    lines: int


class Gap(RuntimeError):
    """A run on the server lacks rows that W&B's client refuses to send any more."""


class Writer:
    """Writes runs below `folder`/wandb, one at a time."""

    def __init__(
        self,
        folder: Path,
        project: str,
        entity: str | None,
        online: bool,
        interruption: Interruption,
    ) -> None:
        self.folder = folder
        self.project = project
        self.entity = entity
        self.online = online
        self.interruption = interruption
        self.faults: list[str] = []  # what written runs lack, a sentence each

    def write(self, run: Run, stored: OnServer | None = None) -> Path:
        """Returns the path of the run's log. Raises what W&B raises, TimeoutError when the server
        does not confirm the run (its log is complete all the same), and Gap where the server's rows
        end before the step from which W&B continues.

        The summary goes first, then a packed file: a log with all history rows and an exit record
        is then complete. A packed file that W&B does not take is one of `faults`, no more.
        What is `stored` from an interrupted tracker is completed: its rows are not sent again.
        """
        with self.interruption.deferred():
            return self._write(run, stored)

    def _write(self, run: Run, stored: OnServer | None) -> Path:
        if not self.online:
            drop_server_variables()
        import wandb

        active = wandb.init(
            mode="online" if self.online else "offline",
            dir=str(self.folder),
            project=self.project,
            entity=self.entity,
            id=run.id,
            name=run.name,
            group=run.group,
            job_type=run.job_type,
            tags=run.tags,
            notes=run.notes or None,
            config=run.config,
            resume="allow" if stored else None,
            settings=_settings(),
        )
        log = Path(active.settings.sync_file)
        done = False
        try:
            active.define_metric("*", summary="none")  # W&B adds nothing to the summary
            active.summary.update(run.summary)
            artifact = self._attach(active, run) if run.packed else None
            for step in range(active.starting_step, len(run.history)):
                if self.interruption.requested:
                    break
                active.log(run.history[step], step=step)
            else:
                done = True
                self._confirm(artifact, run)
        finally:
            active.finish(exit_code=run.exit_code if done else 1)
        if stored and active.starting_step > stored.lines:
            raise Gap(f"rows {stored.lines} to {active.starting_step - 1} of run {run.id}")
        return log

    def _attach(self, active: Any, run: Run) -> Any:
        """Copies the packed file into the run's files, so that it travels with the folder, and logs
        that copy as an artifact. (By default W&B would copy it once more, to its staging folder.)
        Returns the artifact; None where there is none."""
        import wandb

        assert run.packed is not None
        try:
            files = Path(active.dir)
            copy = shutil.copyfile(run.packed, files / run.packed.name)
            active.save(str(copy), base_path=str(files), policy="now", glob=False)
            artifact = wandb.Artifact(run.packed.stem, type=ARTIFACT_TYPE)
            artifact.add_file(str(copy), policy="immutable", skip_cache=True)
            return active.log_artifact(artifact)
        except Exception as error:
            self.faults.append(f"run {run.id} is without {run.packed.name}: {error}")
            return None

    def _confirm(self, artifact: Any, run: Run) -> None:
        """Online: waits until the server has the artifact, for as long as for the end of a run."""
        if artifact is None or not self.online or run.packed is None:
            return
        try:
            artifact.wait(timeout_s("WANDB_FINISH_TIMEOUT"))
        except Exception as error:
            self.faults.append(
                f"the server did not take {run.packed.name} as an artifact of run {run.id}, only "
                f"as one of its files: {error}"
            )

    def on_server(self, ids: list[str]) -> dict[str, OnServer]:
        """Which of these runs the server has, by id; one request per page."""
        with self.interruption.deferred():
            return self._on_server(ids)

    def _on_server(self, ids: list[str]) -> dict[str, OnServer]:
        import wandb

        api = wandb.Api(timeout=timeout_s("WANDB_HTTP_TIMEOUT"))
        path = f"{self.entity or api.default_entity}/{self.project}"
        runs = api.runs(
            path, filters={"name": {"$in": ids}}, per_page=min(PAGE, len(ids)), lazy=False
        )
        try:
            return {
                run.id: OnServer(run.state, run.summary_metrics, int(run.historyLineCount or 0))
                for run in runs
            }
        except ValueError:  # W&B's error for a project that does not exist yet
            return {}

    def close(self) -> None:
        """Ends W&B's own process; after a failure only this frees the run id.

        In about one of a hundred cases it misses the request to end, and `teardown` waits without a
        limit: then it is killed here. Every finished run is on disk by then.
        """
        wandb = sys.modules.get("wandb")
        if wandb is not None:
            overdue = threading.Timer(TEARDOWN_S, end_children)
            overdue.daemon = True
            overdue.start()
            # teardown exits where the process had to be killed.
            with self.interruption.deferred(), suppress(Exception, SystemExit):
                wandb.teardown()
            overdue.cancel()


def media(pages: dict[str, Path], pictures: dict[str, Path]) -> dict[str, Any]:
    """A history row of HTML pages and images, by their keys; the files are copied at once."""
    import wandb

    row: dict[str, Any] = {
        key: wandb.Html(path.read_text("utf-8"), inject=False) for key, path in pages.items()
    }
    return {**row, **{key: wandb.Image(str(path)) for key, path in pictures.items()}}


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        symlink=False,
        use_dot_wandb=False,
        sagemaker_disable=True,  # or it takes a training job's name and parameters
        save_code=False,
        disable_code=True,
        disable_git=True,
        init_timeout=timeout_s("WANDB_INIT_TIMEOUT"),
        finish_timeout=timeout_s("WANDB_FINISH_TIMEOUT"),
        finish_timeout_raises=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_viewer=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=FLUSH_INTERVAL_S,
    )
