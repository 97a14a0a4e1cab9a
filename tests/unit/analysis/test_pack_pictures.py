"""Pictures of a packed file: drawn of what is packed, or kept where they say no more."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from analysis import cli
from analysis.packing import pack
from runners.packed.packed_file import read_packed
from runners.records import record
from tests.support.packed_sweeps import packed, records, sweep


def test_pictures_are_drawn_of_what_is_packed(tmp_path: Path) -> None:
    read = read_packed(packed(sweep(tmp_path / "secret-name"), tmp_path / "x.moebench"))
    assert "speed_vs_top_k.png" in read.pictures
    for data in read.pictures.values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG" and image.width > 400
            assert getattr(image, "text", {}) == {}


def test_pictures_of_the_sweep_are_kept_where_their_caption_says_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sweep with the usual name, drawn after its last record; else they are drawn anew."""
    folder = sweep(tmp_path / "2026-01-01_00-00-00_sweep")
    assert cli.main(["plot", str(folder), "--name", "speed_vs_top_k"]) == 0
    file = packed(folder, tmp_path / "x.moebench")
    assert "anew" not in capsys.readouterr().err
    assert list(read_packed(file).pictures) == ["speed_vs_top_k.png"]
    picture = folder / "plots" / "speed_vs_top_k.png"
    with Image.open(picture) as image:
        image.load()
        assert "Source" in image.text  # which the file has not
    named = sweep(tmp_path / "alice", [dataclasses.replace(r, sweep="alice") for r in records()])
    assert cli.main(["plot", str(named), "--name", "speed_vs_top_k"]) == 0
    packed(named, tmp_path / "y.moebench")
    assert "drawing the pictures anew" in capsys.readouterr().err
    newer = record.write(folder, dataclasses.replace(records()[0], launch=1))
    assert newer.stat().st_mtime_ns > picture.stat().st_mtime_ns
    packed(folder, tmp_path / "z.moebench")
    assert "drawing the pictures anew" in capsys.readouterr().err


def test_a_label_that_names_somebody_is_in_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep's own pictures have it in their legends, so others are drawn."""
    monkeypatch.setattr(pack, "names_here", lambda: frozenset(["asmith"]))
    attempts = [one for label in ("asmith", "other") for one in records(label=label)]
    folder = sweep(tmp_path / "2026-01-01_00-00-00_sweep", attempts)
    assert cli.main(["plot", str(folder), "--name", "speed_vs_top_k"]) == 0
    packed(folder, tmp_path / "x.moebench")
    assert "drawing the pictures anew" in capsys.readouterr().err


def test_pictures_that_are_none_of_ours_are_left_where_they_are(tmp_path: Path) -> None:
    """A copy that somebody made, and a picture too large to be one of ours."""
    folder = sweep(tmp_path / "2026-01-01_00-00-00_sweep")
    assert cli.main(["plot", str(folder), "--name", "speed_vs_top_k"]) == 0
    plots = folder / "plots"
    (plots / "speed (alice).png").write_bytes((plots / "speed_vs_top_k.png").read_bytes())
    (plots / "alice.png").write_bytes((plots / "speed_vs_top_k.png").read_bytes())
    assert list(read_packed(packed(folder, tmp_path / "x.moebench")).pictures) == [
        "speed_vs_top_k.png"
    ]
    size = struct.pack(">4sIIBBBBB", b"IHDR", 30000, 30000, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + size + struct.pack(">I", zlib.crc32(size))
    (plots / "speed_vs_batch.png").write_bytes(header)
    assert len(read_packed(packed(folder, tmp_path / "y.moebench")).pictures) > 1  # drawn
