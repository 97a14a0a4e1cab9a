"""docs/gpu.md: what runs on GPUs have shown, from the summaries in benchmarks/gpu/results/."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import budget, kernel_figures
from benchmarks.gpu.parts import BUDGET_S, PARTS
from benchmarks.gpu.summary import SCHEMA, Row, geometric_mean, ratios
from benchmarks.gpu.table import cell_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "gpu" / "results"
TEMPLATE = ROOT / "benchmarks" / "gpu" / "page.md"
PAGE = ROOT / "docs" / "gpu.md"
NOTICE = (
    "<!-- Written by `python -m benchmarks.gpu page` from benchmarks/gpu/page.md: do not edit. -->"
)
CELLS = 12  # three models, four batches
LEAST_RATIO, LEAST_MEAN, REPEAT = 0.97, 1.05, 1.03
NOTHING = (
    "**The present script has not run on a GPU yet**: `benchmarks/gpu/results/` has no summary,\n"
    "and every point below is open."
)


def passed(counts: Row) -> bool:
    """Whether something was checked and nothing failed or was refused."""
    return bool(counts["passed"] and not counts["failed"] and not counts["refused"])


def complete(summary: Row, part: str) -> bool:
    """Whether a part ran and was not cut."""
    return not summary["parts"].get(part, {"cut": True})["cut"]


def checks_pass(summary: Row) -> bool:
    groups = [summary["forms"], *(summary["ranks"].get(size) for size in ("2", "4"))]
    ran = complete(summary, "forms") and complete(summary, "ranks")
    return ran and all(group is not None and passed(group) for group in groups)


def waits_within_budget(summary: Row) -> bool:
    return complete(summary, "waits") and passed(summary["waits"])


def fast_enough(summary: Row) -> bool:
    known = ratios(summary)
    return len(known) == CELLS and min(known) >= LEAST_RATIO and geometric_mean(known) >= LEAST_MEAN


def believable(summary: Row) -> bool:
    """No cell above its limit, and two measurements of a cell agree."""
    repeats = [cell["repeat"] for cell in summary["cells"] if "repeat" in cell]
    agree = bool(repeats) and max(repeats) <= REPEAT
    return agree and summary["limits"].get("above") == []


def ended_in_time(summary: Row) -> bool:
    return bool(summary["within_budget"])


POINTS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("Every strategy passes the check at 1, 2 and 4 ranks.", checks_pass),
    ('No step waits more often than its budget, under the sync debug mode "error".',
     waits_within_budget),
    (f"`simple` against transformers' best variant on all {CELLS} cells: a ratio of at least "
     f"{LEAST_RATIO}, and a geometric mean of at least {LEAST_MEAN}.", fast_enough),
    (f"No cell is above its limit, and two measurements of a cell are within {REPEAT - 1:.0%}.",
     believable),
    *kernel_figures.POINTS,
    ("The script ends within its budget; its results are committed with card, driver and versions.",
     ended_in_time),
)  # fmt: skip


def summaries(folder: Path = RESULTS) -> list[tuple[str, Row]]:
    """Every stored summary with its file's name; raises ValueError for one that is not of a GPU."""
    known = []
    for path in sorted(folder.glob("*.json")):
        summary = json.loads(path.read_text("utf-8"))
        if summary.get("schema") != SCHEMA:
            raise ValueError(f"{path.name}: schema={summary.get('schema')}: allowed is {SCHEMA}; "
                             "make it with the present script")  # fmt: skip
        if summary["dry_run"]:
            raise ValueError(f"{path.name}: dry_run=true: allowed is a run on a GPU; remove it")
        known.append((path.stem, summary))
    return known


def checklist(stored: Sequence[tuple[str, Row]]) -> str:
    """A line for every point, with the runs that meet it."""
    lines = []
    for text, met in POINTS:
        names = [f"[{title(one)}](#{anchor(one)})" for _, one in stored if met(one)]
        lines.append(f"- [{'x' if names else ' '}] {text}{by(names)}")
    return "\n".join(lines)


def by(names: Sequence[str]) -> str:
    return f" Shown by {', '.join(names)}." if names else " Open."


def title(summary: Row) -> str:
    return f"{summary['card']}, {summary['date']}, torch {summary['versions']['torch']}"


def anchor(summary: Row) -> str:
    """The id of a result's heading, as GitHub makes it."""
    kept = (c for c in title(summary).lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


def part_table() -> str:
    lines = [f"| part | share of {BUDGET_S:.0f} s | what |", "|---|---|---|"]
    lines += [f"| `{name}` | {share} s | {what} |" for name, (share, what) in PARTS.items()]
    return "\n".join(lines)


def wait_table() -> str:
    """The budget, with strategies that share a row in one."""
    lines = ["| strategy | " + " | ".join(budget.BY_DISPATCHER) + " |",
             "|---" * (len(budget.BY_DISPATCHER) + 1) + "|"]  # fmt: skip
    alone = [name for name in budget.STRATEGIES if "ep" not in name]
    spread = [name for name in budget.STRATEGIES if "ep" in name]
    for names, dispatchers in ((alone, ("local",)), (spread, tuple(budget.BY_DISPATCHER))):
        cells = [
            str(budget.host_waits(names[0], one, "grouped")) if one in dispatchers else ""
            for one in budget.BY_DISPATCHER
        ]
        lines.append(f"| {', '.join(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section(name: str, summary: Row) -> str:
    """What one run has shown."""
    versions = ", ".join(f"{key} {value}" for key, value in summary["versions"].items() if value)
    facts = ", ".join(f"{key} {value:.4g}" for key, value in summary["facts"].items())
    ranks = "; ".join(
        f"{size} ranks: {counts_text(counts)}" for size, counts in summary["ranks"].items()
    )
    git = summary["git"] or {}
    changed = " with changes" if git.get("dirty") else ""
    known, commit = ratios(summary), git.get("sha", "not known") + changed
    lines = [
        f"## {title(summary)}",
        "",
        f"    {summary['command']}",
        "",
        f"*Driver {summary['driver']}, {versions}; commit {commit}. "
        f"{summary['wall_s']:.0f} s of {summary['budget_s']:.0f} s. From "
        f"benchmarks/gpu/results/{name}.json.*",
        "",
        f"- facts: {facts}",
        f"- check at one rank: {counts_text(summary['forms'])}; {ranks}",
        f"- forms against their budget of waits: {counts_text(summary['waits'])}",
        f"- parts that were cut: {cut_parts(summary)}; failures: {len(summary['failures'])}",
        f"- limits: {limits(summary['limits'])}",
    ]  # fmt: skip
    if known:
        lines.append(f"- transformers' time over ours: least {min(known):.2f}, geometric mean "
                     f"{geometric_mean(known):.2f}, over {len(known)} cells")  # fmt: skip
    return "\n".join([*lines, *cell_table(summary["cells"]), *graph_table(summary["graphs"]),
                      *kernel_figures.table(summary["kernels"])])  # fmt: skip


def counts_text(counts: Row) -> str:
    parts = [f"{counts['passed']} passed"]
    parts += [f"{counts[name]} {name}" for name in ("failed", "refused") if counts[name]]
    return ", ".join(parts)


def cut_parts(summary: Row) -> str:
    return ", ".join(name for name, part in summary["parts"].items() if part["cut"]) or "none"


def limits(known: Row) -> str:
    if "unknown" in known:
        return f"not known ({known['unknown']})"
    above = ", ".join(known["above"]) or "none"
    largest = known["largest"]
    return f"{known['cells']} cells, the largest fraction {largest:.0%}; above: {above}"


def graph_table(graphs: Sequence[Row]) -> list[str]:
    if not graphs:
        return []
    lines = ["", "| form | tokens | eager ms | graph ms |", "|---|---|---|---|"]
    for one in graphs:
        times = f"{one['eager_ms']:.3f} | {one['graph_ms']:.3f}"
        lines.append(f"| {one['form']} | {one['batch']} | {times} |")
    return lines


def markdown(folder: Path = RESULTS) -> str:
    """The page as it should be."""
    stored = summaries(folder)
    cards = sorted({one["card"] for _, one in stored})
    state = f"Measured by the present script on: {', '.join(cards)}." if stored else NOTHING
    text = TEMPLATE.read_text("utf-8")
    for name, value in {
        "state": state,
        "checklist": checklist(stored),
        "parts": part_table(),
        "waits": wait_table(),
        "results": "".join(f"\n{section(name, one)}\n" for name, one in stored),
    }.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return f"{NOTICE}\n\n{text.rstrip()}\n"


def write() -> None:
    PAGE.write_text(markdown(), "utf-8")
    print(PAGE.relative_to(ROOT))
