"""Errors that a user can act on: one sentence with what was expected, what was found, where, and what to do."""

from __future__ import annotations


class MedkdError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text and exits with status 1."""


class DataError(MedkdError):
    """A scan, label map, radiograph or data set description is missing, unreadable or inconsistent."""


class PlanError(MedkdError):
    """A plan, fingerprint or configuration is missing or does not fit what is asked of it."""


class RunError(MedkdError):
    """A run folder, checkpoint or network is missing, incomplete or of another kind."""


class MethodError(MedkdError):
    """A distillation method is unknown, badly parametrised, or not defined for this student, teacher or data."""


class LeakError(MedkdError):
    """A teacher has seen cases on which the student is going to be judged."""
