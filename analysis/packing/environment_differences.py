"""In what two environments differ, in the order in which it could explain a difference of times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.data.cell_summary import summaries
from analysis.packing.environment_facts import (
    FIRST,
    LATER,
    MACHINE,
    NO_CARD,
    Fact,
    Row,
    cards,
    changes,
    commit,
)
from analysis.stats.summarize import summarize
from runners.packed import texts

NOT_RECORDED, NOT_SET = "not recorded", "not set"
# What a launch sets for its ranks, so that the command line need not have it.
SET_FOR_RANKS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLOO_SOCKET_IFNAME",
                 "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # fmt: skip
MOST_CELLS = 3  # whose kernels are named one by one


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same on both sides, in words."""

    what: str
    there: str
    here: str

    def line(self) -> str:
        return f"{self.what}: {self.there} there against {self.here} here"


def of_environments(there: Sequence[Row], here: Mapping[str, Any]) -> list[Difference]:
    """Of attempts against what this machine would record before any rank runs."""
    rows: list[Row] = [{"environment": here}]
    ours = _texts_of_variables(rows, SET_FOR_RANKS)
    theirs = _texts_of_variables(there, SET_FOR_RANKS)
    before, after = ([fact for fact in facts if not fact.of_ranks]
                     for facts in ((*FIRST, *MACHINE), LATER))  # fmt: skip
    return [
        *_differing(before, there, rows),
        *_variables(theirs, ours),
        *_differing(after, there, rows),
    ]


def of_sweeps(there: pd.DataFrame, here: pd.DataFrame) -> list[Difference]:
    """Of two frames, each with what its ranks recorded."""
    a, b = rows_of(there), rows_of(here)
    return [
        *_differing(FIRST, a, b),
        *measures(a, b),
        *_differing(MACHINE, a, b),
        *_variables(_texts_of_variables(a), _texts_of_variables(b)),
        *kernels(there, here),
        *_differing(LATER, a, b),
    ]


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The attempts of a frame."""
    rows = ({str(k): v for k, v in row.items()} for row in frame.to_dict("records"))
    return [{**row, "environment": row["environment"] or {}} for row in rows]


def _differing(
    facts: Iterable[Fact], there: Sequence[Row], here: Sequence[Row]
) -> list[Difference]:
    differences = []
    without = any({cards(row) for row in rows} <= {NO_CARD, None} for rows in (there, here))
    for fact in facts:
        if fact.of_cards and without:
            continue
        a, b = (_known(fact, rows) for rows in (there, here))
        if fact.of_both and not (a and b):
            continue
        if (a or b) and not _same(fact, a, b):
            differences.append(Difference(fact.what, _words(fact, a), _words(fact, b)))
    return differences


def measures(there: Sequence[Row], here: Sequence[Row]) -> list[Difference]:
    """One difference with all settings of `measure` that are not the same; a setting that only one
    side knows, as another version wrote it, is none."""
    names = dict.fromkeys(name for row in there for name in row.get("measure") or {})
    facts = [Fact(name, _setting(name), of_both=True) for name in names]
    differences = _differing(facts, there, here)
    a, b = (", ".join(f"{one.what} {getattr(one, side)}" for one in differences)
            for side in ("there", "here"))  # fmt: skip
    return [Difference("measure", a, b)] if differences else []


def _setting(name: str) -> Callable[[Row], Any]:
    return lambda row: (row.get("measure") or {}).get(name)


def _known(fact: Fact, rows: Sequence[Row]) -> list[Any]:
    """The distinct values of the attempts."""
    values = (fact.value(row) for row in rows)
    return list(dict.fromkeys(value for value in values if value not in (None, "")))


def _same(fact: Fact, a: list[Any], b: list[Any]) -> bool:
    if fact.is_number and a and b:
        x, y = (statistics.median(map(float, values)) for values in (a, b))
        return abs(x - y) <= max(fact.slack, fact.tolerance * max(x, y))
    return set(map(str, a)) == set(map(str, b))


def _words(fact: Fact, values: list[Any]) -> str:
    if not values:
        return NOT_RECORDED
    if fact.is_number:
        return f"{statistics.median(map(float, values)):.4g}{fact.unit}"
    return " / ".join(map(str, values))


def _texts_of_variables(rows: Sequence[Row], left_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """Values of every variable over all attempts, as a packed file has them."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for name, value in (row["environment"].get("variables") or {}).items():
            text = texts.variable(str(name), str(value))
            if name not in left_out and text not in values.setdefault(name, []):
                values[name].append(text)
    return values


def _variables(there: Mapping[str, list[str]], here: Mapping[str, list[str]]) -> list[Difference]:
    words = {
        name: [" / ".join(sorted(side.get(name, []))) or NOT_SET for side in (there, here)]
        for name in sorted({*there, *here})
    }
    return [Difference(f"variable {name}", a, b) for name, (a, b) in words.items() if a != b]


def kernels(there: pd.DataFrame, here: pd.DataFrame) -> list[Difference]:
    """Kernels that were chosen otherwise for a cell; of many such cells the first few, and how many
    more there are."""
    ours = {cell.cell_id: cell for cell in summaries(summarize(here))}
    differing = [
        Difference(f"kernel of {cell.strategy} {cell.cell_id}", cell.kernel_ran, other.kernel_ran)
        for cell in summaries(summarize(there))
        if (other := ours.get(cell.cell_id))
        and cell.kernel_ran and other.kernel_ran
        and cell.kernel_ran != other.kernel_ran
    ]  # fmt: skip
    if len(differing) <= MOST_CELLS:
        return differing
    rest = differing[MOST_CELLS:]
    more = Difference(
        f"kernel of {len(rest)} more cells",
        "/".join(dict.fromkeys(one.there for one in rest)),
        "/".join(dict.fromkeys(one.here for one in rest)),
    )
    return [*differing[:MOST_CELLS], more]


def relation(there: Sequence[Row], here: Sequence[Row]) -> str:
    """One line: whether both are of one machine, and of the same code."""
    machines = [{str(row["environment"].get("host") or "") for row in side}
                for side in (there, here)]  # fmt: skip
    codes = [{(commit(row), changes(row)) for row in side} for side in (there, here)]
    machine = "machines that their records do not tell apart"
    if all(side and "" not in side for side in machines):
        machine = "one machine" if machines[0] == machines[1] else "different machines"
    code = "code that is not recorded"
    if all((None, None) not in side for side in codes):
        same = codes[0] == codes[1] and len(codes[0]) == 1
        code = "the same commit" if same else "different code"
    return f"There and here are {machine}, with {code}."
