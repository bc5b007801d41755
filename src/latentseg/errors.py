"""Errors that a user can meet, each with its exit code and a hint that says what to type next.

Exit codes of the command line: 0 ok, 1 internal bug, 2 usage, 3 input unreadable, truncated or damaged, 4 artefact
does not fit this machine or version, 5 verification or floor failed, 6 asked-for backend missing, 7 finished with some
frames or streams lost, 130 interrupted.
"""

from __future__ import annotations


class LatentsegError(Exception):
    """Base of every error raised on purpose.

    Parameters
    ----------
    message: what went wrong, with found versus expected.
    hint: what to do or type next; empty where the message already says it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LatentsegError):
    """The call itself makes no sense: an unknown name, an option that contradicts another, an output that exists."""

    exit_code = 2


class InputError(LatentsegError):
    """An input is missing, unreadable, truncated, damaged, or not what its name says."""

    exit_code = 3


class ArtifactError(LatentsegError):
    """A bundle, model or stream does not fit this machine, this version, or one another."""

    exit_code = 4


class VerificationError(LatentsegError):
    """A verification ran and failed, or a score lies below its floor."""

    exit_code = 5


class BackendMissingError(LatentsegError):
    """A backend or optional dependency that was asked for is not installed or not active."""

    exit_code = 6


class BackendInactiveError(BackendMissingError):
    """A backend is there and did something else than was asked, such as running on the CPU: a fall-back, seen."""


class PartialResultError(LatentsegError):
    """The work finished, but some frames or streams were lost; everything else was written."""

    exit_code = 7


class OutputError(PartialResultError):
    """An output could not be written to its end: full disk, lost permission. What was written before stays readable."""


def missing_extra(package: str, extra: str) -> BackendMissingError:
    """The one error for an optional dependency that is not installed."""
    return BackendMissingError(
        f"this needs the package '{package}', which is not installed", hint=f"pip install 'latentseg[{extra}]'"
    )
