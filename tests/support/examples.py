"""How many inputs tests of random input draw: EXAMPLES=5000 python -m pytest ... draws more."""

import os


def examples(usual: int) -> int:
    return int(os.environ.get("EXAMPLES", usual))
