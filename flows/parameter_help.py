"""Help texts of a flow's parameters, for the form in the Prefect UI."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

from griffe import Docstring, DocstringSectionKind, Parser, parse
from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Help:
    """Annotation that puts a text beside a parameter in its JSON schema."""

    text: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the text to the schema of the annotated type."""
        described = handler(schema)
        if "$ref" in described:
            described = {"allOf": [described]}  # beside a reference, other keys are ignored by some readers
        return described | {"description": self.text}


def with_parameter_help(function: Callable[P, R]) -> Callable[P, R]:
    """Annotate parameters with what the numpydoc docstring says of them; Prefect itself reads Google's style only."""
    sections = parse(Docstring(inspect.getdoc(function) or ""), Parser.numpy)
    texts = {
        parameter.name: " ".join(parameter.description.split())
        for section in sections
        if section.kind is DocstringSectionKind.parameters
        for parameter in section.value
    }
    for name, text in texts.items():
        function.__annotations__[name] = Annotated[function.__annotations__[name], Help(text)]
    return function
