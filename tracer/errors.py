"""Errors that a user can act on. Imports nothing, so that the command starts fast."""


class FiretraceError(Exception):
    """Something that the user can act on. The message names the file and the reason."""


class JournalError(FiretraceError):
    """A journal that cannot be read."""


class RunNotFoundError(FiretraceError):
    """There is no such run."""


class UsageError(FiretraceError):
    """Options that do not go together."""
