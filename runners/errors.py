"""Errors in the user's input, raised before anything starts: one line, exit code 2."""


class ConfigError(ValueError):
    """Bad input. The message names the field, its value, what is allowed and what to do."""
