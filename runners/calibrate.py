"""`python -m runners.calibrate`: what this machine can do. The code is in
runners/rank/calibrate.py.

It stands for the ranks of a calibration as well, which start it with their options.
"""

import sys

from runners.rank.calibrate import main

__all__ = ["main"]  # forked ranks call it: runners/launch/forked.py

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
