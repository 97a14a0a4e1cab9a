"""A cluster emulated on one machine, slower than a real one by a known factor.

Ranks are forks of one process, each in a network namespace of its own. `network` shapes their
links in both directions on two tiers, `pace` makes computing `dilation` times slower than the CPU
time it takes, `rank` is the project's own worker with both, `agent` starts and ends the ranks of a
launch, and `python -m benchmarks.emulate` measures cells and writes the usual records.
"""
