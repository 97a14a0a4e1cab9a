"""The Mixture-of-Experts layer: what is computed and what is communicated.

Importing this package imports no torch, so that its arithmetic (`moe.cost`, `moe.spec`) can be
used by the analysis.
"""
