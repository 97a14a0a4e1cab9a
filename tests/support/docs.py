"""What the pages of docs/ name, and what of it is not there: a list of faults for each kind.

Every check takes a page's text, so that tests can plant a fault in one. Words in capitals and in
angle brackets stand for anything (`conf/strategy/NAME.yaml`, `cells/<key>/`).
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from analysis import cli
from runners.config import schema
from runners.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "conf", "runners", "moe", "analysis", "benchmarks", "tests")
PACKAGES = FOLDERS[2:]
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".ipynb", ".mplstyle")
TOP_FILES = ("Makefile", "constraints.txt")
PROGRAMS = ("python", "python3", "moe-bench", "moe-bench-analysis", "make", "torchrun")
OTHERS_MODULES = ("pytest", "pip", "venv", "torch.distributed.run")
CODE_LANGUAGES = ("python", "yaml", "json", "toml")  # of fenced blocks that hold no commands

LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href|srcset)=\"([^\"\s]+)\"")
HEADING = re.compile(r"^#{1,6} +(.*?)#*$", re.MULTILINE)
PLACEHOLDER = re.compile(r"<[^>]*>|\b[A-Z][A-Z_0-9]*\b")
ANY_VALUE = re.compile(r"[A-Z]{2}|<|\$\{|^[A-Za-z]$")
ENVIRONMENT = re.compile(r"^[A-Z_][A-Z_0-9]*=")
SECTION_KEY = re.compile(r"^[a-z_]+(\.[a-z_0-9]+)+$")


@dataclass(frozen=True)
class Page:
    """A page in its parts; blocks are (language, lines), indented ones without a language."""

    prose: str
    blocks: list[tuple[str, list[str]]]

    @property
    def spans(self) -> list[str]:
        """Everything in backticks."""
        paragraphs = re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", self.prose)
        joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
        return [span for text in joined for span in re.findall(r"`([^`]+)`", text)]


def parsed(text: str) -> Page:
    """Splits a page into prose and blocks of code, fenced or indented by four spaces."""
    prose: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    fence, indented = "", False
    for line in text.splitlines():
        if fence:
            if line.strip() == fence:
                fence = ""
            else:
                blocks[-1][1].append(line)
        elif opening := re.match(r"^\s*(```+|~~~+)\s*(\w*)", line):
            fence = opening[1]
            blocks.append((opening[2], []))
        elif line.startswith("    ") and (indented or not prose or not prose[-1].strip()):
            if not indented:
                blocks.append(("", []))
            blocks[-1][1].append(line[4:])
            indented = True
            continue
        else:
            prose.append(line)
        indented = False
    return Page("\n".join(prose), blocks)


def anchors(text: str) -> set[str]:
    """The ids that GitHub gives a page's headings."""
    names: dict[str, int] = {}
    for heading in HEADING.findall(parsed(text).prose):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names[slug] = names.get(slug, -1) + 1
        if names[slug]:
            names[f"{slug}-{names[slug]}"] = 0
    return set(names)


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links and images of a page whose file or anchor is not there."""
    faults = []
    prose = re.sub(r"`[^`]*`", "", parsed(text).prose)
    for pair in LINK.findall(prose):
        link = next(filter(None, pair))
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text("utf-8") if name else text):
            faults.append(f"{link}: no such heading")
    return faults


@functools.cache
def file_names() -> frozenset[str]:
    """Names of all files of the project, without their folders."""
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return frozenset(path.name for path in (*ROOT.glob("*"), *below))


def is_there(path: str) -> bool:
    """Whether a path of the project, perhaps with placeholders or `*`, names something."""
    pattern = PLACEHOLDER.sub("*", path).rstrip("/")
    if "/" not in pattern:
        return bool(fnmatch.filter(file_names(), pattern))
    return (ROOT / pattern).exists() or any(ROOT.glob(pattern))


def lost_paths(text: str, elsewhere: frozenset[str]) -> list[str]:
    """Files, folders and modules, in backticks or in a command, that the project doesn't have."""
    page = parsed(text)
    faults = []
    for word in (word for span in (*page.spans, *commands(page)) for word in path_words(span)):
        if word in elsewhere:
            continue
        if re.match(rf"^({'|'.join(PACKAGES)})(\.\w+)+$", word):
            lost = not names_code(word)
        elif word.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or word in TOP_FILES:
            lost = not is_there(word)
        else:
            lost = word.endswith(SUFFIXES) and not is_there(word)
        if lost:
            faults.append(f"{word}: not in the project")
    return faults


def path_words(span: str) -> Iterator[str]:
    """The words of a span or command that can be paths: no addresses, nothing below outputs/."""
    for word in re.split(r"[\s,;()\[\]|\"']+", span):
        value = word.rpartition("=")[2].rstrip(".:")
        if value and "://" not in value and not value.startswith(("outputs", "/", "~", "*", ".")):
            yield value


@functools.cache
def code_of(module: str) -> str:
    """The text of a module of this project, of a package its own files; empty for no module."""
    path = ROOT / module.replace(".", "/")
    files = [path.with_suffix(".py"), *sorted(path.glob("__*__.py"))]
    return "\n".join(file.read_text("utf-8") for file in files if file.is_file())


def names_code(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that occurs in one."""
    module, _, attribute = dotted.rpartition(".")
    is_module = code_of(dotted) or (ROOT / dotted.replace(".", "/")).is_dir()
    return bool(is_module or re.search(rf"\b{attribute}\b", code_of(module)))


def code_with_imports(module: str) -> str:
    """The text of a module and of all of this project's that it imports: where its options are."""
    code = code_of(module)
    imported = re.findall(r"^\s*from ([\w.]+) import ([\w, ]+)", code, re.MULTILINE)
    modules = {parent for parent, _ in imported}
    modules |= {
        f"{parent}.{word.strip()}" for parent, names in imported for word in names.split(",")
    }
    return "\n".join([code, *map(code_of, sorted(modules))])


def commands(page: Page) -> list[str]:
    """Commands of our programs in blocks, and those in backticks that begin with one."""
    lines = [span for span in page.spans if span.split()[0] in ("python", "make")]
    for language, block in page.blocks:
        if language in CODE_LANGUAGES:
            continue
        joined = re.sub(r"\\\n\s*", " ", "\n".join(block)).splitlines()
        prompted = [line[2:] for line in joined if line.startswith("$ ")]
        lines += prompted if language == "console" else [*prompted, *joined]
    parts = (part for line in lines for part in re.split(r"&&|;|\|(?=\s)", without_comment(line)))
    return [part.strip() for part in parts if program(part)]


def without_comment(line: str) -> str:
    """A line up to its comment, or up to three spaces: a listing explains its commands so."""
    return re.split(r"\s#\s|\s{3,}(?=\w)", line.strip())[0]


def words_of(command: str) -> list[str]:
    """A command's words, without the variables that are set before it."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.replace('"', "").split()  # a part of a longer command in quotes
    while words and ENVIRONMENT.match(words[0]):
        words.pop(0)
    return words


def program(command: str) -> str:
    """Which of our programs a command starts; empty for any other line."""
    words = words_of(command)
    name = words[0].rpartition("/")[2] if words else ""
    return name if name in PROGRAMS and len(words) > 1 else ""


def wrong_commands(text: str, example_keys: frozenset[str]) -> list[str]:
    """Commands with a target, module, verb, flag or config word that is not there."""
    faults = []
    for command in commands(parsed(text)):
        words = words_of(command)
        faults += [f"{command}: {fault}" for fault in _faults(words, text, example_keys)]
    return faults


def _faults(words: list[str], text: str, example_keys: frozenset[str]) -> list[str]:
    name, first = words[0].rpartition("/")[2], words[1]
    if name == "make":
        return [f"no target {word}" for word in words[1:] if "=" not in word and not target(word)]
    if name == "torchrun" or first in ("-c", "-"):
        return []
    if name == "moe-bench" or first.endswith("bench.py"):
        rest = words[1:] if name == "moe-bench" else words[2:]
        return wrong_overrides(rest, text, example_keys)
    if name == "moe-bench-analysis" or words[1:3] == ["-m", "analysis"]:
        return wrong_verb(words[1:] if name == "moe-bench-analysis" else words[3:])
    if first == "-m" and len(words) > 2 and words[2] not in OTHERS_MODULES:
        return wrong_arguments(words[2], words[3:])
    return []


def target(name: str) -> bool:
    """Whether the Makefile has it; "..." and the like stand for any."""
    rule = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    return not name[:1].isalpha() or bool(rule.search((ROOT / "Makefile").read_text("utf-8")))


@functools.cache
def verbs() -> dict[str, set[str]]:
    """Options of every verb of the analysis."""
    (choices,) = (action.choices for action in cli.parser()._actions
                  if isinstance(action, argparse._SubParsersAction))  # fmt: skip
    return {name: set(verb._option_string_actions) for name, verb in choices.items()}


def wrong_verb(words: list[str]) -> list[str]:
    """Of the words after `python -m analysis`."""
    if not words or words[0] in ("VERB", "--help"):
        return []
    if words[0] not in verbs():
        return [f"no verb {words[0]}"]
    flags = (word.partition("=")[0] for word in words if word.startswith("-"))
    return [f"no option {flag}" for flag in flags if flag not in verbs()[words[0]]]


def wrong_arguments(module: str, words: list[str]) -> list[str]:
    """Flags and words that the text of a module does not have as one of its options."""
    if PLACEHOLDER.fullmatch(module):
        return []
    code = code_with_imports(module)
    if not code_of(module):
        return [f"no module {module}"]
    faults, value_of_a_flag = [], False
    for word in words:
        if word.startswith("-"):
            known = {"-h", "--help", *re.findall(r"\"(--?[\w-]+)\"", code)}
            faults += [f"no option {flag}" for flag in word.split("|") if flag not in known]
        elif not value_of_a_flag and re.fullmatch(r"[a-z_-]+", word) and "add_argument" in code:
            faults += [f"no choice {word}"] if f'"{word}"' not in code else []
        value_of_a_flag = word.startswith("-")
    return faults


@functools.cache
def knobs() -> dict[str, schema.Entry]:
    """Every key of the config."""
    return {entry.path: entry for part in schema.sections().values() for entry in part.values()}


def wrong_overrides(words: list[str], text: str, example_keys: frozenset[str]) -> list[str]:
    """Of the words after runners/bench.py; `text` may define files of conf/ by an example."""
    faults = []
    for word in words:
        if word.startswith("-"):
            known = word in ("-m", "--multirun", "--help", "-h")
            faults += [] if known else [f"no option {word}"]
        elif "=" in word and not word.startswith(("[", '"')):
            faults += wrong_override(word, text, example_keys)
    return faults


def wrong_override(word: str, text: str, example_keys: frozenset[str]) -> list[str]:
    """What is wrong with key=value[,value...]: an unknown key, group or choice, or a bad value."""
    key, _, value = word.partition("=")
    choices = [value] if value.startswith("[") else value.split(",")
    if key.startswith("hydra") or key in example_keys:
        return []
    if ANY_VALUE.search(value):
        return [] if key in {*knobs(), *schema.groups()} else [f"no key {key}"]
    if key in schema.groups():
        unknown = set(choices) - set(schema.groups()[key])
        return [f"no {key}={one}" for one in unknown if f"conf/{key}/{one}.yaml" not in text]
    if key not in knobs():
        return [f"no key {key}"]
    faults = []
    for choice in choices:
        try:
            schema.checked(knobs()[key], yaml.safe_load(choice))
        except ConfigError as error:
            faults.append(str(error))
    return faults


def wrong_keys(text: str, example_keys: frozenset[str]) -> list[str]:
    """Config keys and overrides in backticks that the config doesn't have."""
    sections = {part.split(".")[0] for part in schema.sections() if part}
    faults = []
    for span in parsed(text).spans:
        words = span.split()
        if span in example_keys or words[0].startswith("-") or program(span):
            continue
        for word in words:
            if re.match(r"^[a-z][\w./]*=[^=]", word) and "(" not in word:
                faults += wrong_override(word.rstrip(":;,."), text, example_keys)
            elif SECTION_KEY.match(word) and word.split(".")[0] in sections:
                parent = any(path.startswith(f"{word}.") for path in knobs())
                if word not in knobs() and word not in example_keys and not parent:
                    faults.append(f"no key {word}")
    return faults
