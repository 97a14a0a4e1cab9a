"""Ways to start the ranks of a launch; each returns a `RunningLaunch`."""
