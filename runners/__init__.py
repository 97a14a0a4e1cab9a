"""Turns configs into cells, cells into launched ranks, ranks into records."""
