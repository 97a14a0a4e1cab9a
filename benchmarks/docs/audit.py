"""Known vulnerabilities of the pinned packages, from the OSV database where it can be reached.

    python -m benchmarks.docs.audit [--url URL]

Prints what is known, or one line if the database cannot be reached. Exit code 1 where a pinned
version has a known vulnerability, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
URL = "https://api.osv.dev/v1/querybatch"
LIMIT_S = 10.0


def pinned(path: Path) -> list[tuple[str, str]]:
    """(name, version) of every line NAME==VERSION."""
    words = (line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [
        (name, version) for word in words if "==" in word for name, version in [word.split("==")]
    ]


def ask(url: str, packages: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Ids of known vulnerabilities by NAME==VERSION; raises OSError or ValueError."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        for name, version in packages
    ]
    request = urllib.request.Request(
        url, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        results = json.load(answer)["results"]
    return {
        f"{name}=={version}": [str(one["id"]) for one in found.get("vulns", [])]
        for (name, version), found in zip(packages, results, strict=True)
        if found.get("vulns")
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--url", default=URL)
    options = parser.parse_args(argv)
    packages = pinned(ROOT / "constraints.txt")
    try:
        found = ask(options.url, packages)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        print(f"audit: nobody could be asked about {len(packages)} pinned packages ({reason})")
        return 0
    for package, ids in found.items():
        print(f"audit: {package}: {', '.join(ids)}", file=sys.stderr)
    print(f"audit: {len(packages)} pinned packages, {len(found)} with known vulnerabilities")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
