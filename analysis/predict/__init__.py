"""What a cell would take elsewhere or larger: a two-tier alpha-beta and roofline model.

`machine` says what hardware can do, `terms` what a step asks of it, `fit` how much of the hardware
records show to be reached, `model` puts them together, `advise` ranks what could be run.
"""
