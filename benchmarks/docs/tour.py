"""docs/tour.md: what a new user types, with every output as it was printed.

    python -m benchmarks.docs.tour            # two small sweeps, then every verb; a few minutes
    python -m benchmarks.docs.tour --measure default --ranks 8

Nothing in that file is typed by hand but the sentences between the commands. Paths are shown
from the repository's root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1800.0
SWEEP = "python runners/bench.py -m strategy=serial,simple,tp,ep topk=2,4 world_size={ranks} "


@dataclass(frozen=True)
class Step:
    """A command with the words before it; `first` is how many lines of its output are shown."""

    about: str
    command: str
    first: int = 0


def steps(first: str, second: str, measure: str) -> list[Step]:
    """Everything after the first sweep; the names are the sweeps' folders."""
    return [
        Step("The tables and what they show, again, from the records:", "python -m analysis show"),
        Step(
            "What limits these numbers, and what to do about it (exit code 1: there is something):",
            "python -m analysis check",
        ),
        Step("The strategies against each other:", "python -m analysis compare --group strategy"),
        Step("The pictures:", "python -m analysis plot"),
        Step("One page with everything, which opens from disk:", "python -m analysis report"),
        Step("The frame, for anything else:", "python -m analysis export -o outputs/attempts.csv"),
        Step("The same sweep once more, to compare with:", f"{SWEEP}measure={measure}", -2),
        Step(
            "Is the second sweep different? The code and the machine were the same:",
            f"python -m analysis compare {first} {second}",
        ),
        Step("## W&B\n\nEvery cell is an offline run already. The analysis reads those as well as "
             "the records:", f"python -m analysis show {first}/wandb --metric duration", 14),
        Step("Records can be replayed into W&B at any time; what is there is skipped. The last "
             "line says how to upload:", f"python -m runners.track {first} --mode offline"),
        Step("The report and the plots as one more run of the project:",
             f"python -m runners.track {first} --summary"),
        Step("A workspace with the sweep's charts, as JSON here; `--save` stores it on the server:",
             f"python -m analysis dashboard {first} -o outputs/workspace.json"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", default="quick")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "tour.md")
    options = parser.parse_args()
    words = [w for w in sys.argv[1:] if not w.startswith(("-o", "/"))]
    again = shlex.join(["python", "-m", "benchmarks.docs.tour", *words])
    parts = [f"# A tour\n\nMade by `{again}`, which runs every command below: outputs are as "
             "printed, paths from the repository's root."]  # fmt: skip
    sweep = f"{SWEEP}measure={options.measure}".format(ranks=options.ranks)
    parts.append(shown(Step("## A sweep", sweep)))
    first = latest()
    for step in steps(first, "SECOND", options.measure):
        command = step.command.format(ranks=options.ranks).replace("SECOND", latest())
        parts.append(shown(Step(step.about, command, step.first)))
    options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(options.output)


def latest() -> str:
    return str((ROOT / "outputs" / "latest").resolve().relative_to(ROOT))


def shown(step: Step) -> str:
    """The command and its output as Markdown; raises where it ended badly."""
    print(f"$ {step.command}", file=sys.stderr, flush=True)
    words = shlex.split(step.command)
    environment = {**os.environ, "COLUMNS": "100", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S,
    )  # fmt: skip
    if done.returncode > (" check" in step.command):
        raise SystemExit(f"{step.command}: exit code {done.returncode}\n{done.stdout}")
    lines = done.stdout.replace(f"{ROOT}/", "").rstrip().splitlines()
    kept = lines
    if step.first > 0 and len(lines) > step.first:
        kept = [*lines[: step.first], f"... {len(lines) - step.first} more lines"]
    elif step.first < 0:
        kept = [f"... {len(lines) + step.first} lines", *lines[step.first :]]
    return "\n".join([step.about, "", "```console", f"$ {step.command}", *kept, "```"])


if __name__ == "__main__":
    main()
