"""Measures cells on an emulated cluster and writes the usual records.

    python -m benchmarks.emulate [options] OVERRIDE...

Overrides are those of runners/bench.py, lists included: world_size=8,16 strategy=tp,ep topk=2,8.
`--cells "strategy=dp_ep strategy.ep=2,4"`, also several times, gives overrides of some cells alone.
Times are of the emulated cluster, `--dilation` times slower than its ranks would be at the speed of
one core here; records have it in environment.emulated. Linux with network namespaces only.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from benchmarks.emulate import launch, rates
from runners import bench  # registers the resolvers that conf/ uses
from runners.config.refusal import one_line
from runners.config.resolution import Composed, plain
from runners.config.schema import check_shape
from runners.config.validate import format_errors, validate
from runners.errors import ConfigError
from runners.host import project_paths
from runners.host.machine import this_machine
from runners.records.emulation import Emulation, EmulationError
from runners.sweep import resume
from runners.sweep.folder import new_or_resumed, write_refused
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep

# Steps take 0.1 to 2 s, so that a block is one step and few are needed.
ALWAYS = (
    "threads=1", "backend=gloo", "device=cpu", "measure.block=1", "measure.calibrate=false",
    "report=false",
)  # fmt: skip
USUAL = (
    "tracker=none", "tokens=sharded", "strategy.kernel=loop", "measure.samples=5",
    "measure.samples_max=5", "measure.warmup=1", "measure.warmup_max=1", "measure.phases=3",
    "measure.anchors=1",
)  # fmt: skip
OPTIONS = {
    "dilation": "--dilation", "ranks_per_node": "--ranks-per-node", "intra_mbit_s": "--intra",
    "inter_mbit_s": "--inter", "mtu": "--mtu",
}  # fmt: skip


def composed(overrides: Sequence[str]) -> list[Composed]:
    """The configs of all combinations of the overrides' lists; raises ConfigError for overrides of
    what an emulation decides, and what Hydra raises for others that are wrong."""
    decided = {word.partition("=")[0]: word for word in ALWAYS}
    for word in overrides:
        fixed = decided.get(word.lstrip("+").partition("=")[0], word)
        if fixed != word:
            raise ConfigError(f"{word}: allowed is {fixed} on an emulated cluster; leave it out")
    words = [*USUAL, *overrides, *ALWAYS]
    parsed = OverridesParser.create().parse_overrides(words)
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [word]
        for word, one in zip(words, parsed, strict=True)
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
        return [
            Composed(plain(compose("config", list(chosen))), list(chosen))
            for chosen in itertools.product(*choices)
        ]


def run(
    configs: Sequence[Composed], cluster: Emulation, sweep_dir: Path, command: str, **how: str
) -> SweepResult:
    """Measures; `how` are options of `launch.start`. Raises ConfigError for cells that cannot be
    run, and where nothing can be emulated."""
    for config, _ in configs:
        check_shape(config)
    jobs, errors = validate(configs, this_machine())
    if not jobs or (errors and configs[0].config["on_invalid"] != "skip"):
        raise ConfigError(format_errors(errors))
    launch.check()
    sweep_dir.mkdir(parents=True)
    rates_path = sweep_dir / "rates.json"
    rates.save(rates.measure(cluster), rates_path)
    settings = dataclasses.replace(
        settings_of(configs[0].config, sweep_dir, command), emulated=cluster
    )
    progress = Progress()
    refused = [(" ".join(configs[n].overrides), str(error)) for n, error in errors.items()]
    for overrides, reason in refused:
        progress.print_line(f"skipped: {overrides}: {reason}")
    with resume.locked(sweep_dir):
        new_or_resumed(settings)
        write_refused(sweep_dir, refused)
        starting = partial(launch.start, rates_path=rates_path, **how)
        sweep = Sweep(list(jobs.values()), settings, progress, starting)
        sweep.calibration_dir = sweep_dir / "calibration"  # not that of the machine itself
        result = sweep.run()
    result.skipped = len(errors)
    return result


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.emulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Emulation()
    options.add_argument("--name", default="emulated", help="of the folder in outputs/")
    options.add_argument("--dilation", type=float, default=usual.dilation)
    options.add_argument("--ranks-per-node", type=int, default=usual.ranks_per_node)
    options.add_argument("--intra", type=float, default=usual.intra_mbit_s, help="Mbit/s a rank")
    options.add_argument("--inter", type=float, default=usual.inter_mbit_s, help="Mbit/s a rank")
    options.add_argument("--mtu", type=int, default=usual.mtu, help="bytes")
    options.add_argument(
        "--cells", action="append", default=[], help="further overrides of some of the cells"
    )
    options.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="as of runners/bench.py")
    return options


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    command = f"python -m {__package__} {shlex.join(arguments)}"
    common = [f"name={options.name}", *options.overrides]
    forms = [text.split() for text in options.cells] or [[]]
    try:
        cluster = Emulation(
            options.dilation, options.ranks_per_node, options.intra, options.inter, options.mtu
        )
        configs = [config for form in forms for config in composed([*common, *form])]
        sweep_dir = project_paths.OUTPUTS / f"{now}_{options.name}"
        with bench.process_settings():
            result = run(configs, cluster, sweep_dir, command)
    except EmulationError as error:
        option = f"{OPTIONS[error.field]} {error.value:g}"
        print(f"error: {option}: allowed are {error.allowed}; choose one", file=sys.stderr)
        return 2
    except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was being measured", file=sys.stderr)
        return 130
    bench.print_result(result)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
