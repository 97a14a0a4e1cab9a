"""The agent of emulated ranks whose steps have what their cells' labels plant: see planted_worker."""

import sys

from benchmarks.cost_model import planted_worker
from benchmarks.emulate import agent

if __name__ == "__main__":
    planted_worker.install()
    sys.exit(agent.main(sys.argv[1:]))
