"""The errors that the harness raises itself. The command line turns each into a sentence and an exit status."""

from __future__ import annotations


class UsageError(Exception):
    """What was asked for cannot be done; the message names the value and the remedy."""


class TargetError(UsageError):
    """What a configuration names, the user's own, cannot be built; the message names its key."""


class BadRecordError(ValueError):
    """A file is no whole record; the message names it."""


class OtherSchemaError(ValueError):
    """A record is of a schema that this version cannot read."""


class DivergedError(ArithmeticError):
    """A parameter is no finite number."""


class WrongGradientError(ArithmeticError):
    """A direction that calls itself exact writes another gradient than that of the loss."""


class TooSlowError(RuntimeError):
    """A step takes longer than the settings allow."""


class BuildError(RuntimeError):
    """A version of the code cannot be had or does not build."""


class SessionError(RuntimeError):
    """A session of benchmarks cannot be used: it did not start, died or hangs."""


class StoppedError(RuntimeError):
    """The process that measures was asked to end; what it has done is in its checkpoint."""
