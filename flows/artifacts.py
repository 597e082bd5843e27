"""What flows leave on their pages in the Prefect UI."""

from collections.abc import Iterable, Mapping
from typing import Any

from prefect.artifacts import create_table_artifact

from storage.markdown import shown_either_way, shown_text


def leave_table(rows: Iterable[Mapping[str, Any]], key: str, description: str) -> None:
    """Leave a table as an artifact, in which text from data is shown and never interpreted.

    Of the server's two interfaces, one reads cells as Markdown; both read the description so.

    Parameters
    ----------
    rows : iterable of mappings
        Each of the same columns.
    key : str
        What the artifact is called.
    description : str
        One line.
    """
    shown = [
        {column: shown_either_way(value) if isinstance(value, str) else value for column, value in row.items()}
        for row in rows
    ]
    create_table_artifact(shown, key=key, description=shown_text(description))
