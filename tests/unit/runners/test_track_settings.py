"""What W&B sees of its surroundings in our processes, and where runs go."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from wandb import env as wandb_env
from wandb.errors import UsageError
from wandb.sdk.wandb_settings import Settings

from analysis import cli
from analysis.errors import SourceError, SourceWarning
from analysis.sources import wandb_api, wandb_file
from runners import bench
from runners.records import flat_row
from runners.track import check, client
from runners.track import cli as track
from runners.track import settings as track_settings
from runners.track.client import run_tracker
from runners.track.run import run_id, run_of
from tests.support import wandb_records
from tests.support.wandb_server import KEY, StandIn

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 120.0
TRACKER = {"mode": "offline", "project": "p", "entity": None}

# What may be set for W&B, written here once more: a new one is a decision.
SERVER = {
    "API_KEY", "BASE_URL", "APP_URL", "HTTP_PROXY", "HTTPS_PROXY", "INSECURE_DISABLE_SSL",
    "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "_EXTRA_HTTP_HEADERS",
}  # fmt: skip
OTHER = {"INIT_TIMEOUT", "FINISH_TIMEOUT", "HTTP_TIMEOUT", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"}
MAY = {f"WANDB_{name}" for name in SERVER | OTHER}
OURS = {"WANDB_ERROR_REPORTING", "WANDB_CONFIG_DIR"}


def of_wandb() -> list[str]:
    """Every variable that the installed client reads, by its settings and its list of names."""
    fields = [name.removeprefix("x") if name.startswith("x_") else name
              for name in Settings.model_fields]  # fmt: skip
    listed = [v for v in vars(wandb_env).values() if isinstance(v, str) and "WANDB_" in v[:7]]
    elsewhere = ["CONFIG", "CONFIG_0", "ARTIFACTS", "DISABLED", "_PROXIES", "SERVICE_TRANSPORT"]
    return sorted({f"WANDB_{name.upper()}" for name in fields + elsewhere} | set(listed))


FOREIGN = [
    *("PET_NNODES", "PET_NO_PYTHON", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"),
    *("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPLBACKEND", "KUBERNETES_SERVICE_HOST"),
    *("SM_TRAINING_ENV", "TRAINING_JOB_NAME", "AWS_LAMBDA_FUNCTION_NAME", "JPY_PARENT_PID"),
]
ODD = [
    *("", " ", "abc ", "abc", "0", "-1", "1e3", "²", "20", "true", "perhaps", "null"),
    *("{", '{"a": "b"}', '{"a": 1}'),
    *("http://h:8080", "http://.", "http://a b", "http://[::1]:8", "socks5://u:p@h:1", "ftp://h"),
    *("https://u:p@h/x", "http://h:99999", "h:1", "http://", "http://["),
]
names = st.sampled_from([*of_wandb(), *FOREIGN, "PATH", "HTTPS_PROXY", "MOE_X"])
variables = st.dictionaries(names, st.sampled_from(ODD) | st.text(max_size=8), max_size=30)


def test_the_clients_names_are_found() -> None:
    assert len(of_wandb()) > 180
    assert {"WANDB_SWEEP_PARAM_PATH", "WANDB_FORK_FROM", "WANDB__EXECUTABLE"} < set(of_wandb())
    assert set(of_wandb()) > MAY


@given(variables)
def test_only_what_is_allowed_reaches_the_tracker(found: dict[str, str]) -> None:
    handed = track_settings.allowed(found)
    assert set(handed) == {
        name for name, value in found.items()
        if (name in MAY and value) or name in ("PATH", "HTTPS_PROXY", "MOE_X")
    }  # fmt: skip
    assert all(handed[name] == found[name] for name in handed)


def test_the_tracker_is_started_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*of_wandb(), *FOREIGN]:
        monkeypatch.setenv(name, "1")
    code = "import os, sys; print(*os.environ, file=sys.stderr)"
    names = set(client._run([sys.executable, "-c", code], LIMIT_S).warning.split())
    assert names > MAY
    assert not names & {*FOREIGN, *of_wandb()} - MAY


@given(found=variables)
def test_wandb_can_read_all_that_it_sees(found: dict[str, str], tmp_path: Path) -> None:
    readable(found, tmp_path)


@pytest.mark.parametrize("value", [value for value in ODD if value])
def test_wandb_can_read_every_odd_value_of_every_name(value: str, tmp_path: Path) -> None:
    for name in sorted(MAY):
        readable({name: value}, tmp_path)


def readable(found: dict[str, str], tmp_path: Path) -> None:
    """By the installed client's own parser: it raises nothing, and nothing of a run is set."""
    usable = track_settings.usable({**found, "WANDB_CONFIG_DIR": str(tmp_path)}, tmp_path)
    seen = {name for name in usable.variables if "WANDB" in name}
    assert seen <= MAY | OURS
    parsed = Settings()
    parsed.update_from_env_vars(usable.variables)
    told = {name for name in Settings.model_fields if getattr(parsed, name) != DEFAULTS[name]}
    assert told <= {
        *("api_key", "base_url", "app_url_override", "http_proxy", "https_proxy"),
        *("insecure_disable_ssl", "identity_token_file", "credentials_file"),
        *("x_extra_http_headers", "init_timeout", "finish_timeout", "x_graphql_timeout_seconds"),
    }
    dropped = {n for n in found if n in MAY - OURS and found[n]} - seen
    assert len(usable.faults) == len(dropped)
    assert all(any(name in fault for fault in usable.faults) for name in dropped)


DEFAULTS = {name: getattr(Settings(), name) for name in Settings.model_fields}


@pytest.mark.parametrize(
    ("name", "value", "server"),
    [
        ("WANDB_INIT_TIMEOUT", "abc", True),
        ("WANDB_FINISH_TIMEOUT", "0", True),
        ("WANDB_HTTP_TIMEOUT", "²", True),
        ("WANDB_BASE_URL", "my.server", False),
        ("WANDB_HTTPS_PROXY", "proxy:3128", False),
        ("WANDB_INSECURE_DISABLE_SSL", "perhaps", False),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, value: str, server: bool
) -> None:
    found = track_settings.usable({name: value, "WANDB_CONFIG_DIR": "no"}, tmp_path)
    assert name not in found.variables
    assert found.server is server
    (fault,) = found.faults
    assert fault.startswith(f"{name}={value}: allowed ")


def settings_file(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings").write_text("\n".join(["[default]", *lines]), "utf-8")
    return folder


def test_of_files_only_the_way_to_a_server_is_taken(tmp_path: Path) -> None:
    config = settings_file(
        tmp_path / "config", "base_url = http://a:1", "run_id = mine", "mode = disabled"
    )
    settings_file(tmp_path / "wandb", "base_url = http://b:2", "project = x", "entity = y")
    given = {"WANDB_CONFIG_DIR": str(config)}
    found = track_settings.usable(given, tmp_path)
    assert found.variables == {**track_settings.OURS, "WANDB_BASE_URL": "http://b:2"}
    found = track_settings.usable({**given, "WANDB_BASE_URL": "http://c:3"}, tmp_path)
    assert found.variables["WANDB_BASE_URL"] == "http://c:3"
    assert track_settings.usable(given, config).variables["WANDB_BASE_URL"] == "http://a:1"


@pytest.mark.parametrize(
    "text", ["nothing", "[default]\nbase_url = %(x)s", "[default]\nbase_url=b"]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    """Without it runs would go to another server than the one that it names."""
    (tmp_path / "settings").write_text(text)
    found = track_settings.usable({"WANDB_CONFIG_DIR": str(tmp_path)}, tmp_path)
    assert (len(found.faults), found.server) == (1, False)
    assert str(tmp_path / "settings") in found.faults[0]


HOSTILE = {
    "WANDB_SWEEP_PARAM_PATH": "f.yaml",
    "WANDB_CONFIG_PATHS": "f.yaml",
    "WANDB_LAUNCH": "true",
    "WANDB_LAUNCH_CONFIG_PATH": "launch.json",
    "WANDB_CONFIG": '{"topk": 99}',
    "WANDB_FORK_FROM": "other?_step=1",
    "WANDB_RESUME": "must",
    "WANDB_RUN_ID": "mine",
    "WANDB_SWEEP_ID": "s",
    "WANDB_INIT_TIMEOUT": "abc",
    "WANDB_MODE": "",
    "WANDB_DISABLED": "true",
    "WANDB_RUN_GROUP": "g",
    "WANDB_JOB_TYPE": "j",
    "WANDB_NAME": "n",
    "WANDB_NOTES": "theirs",
    "WANDB_TAGS": "a,b",
    "WANDB_DIR": "elsewhere",
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "theirs",
    "WANDB_SILENT": "perhaps",
    "WANDB_HOST": "h",
    "WANDB_BASE_URL": "https://wandb.ai",  # refused by the client: no address of a server
    "WANDB_SERVICE": "3-1-tcp-localhost-9-1",
    "WANDB__SKIP_TRANSACTION_LOG": "true",
    "WANDB__HISTORY_VALUE_ENCODING": "binary",
    "SM_TRAINING_ENV": '{"topk": 77}',
    "TRAINING_JOB_NAME": "job",
}
YAML = 'strategy: {value: "simple,ep"}\ntopk: {value: 98}\nnew: {value: 1}\n'


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of somebody who runs W&B's agents, launches and settings files."""
    for name in [name for name in os.environ if "WANDB" in name]:
        monkeypatch.delenv(name)
    folder = tmp_path / "work"
    settings_file(folder / "wandb", "run_group = filed", "sweep_param_path = f.yaml")
    config = settings_file(tmp_path / "config", "mode = disabled", "resume_from = other?_step=1")
    (folder / "f.yaml").write_text(YAML)
    (folder / "config-defaults.yaml").write_text(YAML)
    (folder / "secrets.env").write_text("WANDB_RUN_GROUP=secret\n")
    (folder / "launch.json").write_text('{"overrides": {"run_config": {"topk": 97}}}')
    for name, value in {**HOSTILE, "WANDB_CONFIG_DIR": str(config)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


def assert_runs_are_the_records(sweep: Path, project: str, entity: str | None) -> None:
    logs = wandb_file.find(sweep)
    assert len(logs) == 2
    for record in wandb_records.grid(size=2):
        (log,) = [log for log in logs if run_id(record, "") in log.name]
        assert check.fault(log, run_of(record, ""), project, entity) == ""
    rows = wandb_file.load(sweep, samples=True)
    wanted = [flat_row.row(r, samples=True) for r in wandb_records.grid(size=2)]
    assert json.dumps(sorted(rows, key=lambda row: str(row["created"]))) == json.dumps(wanted)


def test_runs_are_the_records_whatever_surrounds_the_sweep(hostile: Path) -> None:
    sweep = wandb_records.write_sweep(hostile / "s", wandb_records.grid(size=2))
    ids = [record.attempt_id for record in wandb_records.grid(size=2)]
    result = run_tracker(sweep, ids, TRACKER, LIMIT_S)
    assert (result.ok, result.runs) == (True, 2), result.warning
    assert result.warning == (
        "WANDB_INIT_TIMEOUT=abc: allowed are whole numbers of seconds above 0; 20 is used"
    )
    assert_runs_are_the_records(sweep, "p", "")


def test_runs_are_the_records_whatever_surrounds_the_command(hostile: Path) -> None:
    """As a user or cron calls it: relative paths, and where runs go from the environment."""
    sweep = wandb_records.write_sweep(hostile / "s", wandb_records.grid(size=2))
    command = [sys.executable, "-m", "runners.track", "s", "--dir", "d"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WANDB_INIT_TIMEOUT=abc" in done.stderr
    assert not list(sweep.glob("wandb"))
    assert_runs_are_the_records(hostile / "d", "theirs", "theirs")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = wandb_records.write_sweep(tmp_path_factory.mktemp("s"), wandb_records.grid(size=1))
    assert run_tracker(sweep, [wandb_records.record().attempt_id], TRACKER, LIMIT_S).ok
    return wandb_file.find(sweep)[0]


RUN = run_of(wandb_records.record(), "")


@given(st.sampled_from(sorted(RUN.config)), st.sampled_from(["x", 5, -2.5, None, True, [1], {}]))
@settings(max_examples=50)
def test_a_config_key_that_differs_from_the_records_is_named(
    log: Path, name: str, value: object
) -> None:
    written = json.dumps(RUN.config[name], sort_keys=True)
    found = check.fault(
        log, dataclasses.replace(RUN, config={**RUN.config, name: value}), "p", None
    )
    if written == json.dumps(value):
        assert found == ""
    else:
        shown = written if len(written) <= 40 else f"{written[:40]}..."
        assert found == f"config.{name} is {shown} in it and {json.dumps(value)} in the record"


@pytest.mark.parametrize(
    "changes",
    [{"id": "i"}, {"name": "n"}, {"group": "g"}, {"job_type": "j"}, {"tags": ("t",)},
     {"notes": "n"}],
)  # fmt: skip
def test_what_names_a_run_is_compared(log: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    found = check.fault(log, dataclasses.replace(RUN, **changes), "p", None)
    assert found.startswith(f"{name} is ")
    assert check.fault(log, RUN, "p", None) == ""
    assert check.fault(log, RUN, "q", None) == 'project is "p" in it and "q" in the record'
    assert "entity is" in check.fault(log, RUN, "p", "team")


def test_keys_that_only_one_side_has_are_named(log: Path) -> None:
    config = {name: value for name, value in RUN.config.items() if name != "topk"}
    found = check.fault(log, dataclasses.replace(RUN, config={**config, "a": 1}), "p", None)
    assert "config.a is absent in it and 1 in the record" in found
    assert "config.topk is 2 in it and absent in the record" in found


LEAK = """
import sys
from runners.track import cli, settings
settings.ALLOWED += ("WANDB_SWEEP_PARAM_PATH",)
sys.exit(cli.main())
"""


def test_a_run_that_is_not_its_records_is_an_error_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if W&B finds another way: the run is not left for a sync or a table."""
    wandb_records.write_sweep(tmp_path / "s", wandb_records.grid(size=1))
    (tmp_path / "f.yaml").write_text(f'strategy: {{value: "simple,{KEY}"}}')
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "f.yaml"))
    done = subprocess.run(
        [sys.executable, "-c", LEAK, str(tmp_path / "s"), "--mode", "offline"],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["runs"], told["sync_command"]) == (1, 0, "")
    (warning,) = told["warnings"]
    assert "is not as its record, and removed: config.strategy is " in warning
    assert '"simple,' in warning and 'and "simple" in the record' in warning
    assert KEY not in warning
    assert not list(tmp_path.glob("s/wandb/*run-*"))


CASES = [  # on the command line, in the environment, where runs go
    ("", None, "moe-bench"),
    ("", "", "moe-bench"),
    ("", "theirs", "theirs"),
    ("named", None, "named"),
    ("named", "theirs", "named"),
]


def run_bench(*words: str) -> int:
    """In this process, of which it leaves nothing changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench.py", *words])
        patch.setattr(bench, "BENCH", bench.Bench())
        return bench.run()


def of_bench(words: list[str], capsys: pytest.CaptureFixture[str], _: Path) -> tuple[str, str]:
    typed = [f"tracker.{word.removeprefix('--')}" for word in words]
    assert run_bench("--cfg", "job", "--resolve", *typed) == 0
    found = OmegaConf.create(capsys.readouterr().out).tracker
    return found.project, found.entity or ""


def of_track(words: list[str], _: pytest.CaptureFixture[str], __: Path) -> tuple[str, str]:
    options = track._parse(words)
    return options.project, options.entity or ""


def of_dashboard(
    words: list[str], capsys: pytest.CaptureFixture[str], sweep: Path
) -> tuple[str, str]:
    """By what is asked of the server when it is stored."""
    with StandIn() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        assert cli.main(["dashboard", str(sweep), *words, "--save"]) == 0, capsys.readouterr().err
        (view,) = server.views.values()
    return view["projectName"], view["entityName"].replace("tester", "")


@pytest.mark.parametrize(("typed", "exported", "wanted"), CASES)
@pytest.mark.parametrize("where", [of_bench, of_track, of_dashboard])
def test_runs_are_written_and_looked_for_at_one_place(
    typed: str,
    exported: str | None,
    wanted: str,
    where: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    sweep = wandb_records.write_sweep(tmp_path, wandb_records.grid(size=3))
    monkeypatch.setenv("WANDB_MODE", "")
    for name in ("PROJECT", "ENTITY"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
        if exported is not None:
            monkeypatch.setenv(f"WANDB_{name}", exported)
    words = [f"--project={typed}", f"--entity={typed}"] if typed else []
    entity = "" if wanted == "moe-bench" else wanted
    assert where(words, capsys, sweep) == (wanted, entity)


@pytest.mark.parametrize("name", ["a/b", "x" * 129, "50%"])
def test_a_project_that_wandb_refuses_is_refused_before_a_start(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        Settings(project=name)
    with pytest.raises(SystemExit):
        track._parse(["--project", name])
    monkeypatch.setenv("WANDB_PROJECT", name)
    assert run_bench("world_size=1", f"hydra.run.dir={tmp_path}/s") == 2
    assert f"tracker.project={name!r}: allowed are names of 1 to 128" in capsys.readouterr().err


def test_the_entity_of_a_source_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`wandb:project`; what surrounds the analysis changes nothing else and stays as it is."""
    with StandIn() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        hostile = {"ENTITY": "team", "INIT_TIMEOUT": "abc", "MODE": "disabled", "RUN_ID": "mine"}
        for name, value in hostile.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        settings_file(tmp_path / "wandb", "mode = disabled", "init_timeout = abc", "entity = e")
        monkeypatch.chdir(tmp_path)
        server.stored("r", entity="team", project="theirs")
        before = dict(os.environ)
        with pytest.warns(SourceWarning) as told:
            assert wandb_api.load("wandb:theirs") == []
        assert dict(os.environ) == before
        assert "run r left out: not a run of this project" in " ".join(str(w.message) for w in told)
        assert any("WANDB_INIT_TIMEOUT=abc" in str(w.message) for w in told)
        monkeypatch.setenv("WANDB_BASE_URL", "nowhere")
        with pytest.raises(SourceError, match="WANDB_BASE_URL=nowhere: allowed are addresses"):
            wandb_api.load("wandb:theirs")
