"""Faults put into real sweeps, and what became of them: `python -m benchmarks.faults`."""
