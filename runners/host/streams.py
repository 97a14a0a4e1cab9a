"""Standard output and error whose reader may leave before the program ends, as `| head` does."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Pipe(io.FileIO):
    """Once its reader has left, what is written is dropped, also by processes started later."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """A program in it does all that it was asked for, whoever reads along, and ends as it would."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        for name, stream in before.items():
            setattr(sys, name, _forgiving(stream))
        yield
    finally:
        for name, stream in before.items():
            if stream is not None:
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def _forgiving(stream: Any) -> Any:
    """The same file, written to through `_Pipe`; a stream that is no file stays as it is."""
    try:
        raw = _Pipe(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
