"""README alone in a new folder: its commands, top to bottom, work and print what README shows.

Digits differ from run to run, and so may who wins; the shape of the output may not. What takes
minutes or needs a GPU, a cluster or a network is run in the form that SHORT says.
`make getting-started`, `make bench`, `make test-slurm` and `make peers` run those for real.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.docs import console
from benchmarks.docs.console import Block

README = console.ROOT / "README.md"
BENCH = "python runners/bench.py"
YOUR_LAYER = (
    "dtype=bfloat16 tokens=sharded batch_size=4096 model.dim=4096 model.hidden=14336 "
    "model.dim_out=4096 num_experts=8 topk=2 model.activation=silu_gated model.bias=none"
)
MIXTRAL = (
    "model=mixtral_8x7b model.scale=1 batch_size=4096 tokens=sharded world_size=8 dtype=bfloat16"
)
# A command of README -> the form in which it is run here.
SHORT = {
    # minutes: only what it would do
    "make bench": "make -n bench",
    "make test": "make -n test",
    "make peers": "make -n peers",
    # minutes: fewer and smaller cells, fewer samples
    f"{BENCH} experiment=crossover": (
        f"{BENCH} experiment=crossover measure=quick batch_size=4,16 model.scale=64"
    ),
    f"{BENCH} -m strategy=simple,tp,ep topk=2,4,8": (
        f"{BENCH} -m strategy=simple,tp,ep topk=2,4,8 measure=quick"
    ),
    # eight GPUs, a cluster, a server, an environment of other systems: the config
    f"{BENCH} -m strategy=dp,tp,ep world_size=8 {YOUR_LAYER}": (
        f"{BENCH} strategy=ep world_size=8 {YOUR_LAYER} --cfg job"
    ),
    f"{BENCH} -m strategy=tp,ep {MIXTRAL}": f"{BENCH} strategy=ep {MIXTRAL} --cfg job",
    f"{BENCH} -m hydra/launcher=slurm hosts.ranks_per_node=8 world_size=8,16 strategy=tp,ep": (
        f"{BENCH} hydra/launcher=slurm hosts.ranks_per_node=8 world_size=8 strategy=tp --cfg job"
    ),
    f"{BENCH} -m hydra/launcher=ray hosts.ranks_per_node=8 world_size=8,16 strategy=tp,ep": (
        f"{BENCH} hydra/launcher=ray hosts.ranks_per_node=8 world_size=8 strategy=tp --cfg job"
    ),
    ".venv-peers/bin/python runners/bench.py experiment=peers_cpu": (
        f"{BENCH} experiment=peers_cpu --cfg job"
    ),
    # a server: the same from and to files
    "python -m runners.track --mode online": "python -m runners.track --mode offline",
    "python -m analysis show wandb:ENTITY/PROJECT": "python -m analysis show outputs/latest/wandb",
}
FINDS_LIMITS = "python -m analysis check"  # exit code 1: there is something to say
LABELS = ("How sure", "Limit", "Not varied", "Note")


def shape(line: str) -> str:
    """What of a line does not depend on the figures."""
    label = line.strip().partition(":")[0]
    if label in LABELS:
        return label
    columns = re.split(r"\s{2,}", line.strip())
    if set(line) <= {"-", " "}:
        return f"{len(columns)} rules" if line.strip() else ""
    if len(columns) > 1:
        return f"{columns[0]} and {len(columns) - 1} columns"
    return "sentence" if line.startswith("  ") else line.strip()


def shapes(lines: list[str]) -> list[str]:
    """Of all lines but those that go on with the one before."""
    return [shape(line) for line in lines if line != "..." and not line.startswith("    ")]


def sections() -> list[Block]:
    return list(console.blocks(README.read_text("utf-8")))


def test_every_short_form_is_of_a_command_in_readme() -> None:
    commands = [command for block in sections() for command in block.commands]
    assert set(SHORT) <= set(commands)
    assert len(commands) >= 15


@pytest.mark.dist
@pytest.mark.timeout(900)
def test_every_command_works_and_prints_what_readme_shows(tmp_path: Path) -> None:
    folder = console.copy_project(tmp_path)
    for block in sections():
        for command in block.commands:
            done = console.run(SHORT.get(command, command), folder)
            allowed = (0, 1) if command == FINDS_LIMITS else (0,)
            assert done.returncode in allowed, f"{command}\n{done.stdout}"
            if block.output:
                shown = console.shown(done.stdout, block.options)
                assert shapes(shown) == shapes(block.output), command
    for name in ("plots/speed_vs_top_k.png", "report.html", "tables/reproduced.md"):
        assert list((folder / "outputs").glob(f"*/{name}")), name


def test_shapes() -> None:
    """What may differ from run to run does not count; a missing column or line does."""
    assert shape("  simple is fastest at every top-k, 2.0 times ahead of tp; tp") == "sentence"
    assert shape("  How sure: 95% confidence for all.") == "How sure"
    assert shape("2        1.31 [0.78, 2.98] (o,t)  5.65 [2.94, 10.90] (o,t)") == "2 and 2 columns"
    assert shape("-------  -----  ---") == "3 rules"
    lines = ["...", "In short", "  a b;", "    c d.", "", "Duration"]
    assert shapes(lines) == ["In short", "sentence", "", "Duration"]


def test_a_page_is_read_and_a_part_of_the_output_is_shown() -> None:
    page = (
        "text\n```sh\nmake a   # words\n\n# more\npython b \\\n  c\n```\n"
        '```console start="In short" lines=2 picture=x.png:docs/crossover.png\n$ python d\n'
        "...\nIn short\n```\n"
    )
    first, second = console.blocks(page)
    assert first.commands == ["make a", "python b c"] and first.output == []
    assert second.commands == ["python d"] and second.output == ["...", "In short"]
    assert second.options["picture"] == "x.png:docs/crossover.png"
    output = "first\nIn short\n  one.\n  two.\n"
    assert console.shown(output, second.options) == ["...", "In short", "  one.", "..."]
    assert console.shown(output, {}) == ["first", "In short", "  one.", "  two."]
    two = {"start": "b", "paragraphs": "2"}
    assert console.shown("a\nb\n\nc\n\nd\n", two) == ["...", "b", "", "c", "..."]
    assert console.shown("b\n\nc\n", two) == ["b", "", "c"]
