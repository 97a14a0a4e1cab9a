"""The correctness check. A cell is timed only while it computes the right outputs and gradients.

definitions   an independent second definition of tokens, shards, experts and prescribed choices
oracle        the layer in float64, one process
routing       checks the router's logits, choice, gates and dropped slots against the oracle
reference     outputs and gradients of every row, with experts spread over the ranks
limits        how far rounding may take a right layer from the oracle
snapshot      a proven step's output, gradients and input, and what later differs from them
verifier      runs all checks: before timing, after each block, after the last one
"""
