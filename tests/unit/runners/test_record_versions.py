"""A file of every version of the record, written by the code of its time, is read or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runners.records import record, sealed, stats
from runners.records.record import READABLE, SCHEMA
from runners.records.sealed import RecordError
from tests.support.whole_record import DATA

# Median time of a step and latency in ms, from the blocks in the files: of schema 2 the median of
# 12.252473, 12.234672 and 19.671657; of schema 3 of the rounds' (160.040612 - 26.450106) / 63,
# (140.369661 - 29.487624) / 63 and (114.849192 - 54.679341) / 63; of schema 4 the same by 48 steps.
FIGURES = {2: (12.252473, None), 3: (1.760032, 0.367271), 4: (1.326328, 0.359830)}


def test_there_is_a_file_of_every_version() -> None:
    files = sorted(DATA.glob("*.json"))
    assert [path.name for path in files] == [f"schema-{n}.json" for n in range(1, SCHEMA + 1)]
    for number, path in enumerate(files, 1):
        assert json.loads(path.read_bytes())["schema"] == number
    assert set(FIGURES) == set(READABLE)


@pytest.mark.parametrize("version", READABLE)
def test_a_readable_version_has_its_figures(version: int) -> None:
    read = record.read(DATA / f"schema-{version}.json")
    assert (read.schema, read.outcome, read.cell.strategy.name) == (version, "measured", "ep")
    assert (read.cell.placement.world_size, read.meta["model"]) == (2, "reference")
    assert stats.metric(read) == (stats.BLOCK_MEAN if version == 2 else stats.STEADY)
    median, latency = FIGURES[version]
    assert stats.headline(read)["median_duration_ms"] == pytest.approx(median, abs=1e-6)
    assert stats.headline(read)["latency_ms"] == (latency and pytest.approx(latency))


def test_the_first_version_is_refused_by_name() -> None:
    with pytest.raises(
        RecordError, match=r"schema-1\.json: schema 1: this version reads 2, 3 and 4; measure again"
    ):
        record.read(DATA / "schema-1.json")


def test_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    content = json.loads((DATA / f"schema-{SCHEMA}.json").read_bytes())
    content.pop(sealed.CHECKSUM)
    path = tmp_path / "record-0.json"
    path.write_text(sealed.sealed({**content, "schema": SCHEMA + 1}))
    with pytest.raises(RecordError, match=r"schema 5: this version reads 2, 3 and 4"):
        record.read(path)
