"""`python -m runners.worker PLAN`: one rank of a launch. The code is in runners/rank/worker.py."""

import sys

from runners.rank.worker import main, prepare

__all__ = ["main", "prepare"]  # forked ranks call both: runners/launch/forked.py

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
