"""Records that were written as JSON, read back into the data classes that they were written from."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bind_core.errors import BindDataError

_Record = TypeVar("_Record")
_SHOWN = 3


class RecordError(BindDataError):
    """A record that is not what was written: damaged, of another version, or something else."""


def record_from_json(kind: type[_Record], content: bytes | str, source: Path | str) -> _Record:
    """Return a data class from its JSON.

    Parameters
    ----------
    kind : type
        The data class. Every value has to be of its field's type; what the class has no field for is left out.
    content : bytes or str
        The JSON.
    source : Path or str
        Where it comes from, for the error message.

    Raises
    ------
    RecordError
        If it is no JSON, or a value is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        said = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in problems[:_SHOWN]]
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise RecordError(f"{source} holds no {kind.__name__} as it was written: {'; '.join(said)}{more}") from error
