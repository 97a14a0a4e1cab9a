"""The command line: python -m analysis VERB [SOURCE...]. Only argparse is imported to start."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from analysis.errors import InputError
from analysis.output import harmless
from runners.host.streams import reader_may_leave

SOURCES = """sources:
  a sweep folder (outputs/latest when none is given), a folder of sweeps, a record file, a packed
  file (NAME.moebench) or its https address, offline .wandb files or their folder, or
  wandb:entity/project; several may be given
"""
EXAMPLES = """examples:
  python -m analysis show
  python -m analysis show outputs/latest --filter strategy=ep,tp --format markdown
  python -m analysis show --detail
  python -m analysis show --group batch_size --metric throughput
  python -m analysis finish outputs/latest
  python -m analysis compare outputs/before outputs/after
  python -m analysis compare --group strategy
  python -m analysis compare --group workload --filter strategy=ep
  python -m analysis explain --a strategy=ep,topk=8 --b strategy=tp,topk=8
  python -m analysis explain outputs/before outputs/after --a strategy=ep,topk=8
  python -m analysis explain --a strategy=ep,topk=8 --predicted
  python -m analysis reproduce sweep.moebench
  python -m analysis reproduce sweep.moebench --run --override measure=quick
  python -m analysis reproduce sweep.moebench --with outputs/latest
  python -m analysis beside outputs/latest --format markdown
  python -m analysis kernels outputs/latest --filter mode=forward
  python -m analysis check
  python -m analysis check docs/results/packed/NAME.moebench --submission
  python -m analysis status
  python -m analysis plot --name speed_vs_ranks --name roofline
  python -m analysis plot --name axis --group workload --metric skew
  python -m analysis plot outputs/before outputs/after --name forest -o plots
  python -m analysis report -o report.html
  python -m analysis dashboard -o workspace.json
  python -m analysis dashboard --project moe-bench --entity team --save
  python -m analysis predict --cluster h100 --model mixtral_8x7b --world-size 8..4096
  python -m analysis advise --cluster h200 --model deepseek_v3 --world-size 64 --skew 1.3
  python -m analysis advise --cluster h100 --model qwen3_30b_a3b --world-size 64 --phase train
  python -m analysis pack outputs/latest -o readme.moebench
  python -m analysis show readme.moebench
  python -m analysis export -o attempts.parquet
  python -m analysis export wandb:entity/project --filter topk=2,4 -o runs.csv
"""
# NumPy and PyArrow start threads when they are imported, and a process with threads cannot draw in
# forks of its own.
IN_FORKS = ("finish", "plot", "pack")  # verbs that do
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
VERBS = {
    "show": "tables of a sweep with intervals, and what they say",
    "finish": "what a sweep ends with: tables on screen; tables and pictures in its folder",
    "compare": "two sweeps, or the strategies or commits of one: which is faster",
    "explain": "where the difference of two cells comes from, in ms that add up",
    "reproduce": "the same cells measured here, and set beside what was measured there",
    "beside": "ours against the best of other systems, setting by setting",
    "kernels": "which expert kernel, ours or another system's, is fastest where",
    "check": "what limits the numbers, and what to do next",
    "status": "cells by outcome, failures and their logs",
    "plot": "pictures as PNG and SVG",
    "report": "one self-contained HTML page",
    "dashboard": "a W&B workspace for a sweep, as JSON or saved to a project",
    "predict": "times at other numbers of ranks, here or on a cluster, with intervals",
    "advise": "the best strategy, degrees and dispatcher, and what to measure to be sure",
    "pack": "a sweep in one file, without names, paths and secrets, that can be handed on",
    "export": "the frame as CSV, Parquet, JSON or Markdown",
}


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Tables, plots and verdicts from the records of a sweep.",
        epilog=SOURCES + "\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    parsers = {name: _verb(verbs, name, about) for name, about in VERBS.items()}
    tables = (
        "show",
        "compare",
        "reproduce",
        "explain",
        "beside",
        "kernels",
        "check",
        "status",
        "predict",
    )
    for name in (*tables, "advise"):
        parsers[name].add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    for name in ("show", "compare", "plot"):
        parsers[name].add_argument("--group", default="", help="axis or column to arrange by")
    for name in ("show", "plot"):
        parsers[name].add_argument("--metric", default="", help="column to show; default duration")
    for name in ("show", "compare", "reproduce", "beside", "kernels", "report"):
        parsers[name].add_argument(
            "--threshold", type=float, default=None, help="noise threshold, such as 0.02"
        )
    parsers["show"].add_argument(
        "--detail", action="store_true", help="the figures and cells behind every sentence"
    )
    parsers["check"].add_argument(
        "--submission", action="store_true",
        help="whether packed files may go into the gallery, docs/results/packed",
    )  # fmt: skip
    add = parsers["explain"].add_argument
    add("--a", default="", metavar="KEY=VALUE,...", help="the first cell, such as strategy=ep")
    add("--b", metavar="KEY=VALUE,...", help="the second; default: --a's, in the second source")
    add("--predicted", action="store_true", help="against the model fitted to all other cells")
    for name in ("predict", "advise"):
        _predict_options(parsers[name], "8..4096" if name == "predict" else "8")
    parsers["advise"].add_argument(
        "--placement", default="", help="file to write the new order of experts to, with --trace"
    )
    add = parsers["reproduce"].add_argument
    add("--run", action="store_true", help="measure the cells here; -o names the sweep's folder")
    add("--with", dest="beside", default="", metavar="SWEEP", help="a sweep that was measured here")
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="a setting of --run")
    add = parsers["dashboard"].add_argument
    add("--project", default="", help="default: WANDB_PROJECT, else conf/tracker/wandb.yaml's")
    add("--entity", default="", help="default: WANDB_ENTITY, else the account's own")
    add("--save", action="store_true", help="store it as a new saved view on the server")
    parsers["pack"].add_argument("--no-pictures", action="store_true", help="leave out the plots")
    parsers["pack"].add_argument(
        "--compression", choices=("deflate", "zstd"), default="deflate",
        help="deflate (default) is read by every Python, zstd from 3.14 on",
    )  # fmt: skip
    parsers["plot"].add_argument("--name", action="append", default=[], help="plots to draw")
    return top


def _predict_options(verb: argparse.ArgumentParser, ranks: str) -> None:
    add = verb.add_argument
    add("--world-size", default=ranks, help=f"8..4096 doubles, 8,12 lists; default {ranks}")
    add("--cluster", default="here", help="conf/cluster/NAME.yaml or a file; here fits records")
    add("--software", default="", help="ours (default) or fused: what a cluster's ranks run")
    add("--model", default="", help="conf/model/NAME.yaml; default: the records' layer")
    add("--scale", type=int, default=0, help="divisor of the model's sizes; default 1")
    add("--batch-size", type=int, default=0, help="tokens in the global batch")
    add("--tokens-per-rank", type=int, default=0, help="grow the batch with the ranks")
    add("--topk", type=int, default=0, help="experts per token; default: the model's")
    add("--dtype", default="", help="default: bfloat16 on a cluster, the records' here")
    add("--mode", default="", help="forward or train")
    add("--tokens", default="", help="replicated or sharded")
    add("--skew", type=float, help="slots of the busiest rank over the mean; default 1")
    add("--trace", default="", help="captured choices of experts (docs/workloads.md), for the skew")
    add("--strategy", default="", help="some strategies, separated by commas; default all")
    add = verb.add_argument_group("whole models (docs/prediction.md)").add_argument
    add("--one-layer", action="store_true", help="time and memory of the MoE layer alone")
    add("--phase", default="", help="train, prefill or decode; default prefill, or as --mode says")
    add("--optimizer", help="of training: adamw, adamw8bit, sgd or none; default adamw")
    add("--master", help="of training: master weights in fp32 or bf16; default fp32")
    add("--zero", type=int, help="of training: ZeRO's stage, 0 to 3; default 1")
    add("--recompute", help="of training: activations anew, none or full; default none")
    add("--layers", type=int, help="layers on a rank, as of a pipeline; default all")
    add("--context", type=int, help="tokens of a sequence, in decode those in its cache")
    add("--reserve", help="a rank's memory that is kept free: a share, such as 0.1, or 8GB")


def _verb(verbs: Any, name: str, about: str) -> argparse.ArgumentParser:
    lines = [line for line in EXAMPLES.splitlines() if f"analysis {name}" in line]
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="\n".join([SOURCES, "examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("sources", nargs="*", metavar="SOURCE")
    verb.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE", help="keep these attempts"
    )
    verb.add_argument("-o", "--output", default="", help="file or folder to write to")
    return verb


@reader_may_leave()
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 when `check` or `status` found trouble, 2 for bad input."""
    options = parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    added = {n: v for n, v in ONE_THREAD.items() if n not in os.environ}
    if options.verb in IN_FORKS:
        os.environ |= added
    try:
        from analysis import verbs

        return verbs.run(options)
    except InputError as error:
        print(harmless(f"analysis: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    finally:
        for name in added:
            os.environ.pop(name, None)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(harmless(f"warning: {' '.join(str(message).split())}"), file=sys.stderr)
