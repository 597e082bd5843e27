"""How far an audit looks; apart from its result, so that the command line knows it without loading any tables."""

from enum import StrEnum


class Depth(StrEnum):
    """How far an audit looks."""

    KNOWN = "known"
    """The manifest against itself, the plan and the names and sizes of files; no sample is opened."""
    VERIFIED = "verified"
    """Every sample is read, hashed and checked as well."""
