"""Ranks' log lines -> records. Torch-free."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from runners.host import topology
from runners.plan import Job, LaunchPlan
from runners.records import stats
from runners.records.rank_log import RankReader, rank_path
from runners.records.record import KINDS, Record, Samples
from runners.sweep.activity import RankStage

PLACES = ("first", "middle", "last")  # of anchor samples in a wave
STAGED = "messages were staged through the host: checked, not timed"
LOST_PEER = re.compile(r"closed by peer|reset by peer|Connection (was )?(closed|reset)", re.I)


@dataclass
class RankLines:
    """The parsed lines of one rank so far."""

    reader: RankReader
    samples: dict[tuple[int, str], list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    info: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    launch: dict[str, Any] = field(default_factory=dict)
    waves_ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    stop_rules: dict[int, str] = field(default_factory=dict)
    progress: RankStage = field(default_factory=RankStage)
    error: dict[str, Any] | None = None
    exited: bool = False

    @property
    def cell(self) -> int:
        return self.progress.cell

    @property
    def stage(self) -> str:
        return self.progress.stage

    def update(self) -> None:
        for line in self.reader.new_lines():
            try:
                self._parse(line.pop("event"), line)
            except (KeyError, TypeError, ValueError):  # a line of another version
                self.reader.damaged += 1

    def _parse(self, event: str, line: dict[str, Any]) -> None:
        if event == "sample":
            self.samples[line["cell"], line["kind"]].append(line)
        elif event == "info":
            self.info[line["cell"]][line["name"]] = line["value"]
        elif event == "warmup":
            self.info[line.pop("cell")]["warmup"] = line
        elif event in ("environment", "calibration", "exchanged", "pinned", "nodes"):
            self.launch[event] = line["value"]
        elif event == "enter":
            self.progress = replace(self.progress, cell=line["cell"], stage=line["stage"])
        elif event == "stop":
            self.stop_rules[line["wave"]] = line["rule"]
        elif event == "wave_end":
            self.waves_ended[line["wave"]] = line["after"]
        elif event == "progress":
            medians = line.get("medians_ms", {})  # rank 0's; absent in older logs
            self.progress = replace(
                self.progress,
                wave=line["wave"],
                rounds=line["round"],
                medians_ms={int(index): float(ms) for index, ms in dict(medians).items()},
            )
        elif event == "error":
            self.error = line
        elif event == "exit":
            self.exited = True


class Assembler:
    """All ranks' lines of one launch, and the records they make."""

    def __init__(self, plan: LaunchPlan, jobs: list[Job], sweep: str) -> None:
        self.plan, self.jobs, self.sweep = plan, jobs, sweep
        launch_dir = Path(plan.launch_dir)
        self.ranks = [
            RankLines(RankReader(rank_path(launch_dir, rank)))
            for rank in range(plan.placement.world_size)
        ]

    def update(self) -> None:
        for rank in self.ranks:
            rank.update()

    def has_samples(self) -> bool:
        """Whether a rank has timed a cell of a wave that has no records yet."""
        return any(kind in KINDS for rank in self.ranks for _, kind in rank.samples)

    def wave_ended(self, wave: int) -> bool:
        return all(wave in rank.waves_ended for rank in self.ranks)

    def free_wave(self, wave: int) -> None:
        """Frees the wave's buffered samples once its records are written."""
        indices = {-1, *self.plan.waves[wave]}
        for rank in self.ranks:
            for index in indices & rank.info.keys():
                del rank.info[index]
            for key in [key for key in rank.samples if key[0] in indices]:
                del rank.samples[key]

    def record(self, index: int, wave: int, calibration: dict[str, Any] | None) -> Record:
        """The record of one cell from the lines so far. Of failures it knows only those that did
        not end the launch."""
        job, measure, first = self.jobs[index], self.plan.measure, self.ranks[0]
        info = first.info[index]
        samples = self._samples(index)
        rounds = len(stats.round_medians_ms(samples))
        rule = first.stop_rules.get(wave, "interrupted")
        verification, notes = self._verification(index), [*job.notes, *self._damage_notes()]
        checked_twice = "after" in (verification or {})
        outcome = "measured" if rounds >= measure.rounds_min else "interrupted"
        wrong = self._wrong(index)
        error = None if wrong else self._failure(index)
        if wrong or error:
            outcome, samples = "wrong" if wrong else "failed", Samples()
        elif self.plan.placement.staged:
            outcome, samples = "checked" if checked_twice else "interrupted", Samples()
            notes.append(STAGED)
        elif outcome == "measured" and not checked_twice:
            notes.append("it ended before it was checked again on other tokens")
        stop = {"rule": rule, "rounds": rounds, "target": measure.precision}
        return Record(
            key=job.key,
            cell=job.cell,
            label=job.label,
            launch=self.plan.launch,
            wave=wave,
            sweep=self.sweep,
            outcome=outcome,
            notes=notes,
            error=error,
            gate=verification,
            samples=samples,
            floor=asdict(self._columns(["floor"], -1)),
            stop=None if error or self.plan.placement.staged else stop,
            warmup=info.get("warmup"),
            phases=None if wrong or error else self._phases(index),
            traffic=self._per_rank(index, "traffic"),
            memory=self._per_rank(index, "memory"),
            skew=info.get("skew"),
            kernel=info.get("kernel"),
            host_waits=self._per_rank(index, "host_waits"),
            anchors=self._anchors(wave),
            meta=dict(job.meta),
            measure=asdict(measure),
            environment=self._environment(wave),
            calibration=calibration or first.launch.get("calibration"),
            exchanged=first.launch.get("exchanged"),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _verification(self, index: int) -> dict[str, Any] | None:
        """The verification before timing, with later results merged in."""
        info = self.ranks[0].info[index]
        if not info.get("gate"):
            return None
        check, after = dict(info["gate"]), info.get("gate_after")
        if after:
            check["after"] = after
            if not after["ok"]:
                when = "" if self.plan.placement.staged else " after timing"
                check |= {"ok": False, "detail": f"checked again{when}: {after['detail']}"}
        for number, rank in enumerate(self.ranks):
            if changed := rank.info[index].get("changed"):
                text = f"{changed['text']} on rank {number}, {changed['when']}"
                check |= {"ok": False, "detail": f"right at first, then {text}", "changed": changed}
                break
        return check

    def _wrong(self, index: int) -> bool:
        verification = self._verification(index)
        return verification is not None and not verification["ok"]

    def _failure(self, index: int) -> dict[str, Any] | None:
        """What ended this cell alone, on the first rank that says so."""
        for number, rank in enumerate(self.ranks):
            if message := rank.info[index].get("failed"):
                log = f"launches/{self.plan.launch}/logs"
                return {"message": f"rank {number} {message}", "rank": number, "log": log}
        return None

    def _damage_notes(self) -> list[str]:
        damaged = [(n, rank.reader.damaged) for n, rank in enumerate(self.ranks)]
        return [f"{lines} damaged lines of rank {n} were left out" for n, lines in damaged if lines]

    def _samples(self, index: int) -> Samples:
        return self._columns(KINDS, index)

    def _columns(self, kinds: Iterable[str], index: int) -> Samples:
        """Samples that every rank has written, with starts and ends by rank. Those of the floor and
        of anchors count as blocks of a fixed length."""
        columns, node_of = Samples(), self.ranks[0].launch.get("nodes", ())
        for kind in kinds:
            for row in _paired_lines([rank.samples[index, kind] for rank in self.ranks]):
                starts, ends = topology.align_clocks(
                    [line["start_ns"] for line in row], [line["end_ns"] for line in row], node_of
                )
                columns.round.append(row[0]["round"])
                columns.position.append(row[0]["position"])
                columns.steps.append(row[0]["steps"])
                columns.kind.append(kind if kind in KINDS else "fixed")
                columns.start_ns.append(starts)
                columns.end_ns.append(ends)
        return columns

    def _anchors(self, wave: int) -> dict[str, Any] | None:
        """Of the cell that was the anchor most often: a wrong one is replaced during the wave."""
        anchors: dict[str, Any] = {}
        for index in self.plan.waves[wave]:
            if self._wrong(index) or self._failure(index):
                continue
            columns = {place: self._columns([f"anchor-{place}"], index) for place in PLACES}
            taken = {place: asdict(part) for place, part in columns.items() if part.round}
            if len(taken) + 1 > max(len(anchors), 1):
                anchors = {"key": self.jobs[index].key, **taken}
        return anchors or None

    def _per_rank(self, index: int, name: str) -> list[Any] | None:
        values = [rank.info[index].get(name) for rank in self.ranks]
        return values if all(value is not None for value in values) else None

    def _phases(self, index: int) -> dict[str, Any] | None:
        phases = self._per_rank(index, "phases")
        if not phases:
            return None
        return {
            "passes": phases[0]["passes"],
            "per_rank_ns": [rank["per_phase_ns"] for rank in phases],
            "total_ns": [rank["total_ns"] for rank in phases],
            "per_pass_ns": [  # none in older logs
                list(ranks)
                for ranks in zip(*(rank.get("pass_ns", []) for rank in phases), strict=True)
            ],
        }

    def _environment(self, wave: int) -> dict[str, Any]:
        environment = topology.environment([rank.launch for rank in self.ranks])
        environment["pinned"] = [rank.launch.get("pinned") for rank in self.ranks]
        environment["after"] = [rank.waves_ended.get(wave) for rank in self.ranks]
        if self.plan.files:
            environment["files"] = self.plan.files
        return environment

    def find_cause(self, failures: list[dict[str, Any]]) -> tuple[int, int, str]:
        """(rank, cell, message) of what ended the launch, by the first rule that applies:

        1. A rank was killed by a signal and has logged no error of its own (one that has logged an
           error can abort on its way out).
        2. A rank exited with an error code and no error logged: the watchdog ends it so.
        3. The earliest error that is not the loss of a peer.
        4. A rank ended early with no error logged.
        5. The earliest error.
        """
        errors = sorted((r.error["clock_ns"], n) for n, r in enumerate(self.ranks) if r.error)
        own_errors = [n for _, n in errors if not LOST_PEER.search(self._message(n))]
        for failure in failures:
            signalled = failure["exitcode"] < 0 and failure["exitcode"] != -15
            if signalled and failure["rank"] not in own_errors:
                return self._cause(failure["rank"], f"died of signal {-failure['exitcode']}")
        silent = [n for n, r in enumerate(self.ranks) if r.error is None and not r.exited]
        codes = {f["rank"]: f["exitcode"] for f in failures if f["exitcode"] > 0}
        for rank in silent:
            if rank in codes:
                stage = self.ranks[rank].stage
                return self._cause(rank, f"ended with exit code {codes[rank]} during {stage}")
        if own_errors:
            return self._cause(own_errors[0], self._message(own_errors[0]))
        if silent:
            return self._cause(silent[0], f"ended early during {self.ranks[silent[0]].stage}")
        first = errors[0][1] if errors else 0
        return self._cause(first, self._message(first) if errors else "ended without a word")

    def _message(self, rank: int) -> str:
        return str((self.ranks[rank].error or {}).get("message", ""))

    def _cause(self, rank: int, what: str) -> tuple[int, int, str]:
        return rank, self.ranks[rank].cell, f"rank {rank} {what}"


def _paired_lines(ranks: list[list[dict[str, Any]]]) -> Iterator[tuple[dict[str, Any], ...]]:
    """The ranks' lines of the same sample, together. A round's samples of a cell count only where
    all ranks have equally many: after a lost line the rest would be paired wrongly."""
    places: list[dict[tuple[int, int], list[dict[str, Any]]]] = []
    for lines in ranks:
        by_place: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for line in lines:
            by_place.setdefault((line["round"], line["position"]), []).append(line)
        places.append(by_place)
    for place in places[0]:
        same_place = [by_place.get(place, []) for by_place in places]
        if len({len(lines) for lines in same_place}) == 1:
            yield from zip(*same_place, strict=True)
