"""The one line that explains a refused command, whether Hydra or this project found the error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from runners.config.schema import groups
from runners.errors import ConfigError
from runners.host import project_paths

KINDS = f"allowed is a value of the kind that `{project_paths.BENCH} --cfg all` shows there"


def told(error: Exception, words: Sequence[str]) -> str:
    """One line that explains `error`; `words` are the arguments of the command that it ended."""
    for word in words:
        group, _, choices = word.lstrip("+").partition("=")
        for choice in choices.split(","):
            if name := _present_name(group, choice):
                return f"{word}: {choice} is called {name} now; write {group}={name}"
    return one_line(error if _is_plain(error) else unexpected(error, words))


def _present_name(group: str, choice: str) -> str:
    """The present name of a choice whose name in conf/ once had "seed" in it; else ""."""
    name, choices = choice.replace("seed", "reference"), groups().get(group, [])
    return name if choice not in choices and name in choices else ""


def _is_plain(error: Exception) -> bool:
    """Whether the message is meant for a user: this project's own, or Hydra's for bad input."""
    if isinstance(error, InstantiationException) or not str(error).strip():
        return False
    return isinstance(error, ConfigError | HydraException | OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """The message on one line, without the search path and inner keys that Hydra appends."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"( Config search path:| full_key:).*", "", text)
    text = text.removeprefix("ConfigError raised while resolving interpolation: ")
    if unknown := re.match(r"Could not override '([^']*)'", text):
        hydras = unknown[1].startswith("hydra.")  # keys can be added there, and nowhere else
        lists = f"`{project_paths.BENCH} --cfg {'hydra' if hydras else 'job'}` lists the keys"
        added = re.search(r"To append to your config use (\+.*)", text) if hydras else None
        more = f"; to add one, write {added[1]}" if added else ""
        return f"{unknown[1]}: no such key; {lists}{more}"
    if merged := re.match(r"Error merging override (.*)", text):
        return f"{merged[1]}: {KINDS}; correct it or leave it out"
    return text


def unexpected(error: Exception, words: Sequence[str]) -> ConfigError:
    """Names the override that caused an error for which Hydra has no plain message."""
    if isinstance(error, OSError) and error.filename is not None:
        return ConfigError(
            f"{error.filename}: cannot be used: {error.strerror}; allowed is a folder that can be "
            "written; choose another"
        )
    if str(error).startswith("Only one of --run"):
        return ConfigError(
            f"{' '.join(words)}: allowed is one of -m, --cfg and --info; leave the others out, and "
            "give --cfg one value of each key"
        )
    named, options = _culprit(words)
    allowed = f"allowed are {', '.join(options)}" if options else KINDS
    return ConfigError(f"{named}: Hydra cannot use this; {allowed}; correct it or leave it out")


def _culprit(words: Sequence[str]) -> tuple[str, list[str]]:
    """The first override that fails by itself, with the files of its group; else all of them."""
    overrides = [word for word in words if not word.startswith("-") and "=" in word]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        for word in overrides:
            if any(_fails(loader, one) for one in _values(loader, word)):
                return word, loader.get_group_options(word.split("=")[0].lstrip("+~"))
    return " ".join(overrides) or "these options", []


def _values(loader: ConfigLoaderImpl, word: str) -> Iterator[str]:
    """Each value of a sweep as an override of its own."""
    (override,) = OverridesParser.create(config_loader=loader).parse_overrides([word])
    if not override.is_discrete_sweep():
        yield word
        return
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"


def _fails(loader: ConfigLoaderImpl, word: str) -> bool:
    """Whether composing the config with this override fails without a plain message."""
    try:
        config = loader.load_configuration("config", [word], run_mode=RunMode.RUN)
        for node in (config.hydra.launcher, config.hydra.sweeper):
            Plugins.instance()._instantiate(node)
        return False
    except Exception as error:
        return not _is_plain(error)
