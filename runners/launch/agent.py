"""torchrun's agent with two additions: it dies with the launcher, and it says who failed first.

python -m runners.launch.agent LAUNCH_DIR [torchrun arguments]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from runners.ranks import die_with_parent


def main(arguments: list[str]) -> int:
    launch_dir, *torchrun = arguments
    die_with_parent(int(os.environ.get("MOE_LAUNCHER_PID", "0")) or None)
    try:
        run(parse_args(torchrun))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exitcode": failure.exitcode, "pid": failure.pid}
            for rank, failure in error.failures.items()
        ]
        (Path(launch_dir) / "failures.json").write_text(json.dumps(failures))
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
