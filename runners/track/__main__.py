"""`python -m runners.track`: records into W&B runs, as a process of its own."""

import sys

from runners.track.cli import main

if __name__ == "__main__":
    sys.exit(main())
