"""What a terminal shows of a sweep: a bar, what is done now, and the best so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.text import Text

from runners.sweep.estimate import Outlook

BAR_COLUMNS = 24
LEAST_BAR = 4
BARS = ("━", "─")  # done, and not done: told apart without colours, too
ASCII_BARS = ("=", "-")


@dataclass(frozen=True)
class Frame:
    """What is known at one moment; never changed, so that the thread that draws may read it."""

    done: int = 0
    total: int = 0
    began: float = 0.0
    activity: str = ""
    outlook: Outlook | None = None
    best: tuple[str, ...] = ()


class Screen:
    """Draws the latest frame at the current time; no line is longer than the terminal is wide."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.frame = clock, Frame()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        frame, width = self.frame, options.max_width - 1  # the last column may break the line
        lines = [self._first_line(frame, width, options.ascii_only)]
        lines += [Text(line) for line in (frame.activity, *frame.best)]
        for text in lines:
            text.no_wrap = True
            text.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            yield text

    def _first_line(self, frame: Frame, width: int, ascii_only: bool) -> Text:
        now = self.clock()
        words = f"{frame.done}/{frame.total} done  {clock_time(now - frame.began)}"
        words += f"  {frame.outlook.text(now)}" if frame.outlook else ""
        columns = min(BAR_COLUMNS, width - len(words) - 1)
        if columns < LEAST_BAR:
            return Text(words)
        filled = columns * frame.done // max(frame.total, 1)
        done, rest = ASCII_BARS if ascii_only else BARS
        bar = (done * filled, "green"), (rest * (columns - filled), "dim")
        return Text.assemble(*bar, f" {words}")


def clock_time(seconds: float) -> str:
    """1:05 for 65 s, 1:00:00 for an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
