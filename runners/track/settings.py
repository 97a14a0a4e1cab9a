"""Environment variables and settings that W&B sees in our processes, and default destinations.

W&B reads settings, another run's id and parameters included, from WANDB_* variables, from two files
(`wandb/settings` of the working folder, `settings` of its config folder) and from the working
folder. A sweep's agent, a launch or a notebook sets them for its own runs. Our processes get only
what is listed here: how to reach a server, and where W&B keeps its own files. Imports no W&B.
"""

from __future__ import annotations

import configparser
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runners.host import project_paths
from runners.host.inherited import SYSTEM, inherited

CONF = project_paths.CONF / "tracker" / "wandb.yaml"
# Timeouts in s for every wait for a server, under W&B's names; defaults for unset ones.
TIMEOUTS_S = {"WANDB_INIT_TIMEOUT": 20, "WANDB_FINISH_TIMEOUT": 60, "WANDB_HTTP_TIMEOUT": 20}
# Variables for reaching a server, and the name of each in W&B's files.
SERVER = {
    "WANDB_API_KEY": "api_key",
    "WANDB_BASE_URL": "base_url",
    "WANDB_APP_URL": "app_url_override",
    "WANDB_HTTP_PROXY": "http_proxy",
    "WANDB_HTTPS_PROXY": "https_proxy",
    "WANDB_INSECURE_DISABLE_SSL": "insecure_disable_ssl",
    "WANDB_IDENTITY_TOKEN_FILE": "identity_token_file",
    "WANDB_CREDENTIALS_FILE": "credentials_file",
    "WANDB__EXTRA_HTTP_HEADERS": "x_extra_http_headers",
}
CONFIG_DIR = "WANDB_CONFIG_DIR"
OWN_FILES = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR")  # folders of W&B's log, and of what it stages
ALLOWED = (
    *SYSTEM,
    *("MOE_*", "NETRC"),  # ours; the file of keys
    *SERVER,
    *TIMEOUTS_S,
    *(CONFIG_DIR, *OWN_FILES),  # folders of W&B's own files
)
SCHEMES = ("http", "https")  # of servers and proxies, as the client accepts them
HOST = re.compile(r"[a-z0-9]([a-z0-9._:-]*[a-z0-9])?")
# Set for W&B, so that it sends no error reports and finds no settings file; see `usable`.
OURS = {"WANDB_ERROR_REPORTING": "false", CONFIG_DIR: os.devnull}


@dataclass
class Usable:
    """`variables` that W&B may see; `faults` are sentences about those it may not."""

    variables: dict[str, str]
    faults: list[str] = field(default_factory=list)
    server: bool = True  # False where a fault makes it unsafe to ask any server


def defaults() -> dict[str, Any]:
    """Mode, project and entity where no command line gives them: from the environment, else from
    conf/tracker/wandb.yaml."""
    from omegaconf import OmegaConf

    drop_empty()
    values = OmegaConf.to_container(OmegaConf.load(CONF), resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def project_name(value: object) -> str:
    """A project's name as W&B accepts it; raises ValueError."""
    text = str(value or "")
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", text):
        raise ValueError(
            f"{text!r}: allowed are names of 1 to 128 characters without / \\ # ? % :; "
            "name another project"
        )
    return text


def drop_empty() -> None:
    """Removes empty variables of W&B: for us, conf and W&B they count as unset."""
    for name in [name for name, value in os.environ.items() if _is_wandb(name) and not value]:
        del os.environ[name]


def _is_wandb(name: str) -> bool:
    return "WANDB" in name


def allowed(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process of ours in which W&B runs may inherit."""
    selected = inherited(variables, ALLOWED)
    return {name: value for name, value in selected.items() if value or not _is_wandb(name)}


def usable(variables: Mapping[str, str], folder: Path) -> Usable:
    """What W&B may see: allowed variables with valid values, and server settings of W&B's files
    (`folder` is the working folder) where no variable gives them."""
    result = Usable(allowed(variables))
    named = {name: name for name in result.variables}
    for name, (value, where) in _from_files(result, folder).items():
        if not ("KEY" in name and "WANDB_IDENTITY_TOKEN_FILE" in result.variables):
            result.variables.setdefault(name, value)
            named.setdefault(name, where)
    for name, fault in list(_faults(result.variables)):
        value = result.variables.pop(name)
        secret = "HEADERS" in name or "KEY" in name
        shown = "" if secret else f"={value}"
        result.faults.append(f"{named[name]}{shown}: {fault}")
        result.server = result.server and name in TIMEOUTS_S
    result.variables |= OURS
    return result


def _from_files(result: Usable, folder: Path) -> dict[str, tuple[str, str]]:
    """Value and origin by variable; the working folder's file has precedence over W&B's own."""
    config = result.variables.get(CONFIG_DIR) or "~/.config/wandb"
    values: dict[str, tuple[str, str]] = {}
    home = Path(os.path.expanduser(config))  # noqa: PTH111  Path's own raises without a home
    paths = (folder / ".wandb", folder / "wandb", home)
    for path in (path / "settings" for path in paths):
        parser = configparser.ConfigParser()
        try:
            parser.read(path, "utf-8")
            section = dict(parser.items("default")) if parser.has_section("default") else {}
        except (OSError, ValueError, configparser.Error) as error:
            result.faults.append(f"{path}: cannot be read ({error}); correct or remove it")
            result.server = False
            continue
        for variable, name in SERVER.items():
            if section.get(name):
                values.setdefault(variable, (section[name], f"{name} in {path}"))
    return values


def _faults(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    checks: dict[str, tuple[Callable[[str], Any], str]] = {
        name: (_is_seconds, f"allowed are whole numbers of seconds above 0; {value} is used")
        for name, value in TIMEOUTS_S.items()
    }
    for name in ("WANDB_BASE_URL", "WANDB_APP_URL", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY"):
        checks[name] = (_is_address, "allowed are addresses such as http://host:1234; correct it")
    checks["WANDB_INSECURE_DISABLE_SSL"] = (_is_boolean, "allowed are true and false; correct it")
    checks["WANDB_API_KEY"] = (_is_trimmed, "allowed is a key without blanks around; correct it")
    checks["WANDB__EXTRA_HTTP_HEADERS"] = (_is_headers, "allowed is a JSON object; correct it")
    for name, (fits, fault) in checks.items():
        if name in variables and not fits(variables[name]):
            yield name, fault


def _is_seconds(text: str) -> bool:
    return bool(re.fullmatch(r"0*[1-9][0-9]{0,5}", text))


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        host = url.hostname or ""
        return url.scheme in SCHEMES and bool(HOST.fullmatch(host)) and (url.port or 1) > 0
    except ValueError:
        return False


def _is_boolean(text: str) -> bool:
    return text.lower() in ("true", "false", "1", "0")


def _is_trimmed(text: str) -> bool:
    return text == text.strip()


def _is_headers(text: str) -> bool:
    try:
        headers = json.loads(text)
    except ValueError:
        return False
    return isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values())


def timeout_s(name: str) -> int:
    """A timeout in s, in a process whose environment is usable."""
    return int(os.environ.get(name) or TIMEOUTS_S[name])


def drop_server_variables() -> None:
    """Removes a server's variables, so that they cannot disturb offline writing."""
    for name in SERVER:
        os.environ.pop(name, None)


def replace_environment() -> Usable:
    """In a process of our own, before W&B is imported: replaces the whole environment."""
    result = usable(os.environ, Path())
    os.environ.clear()
    os.environ.update({**result.variables, "WANDB_SILENT": "true"})
    return result


@contextmanager
def own_files_in(folder: Path) -> Iterator[None]:
    """W&B keeps its own files below `folder`, unless variables name other places: it would put them
    into the home folder, which may be small, not writable, or on another machine's disk."""
    unset = [name for name in OWN_FILES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(folder)))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


@contextmanager
def usable_environment() -> Iterator[list[str]]:
    """Temporarily, in a process that may be the user's: W&B's variables are the usable ones, others
    stay. Yields the faults; raises ValueError where no server can be asked."""
    result = usable(os.environ, Path())
    if not result.server:
        raise ValueError("; ".join(result.faults))
    before = {name: value for name, value in os.environ.items() if _is_wandb(name)}
    own = {name: value for name, value in result.variables.items() if _is_wandb(name)}
    _exchange(own)
    try:
        yield result.faults
    finally:
        _exchange(before)


def _exchange(wanted: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if _is_wandb(name) and name not in wanted]:
        del os.environ[name]
    os.environ.update(wanted)
