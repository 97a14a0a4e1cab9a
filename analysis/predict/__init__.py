"""The time of a cell elsewhere or larger: a two-tier alpha-beta and roofline model.

`hardware` has the rates of a machine, `features` the work of a step, `network` its collectives,
`fit` the share of the rates that records reach, `model` the predicted time, `candidates` the cells
that could be run, `whole` whole models around the layer, `command` the verbs predict and advise.
"""
