"""How soon an answer is there, and that it is the same answer: a table for each question.

    python -m benchmarks.first_answer bench          # seconds of `make bench`, and in samples
    python -m benchmarks.first_answer start          # seconds until 8 gloo ranks have met
    python -m benchmarks.first_answer memory         # of 8 and 32 ranks, forked and started anew
    python -m benchmarks.first_answer alike          # 40 launches, half forked, half started anew
    python -m benchmarks.first_answer in_turns       # the same, a pair at a time, taking turns
    python -m benchmarks.first_answer exchanges      # small messages: exchanged, or in rings
    python -m benchmarks.first_answer large          # messages of 1 MiB and more

Medians of --times. On a quiet machine; `bench` takes about 4 minutes, `alike` and `in_turns` 6.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.first_answer import exchanges, ranks, sweep

QUESTIONS: dict[str, Callable[[int], None]] = {
    "bench": sweep.bench,
    "start": ranks.start,
    "memory": ranks.memory,
    "alike": ranks.alike,
    "in_turns": ranks.in_turns,
    "exchanges": exchanges.small,
    "large": exchanges.large,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_answer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", choices=QUESTIONS, nargs="+")
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    for question in asked.question:
        QUESTIONS[question](asked.times)


if __name__ == "__main__":
    main()
