"""Errors and warnings of one line: exit code 2 for bad input, a warning for what is set aside."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one line naming the option, its value, what is allowed and what to do."""


class SourceError(InputError):
    """A source that is not there or holds nothing."""


class SourceWarning(UserWarning):
    """Part of a source is damaged: which file, what is wrong; the rest is used."""
