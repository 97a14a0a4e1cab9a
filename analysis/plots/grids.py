"""Coloured grids: which strategy wins where, and which rank has how much to do."""

from __future__ import annotations

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.panels import SERIAL, axes, panels, setting, title_of, x_label
from analysis.plots import canvas
from analysis.plots.canvas import Scene
from analysis.plots.stacks import bar_names
from analysis.standings import Standings

MAX_ROWS = 16
TIED = "#D9D9D9"


def crossover(scene: Scene) -> Figure | None:
    """The strategy shown to be fastest at every place; grey where none is shown to be."""
    chosen = [scene.group] if scene.group else axes(scene.cells)[:1]
    found = panels(scene.cells, chosen[0])[:MAX_ROWS] if chosen else []
    found = [p for p in found if len([s for s in p.series if s != SERIAL]) > 1]
    if not found:
        return None
    standings = Standings(scene.frame, found)
    columns = list(dict.fromkeys(x for p in found for x in p.values))
    made = canvas.figure(width=max(6.0, 1.25 * len(columns) + 3.2), height=1.5 + 0.55 * len(found))
    ax = made.subplots()
    used: dict[str, str] = {}
    for y, panel in enumerate(found):
        for place in standings.places(panel):
            leaders = standings.leaders(place)
            if len(place.cells) < 2:  # nobody to win against
                alone = "\n".join([*place.cells, "only"]) if place.cells else ""
                ax.text(columns.index(place.x), y, alone, ha="center", va="center", size=8)
                continue
            single = len(leaders) == 1
            color = canvas.look(leaders[0])["color"] if single else TIED
            used[leaders[0] if single else "no difference shown"] = color
            x = columns.index(place.x)
            hatch = "" if single else "//"
            ax.add_patch(_tile(x, y, color, hatch))
            ax.text(x, y, "\n".join(leaders), ha="center", va="center", size=8.5, color=_ink(color))
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xticks(range(len(columns)), [x_label(found[0], x) for x in columns])
    ax.set_yticks(range(len(found)), [_row(setting(p)) for p in found], size=8)
    ax.set_xlabel(title_of(found[0].axis))
    ax.grid(visible=False)
    made.legend(handles=[_key(n, c) for n, c in used.items()], loc="outside upper left", ncols=4)
    text = (
        f"Fastest strategy by {title_of(found[0].axis)}; grey: no difference shown among those "
        f"named. All {standings.comparisons} comparisons together at 95% (Bonferroni)."
    )
    return canvas.finish(made, scene, "crossover", [text])


def _tile(x: int, y: int, color: str, hatch: str) -> Patch:
    return Rectangle(
        (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, hatch=hatch, edgecolor="white"
    )


def _key(name: str, color: str) -> Patch:
    return Patch(
        facecolor=color, label=name, hatch="" if color != TIED else "//", edgecolor="white"
    )


def _ink(color: str) -> str:
    """Black or white, whichever can be read on the colour."""
    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _row(text: str) -> str:
    parts = text.split(", ")
    half = -(-len(parts) // 2)
    return ", ".join(parts[:half]) + "\n" + ", ".join(parts[half:])


def skew(scene: Scene) -> Figure | None:
    """Slots of every rank over the mean; lambda, the busiest rank's, at the end of the row."""
    cells = scene.cells[[len(slots) > 1 and sum(slots) > 0 for slots in scene.cells["rank_slots"]]]
    cells = cells.drop_duplicates(["strategy", "workload", "workload_parameter", "batch_size",
                                   "topk", "world_size", "tokens", "expert_placement"])  # fmt: skip
    cells = cells.iloc[:MAX_ROWS]
    if cells.empty:
        return None
    widest = max(len(slots) for slots in cells["rank_slots"])
    table = [
        [v * len(slots) / sum(slots) for v in slots] + [float("nan")] * (widest - len(slots))
        for slots in cells["rank_slots"]
    ]
    made = canvas.figure(width=7.5, height=1.4 + 0.32 * len(cells))
    ax = made.subplots()
    shown = ax.imshow(table, aspect="auto", vmin=0, interpolation="nearest")
    ax.set_yticks(range(len(cells)), bar_names(cells), size=9)
    for y, value in enumerate(cells["skew_lambda"]):
        ax.text(widest - 0.4, y, f" λ {value:.2f}", va="center", size=9)
    ax.set_xticks(range(widest))
    ax.set_xlabel("rank")
    ax.grid(visible=False)
    made.colorbar(shown, ax=ax, label="slots / mean", pad=0.14)
    text = "Slots of a rank over the mean of the ranks; λ is the busiest rank's."
    return canvas.finish(made, scene, "skew", [text])
