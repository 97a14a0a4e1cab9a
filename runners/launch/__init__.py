"""Ways to start the ranks of a launch; each gives a `Started`."""
