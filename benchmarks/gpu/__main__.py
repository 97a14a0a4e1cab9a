"""The GPU path on one GPU in one short run; what came out goes to benchmarks/gpu/results/.

    python -m benchmarks.gpu --out DIR [--budget 540] [--parts forms,bench] [--dry-run]
    python -m benchmarks.gpu blocks [CASES]  # times block sizes of the kernel triton
    python -m benchmarks.gpu table FILE    # a run's rows.jsonl, as Markdown
    python -m benchmarks.gpu page          # writes docs/gpu.md from benchmarks/gpu/results/

Needs torch. Where Hydra or Liger's kernels are not installed, run `make gpu-wheels` before, where
there is a network, and bring .cache/gpu-wheels/. Results to take away are in DIR/pack; rows are in
DIR/rows.jsonl as they come. Exit codes: 0 all right, 1 something failed, 2 bad input.
"""

from __future__ import annotations

import time

BEGAN_S = time.monotonic()  # importing torch takes seconds of the budget

import argparse  # noqa: E402
import datetime  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from benchmarks.gpu import packages  # noqa: E402
from benchmarks.gpu.parts import BUDGET_S, PARTS, deadlines  # noqa: E402
from benchmarks.gpu.rows import Part, Rows, error_of  # noqa: E402

LEAST_BUDGET_S = 20.0
LAST_S = 8.0  # before the end of the budget, a run that stands still is packed


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; --help lists the options")


def refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parser() -> Parser:
    table = "\n".join(f"  {name:7} {share:4} s  {about}" for name, (share, about) in PARTS.items())
    top = Parser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"parts, in this order, with their share of {BUDGET_S:.0f} s; the rest is for the "
        f"start and for packing:\n{table}\nThe budget is for the parts that are named; what one "
        "leaves goes to those after it.",
    )  # fmt: skip
    top.add_argument("--out", type=Path, metavar="DIR", help="where everything is written")
    top.add_argument("--budget", default=str(BUDGET_S), metavar="SECONDS", help="of the whole run")
    top.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help="default: all")
    top.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    return top


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["table"] and len(arguments) == 2:
        from benchmarks.gpu import table

        print(table.table(Path(arguments[1])))
        return 0
    if list(arguments) == ["page"]:
        from benchmarks.gpu import page

        page.write()
        return 0
    if arguments[:1] == ["blocks"]:
        return blocks(arguments[1:])
    options = parser().parse_args(arguments)
    names, budget_s = chosen(options.parts), seconds(options.budget)
    if options.out is None:
        refuse("--out: missing; allowed is a folder; name one for the results")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        refuse(f"--out={options.out}: allowed is an empty or a new folder; name another")
    import torch

    if options.dry_run:
        torch.set_num_threads(1)  # the sizes are too small for more
    elif not torch.cuda.is_available():
        refuse("device=cpu: allowed is a CUDA GPU that torch can use; run this on a machine "
               "that has one, or add --dry-run for tiny sizes on the CPU")  # fmt: skip
    return whole_run(options.out, budget_s, names, options.dry_run, list(arguments))


def blocks(names: Sequence[str]) -> int:
    import torch

    from benchmarks.gpu import blocks

    for name in names:
        model, _, tokens = name.partition(":")
        if model not in blocks.SIZES or not tokens.isdecimal() or not int(tokens):
            refuse(f"{name}: allowed is MODEL:TOKENS with one of {', '.join(blocks.SIZES)}; name a "
                   f"case such as {blocks.CASES[0]}")  # fmt: skip
    if not torch.cuda.is_available():
        refuse("device=cpu: allowed is a CUDA GPU that torch can use; run this on a machine that "
               "has one")  # fmt: skip
    blocks.main(names, torch.device("cuda", 0))
    return 0


def chosen(text: str) -> list[str]:
    """Names of parts, in the order in which they run."""
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in PARTS:
            refuse(f"--parts={name}: allowed is {', '.join(PARTS)}; name one or more of them, "
                   "with commas")  # fmt: skip
    return [name for name in PARTS if name in asked]


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not LEAST_BUDGET_S <= value < 1e6:
        refuse(f"--budget={text}: allowed is a number of seconds from {LEAST_BUDGET_S:.0f}; "
               f"name more, {BUDGET_S:.0f} say")  # fmt: skip
    return value


def whole_run(
    folder: Path, budget_s: float, names: Sequence[str], tiny: bool, arguments: list[str]
) -> int:
    """Runs the parts and packs; returns the exit code."""
    rows = Rows(folder, BEGAN_S)
    command = shlex.join(["python", "-m", "benchmarks.gpu", *arguments])
    finish = partial(packed, rows, folder, budget_s, tiny, command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # packs, too
    watchdog = threading.Timer(budget_s - rows.used_s() - LAST_S, give_up, [rows, finish])
    watchdog.daemon = True
    watchdog.start()
    packages.provide(folder)
    try:
        for name, end_s in deadlines(names, budget_s).items():
            one_part(Part(name, rows, BEGAN_S + end_s, folder, tiny))
    except KeyboardInterrupt:
        print("interrupted: what there is will be packed", flush=True)
    finally:
        watchdog.cancel()
    return finish()


def give_up(rows: Rows, finish: Callable[[], int]) -> None:
    """Ends a run that stands still: packs what there is, and exits from any thread."""
    rows.add("end", {"ok": False, "cut": True, "error": "a part stood still"})
    finish()
    sys.stdout.flush()
    os._exit(1)


def packed(rows: Rows, folder: Path, budget_s: float, tiny: bool, command: str) -> int:
    """Packs the results and says where they are; returns the exit code."""
    from benchmarks.gpu import pack

    about: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "dry_run": tiny,
        "budget_s": budget_s,
        "wall_s": round(rows.used_s(), 1),
    }
    for line in pack.pack(folder, about):
        print(f"pack   {line}")
    used = f"{rows.used_s():.0f} s of {budget_s:.0f} s"
    print(f"{used}; {rows.failed} rows failed; results: {folder / pack.FOLDER}")
    return 1 if rows.failed else 0


def one_part(part: Part) -> None:
    """Runs a part; an error in it is a row, and the next part runs all the same."""
    from benchmarks.gpu.facts import release

    began_s, before = part.rows.used_s(), part.rows.path.stat().st_size
    try:
        import_module(f"benchmarks.gpu.{part.name}").run(part)
    except Exception as error:
        part.add(ok=False, error=error_of(error))
    release(part.tiny)
    with part.rows.path.open("rb") as file:
        file.seek(before)
        cut = any(b'"cut": true' in line for line in file)
    part.add(end=True, seconds=round(part.rows.used_s() - began_s, 1), cut=cut)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
