"""The errors a user can cause, one type per cause.

Every message says what was being done, where, what was expected, what was found, and what to do about it.
"""

from typing import Any


class BindDataError(Exception):
    """Base of all errors raised on purpose by this project."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel between MPI ranks. By default they are rebuilt by calling the type with the message alone,
        # which fails for those that carry more; and a rank that cannot read the error waits for ever.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[BindDataError], arguments: tuple[Any, ...], facts: dict[str, Any]) -> BindDataError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(facts)
    return error


class ConfigurationError(BindDataError):
    """A configuration that cannot be used: unknown keys, values out of range, paths not given."""


class SnapshotError(BindDataError):
    """A snapshot that cannot be read as one: a missing file, attribute or dataset, or a damaged file."""


class CatalogueError(BindDataError):
    """A halo catalogue that cannot be read as one."""


class ParameterTableError(BindDataError):
    """A parameter table that cannot be read as one."""


class ProjectionError(BindDataError):
    """A projection that cannot be made, or whose result fails its own checks."""


class NormalizationMismatchError(BindDataError):
    """Normalization statistics that belong to another data set than the one they are applied to."""
