"""What the user has to mend, found before anything is started: one line, exit code 2."""


class ConfigError(ValueError):
    """Bad input. The message names the field, its value, what is allowed and what to do."""
