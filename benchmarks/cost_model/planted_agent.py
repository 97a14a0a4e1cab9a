"""The agent of emulated ranks with what the labels of their cells plant: see planted_worker."""

import sys

from benchmarks.cost_model import planted_worker
from benchmarks.emulate import agent

if __name__ == "__main__":
    planted_worker.install()
    sys.exit(agent.main(sys.argv[1:]))
