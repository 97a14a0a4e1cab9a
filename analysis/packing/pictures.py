"""The pictures of a packed file: those that the sweep ended with, where they say no more than the
packed records do, else drawn anew; as small PNG files without metadata."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = 64
PLOTS = "plots"  # in a sweep's folder
SOURCE = "Source"  # of a picture's metadata
FILE_NAME = re.compile(r"[a-z0-9_]{1,60}")


def kept(folder: Path, newest_record_ns: int, captions: Sequence[str]) -> dict[str, bytes]:
    """The pictures in a sweep's folder, by name. None where one of them is older than a record, or
    has another source than `captions`, such as "Sweep sweep; AMD EPYC, 2 cores."."""
    from PIL import Image

    from analysis.plots import PLOTS as KNOWN

    pictures: dict[str, bytes] = {}
    for path in sorted((folder / PLOTS).glob("*.png")):
        if not FILE_NAME.fullmatch(path.stem) or not path.stem.startswith(tuple(KNOWN)):
            continue  # none of ours
        try:
            if path.stat().st_mtime_ns < newest_record_ns:
                return {}
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                if _text(image).get(SOURCE) not in captions:
                    return {}
                pictures[path.stem] = small(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return {}
    return pictures


def _text(image: Image) -> dict[str, Any]:
    return dict(getattr(image, "text", {}))


def small(image: Image) -> bytes:
    """A PNG file of few colours, which has nothing in it but them."""
    from PIL.Image import Quantize

    stream = io.BytesIO()
    bare = image.convert("RGB").quantize(COLOURS, Quantize.FASTOCTREE)
    bare.info.clear()
    bare.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def drawn(rows: Sequence[dict[str, Any]], name: str) -> dict[str, bytes]:
    """Every plot that the rows have data for, by name; `name` is their source in its text."""
    from analysis import plots

    plots.settle_matplotlib()
    from PIL import Image

    from analysis.data.frame import to_frame
    from analysis.plots.canvas import PlotData
    from analysis.stats.summarize import summarize

    frame = to_frame(rows, samples=True)
    pictures: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = PlotData(frame, summarize(frame), [name])
        for output in plots.draw_all(scene, Path(folder)):
            if isinstance(output, Path) and output.suffix == ".png":
                with Image.open(output, formats=["PNG"]) as image:
                    pictures[output.stem] = small(image)
    return dict(sorted(pictures.items()))
