"""The correctness check: a cell is timed only while it computes the right thing.

definitions   what tokens, shards, experts and prescribed choices are, told a second time
oracle        the layer in float64, one process
routing       the router's logits, choice, gates and dropped slots against the oracle's
reference     outputs and gradients of every row, experts dealt out over the ranks
limits        how far rounding may take a right layer from the oracle
snapshot      a proven step's output, gradients and input, and what later differs from them
verifier      the order of it all: before timing, after each block, after the last one
"""
