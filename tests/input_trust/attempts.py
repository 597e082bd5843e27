"""Readers that are tried on a spoilt input: what they may say, and what counts as wrong."""

from collections.abc import Callable
from pathlib import Path

from bind_core.errors import BindDataError


class WrongError(Exception):
    """A reader returned what no sound input could hold."""


def require(condition: bool, what: str) -> None:
    """Raise `WrongError` unless a condition holds."""
    if not condition:
        raise WrongError(what)


def attempt(place: Path | str, read: Callable[[], None]) -> str | None:
    """Read; return what the reader said if it refused, which must name the place."""
    try:
        read()
    except BindDataError as error:
        require(str(place) in str(error), f"the message does not name {place}: {error}")
        require(len(str(error)) < 20_000, f"a message of {len(str(error)):,} characters")
        link: BaseException | None = error
        while link is not None:
            require(not isinstance(link, MemoryError), f"as much memory as the input asks for was asked for: {error}")
            link = link.__cause__ or link.__context__
        return str(error)
    return None
