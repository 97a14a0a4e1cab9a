"""A Dockerfile in its instructions, what .dockerignore leaves out, and what is wrong with both."""

from __future__ import annotations

import re
from pathlib import Path

FETCHES = re.compile(r"\b(curl|wget)\b|\w+://|^ADD\b")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
ROOTS = ("0", "root", "")


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    parts = (line.strip().partition(" ") for line in joined if line.strip())
    return [(word.upper(), rest.strip()) for word, _, rest in parts]


def copied(text: str) -> list[str]:
    """The sources of all COPY instructions, relative to the clone."""
    rests = [rest.split() for word, rest in instructions(text) if word == "COPY"]
    return [source for words in rests for source in words[:-1]]


def is_ignored(path: str, ignore: str) -> bool:
    """Whether .dockerignore leaves a path out; of the patterns that match it or a folder above it
    the last decides."""
    ignored = False
    for line in ignore.splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            excepted = pattern.startswith("!")
            if _matches(pattern.lstrip("!").strip("/"), path):
                ignored = not excepted
    return ignored


def _matches(pattern: str, path: str) -> bool:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    expression = "".join(tokens.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(rf"{expression}(?:/.*)?", path) is not None


def faults(text: str, ignore: str, root: Path) -> list[str]:
    """What is wrong with a Dockerfile of the clone at `root`."""
    parts = instructions(text)
    users = [rest for word, rest in parts if word == "USER"]
    found = []
    if not users or users[-1].partition(":")[0] in ROOTS:
        found.append("USER: the last is root, or there is none")
    elif not users[-1].partition(":")[0].isdigit():
        found.append("USER: a name, which runAsNonRoot cannot check")
    for word, rest in parts:
        if FETCHES.search(f"{word} {rest}"):
            found.append(f"{word} {rest}: fetches by itself")
        if word in ("ARG", "ENV") and any(
            SECRET.search(name) for name in re.findall(r"\w+(?==)|^\w+$", rest)
        ):
            found.append(f"{word} {rest}: a secret would stay in the image")
        installs = re.findall(r"pip install[^&|;]*", rest) if word == "RUN" else []
        found += [f"{install}: no constraints" for install in installs
                  if "-c constraints.txt" not in install]  # fmt: skip
    for source in copied(text):
        if not (root / source).exists():
            found.append(f"COPY {source}: not in the clone")
        elif is_ignored(source, ignore):
            found.append(f"COPY {source}: left out by .dockerignore")
    return found
