"""`python -m runners.calibrate`: measures this machine's limits (runners/rank/calibrate.py).

Every rank of a calibration runs this module too, with options of its own.
"""

import sys

from runners.rank.calibrate import main

__all__ = ["main"]  # forked ranks call it: runners/launch/forked.py

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
