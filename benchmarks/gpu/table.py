"""The rows of a run as Markdown; those of the earlier script, which had a part `speed`, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu import kernel_figures, rows
from benchmarks.gpu.summary import KINDS, cells, counts, shares

FORMER = {"gate": "forms"}  # names of parts in files of the earlier script
KERNELS = ("plain_grouped_experts", "grouped", "loop", "dense")
FACTS = ("gpu", "card", "driver", "torch", "cuda", "nccl", "device")


def table(path: Path) -> str:
    """What a file of rows says, in lines and tables."""
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in rows.read(path):
        by_part.setdefault(FORMER.get(row["part"], row["part"]), []).append(row)
    forms = [row for row in by_part.get("forms", []) if "ok" in row]
    lines = [facts(by_part.get("facts", []))]
    if forms:
        lines += [f"forms: {counts(forms)['passed']} of {len(forms)} agree; "
                  f"host waits of a forward step: {waited(forms) or 'not known on a CPU'}",
                  *largest_errors(forms)]  # fmt: skip
    sized: dict[int, list[dict[str, Any]]] = {}
    for row in by_part.get("ranks", []):
        if "ok" in row:
            sized.setdefault(row["world_size"], []).append(row)
    for size, group in sized.items():
        lines.append(f"{size} ranks on one GPU: {counts(group)['passed']} of {len(group)} agree")
    lines += speed_table([row for row in by_part.get("speed", []) if "grouped_ms" in row])
    lines += cell_table(cells(by_part.get("bench", [])))
    return "\n".join(
        lines + kernel_figures.table(kernel_figures.figures(by_part.get("kernels", [])))
    )


def facts(group: list[dict[str, Any]]) -> str:
    known: dict[str, Any] = {}
    for row in group:
        values = row | row.get("versions", {})
        if "fact" in row:
            values = {row["fact"]: row["value"]}
        known |= {
            key: value for key, value in values.items()
            if (key in FACTS and value is not None)
            or (isinstance(value, float) and key not in ("at_s", "seconds"))
        }  # fmt: skip
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in known.items()
    )


def waited(forms: list[dict[str, Any]]) -> str:
    """The fewest and most waits of a forward step, by kernel."""
    by_kernel: dict[str, set[int]] = {}
    for row in forms:
        if row["mode"] == "forward" and row.get("waits") is not None:
            by_kernel.setdefault(row["kernel"], set()).add(row["waits"])
    return "; ".join(f"{kernel} {min(all_)} to {max(all_)}" for kernel, all_ in by_kernel.items())


def largest_errors(forms: list[dict[str, Any]]) -> list[str]:
    return [
        f"{dtype}: largest share of a limit: "
        + ", ".join(f"{kind} {most[kind]:.2f}" for kind in KINDS if kind in most)
        for dtype, most in shares(forms).items()
    ]


def speed_table(group: list[dict[str, Any]]) -> list[str]:
    """Kernels beside two plain products, which only the earlier script timed."""
    if not group:
        return []
    lines = ["", "| layer | tokens | " + " | ".join(f"{name} ms" for name in KERNELS) + " |",
             "|" + "---|" * (len(KERNELS) + 2)]  # fmt: skip
    for row in group:
        times = [f"{row[f'{n}_ms']:.3f}" if f"{n}_ms" in row else "-" for n in KERNELS]
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join(times)} |")
    return lines


def cell_table(group: list[dict[str, Any]]) -> list[str]:
    """Our layer beside transformers', as in docs/gpu.md."""
    if not group:
        return []
    lines = ["", "| layer | tokens | simple ms | transformers ms | its variant | ratio |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for cell in group:
        ours = f"{cell['simple_ms']:.3f}" if "simple_ms" in cell else "-"
        theirs = ["-", "-", "-"]
        if "ratio" in cell:
            theirs = [f"{cell['transformers_ms']:.3f}", cell["transformers"],
                      f"{cell['ratio']:.2f}"]  # fmt: skip
        lines.append(f"| {cell['model']} | {cell['batch']} | {ours} | {' | '.join(theirs)} |")
    return lines
