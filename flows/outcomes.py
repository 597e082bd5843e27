"""How a flow ends, in words that a reader of the UI sees first."""

from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Failed

from bind_core.errors import BindDataError


def failed(error: BindDataError, message: str = "") -> State[Any]:
    """Return the state of a run that failed.

    A returned state shows its message on the run's page, where an exception would show a traceback.

    Parameters
    ----------
    error : BindDataError
        What whoever called the flow gets raised.
    message : str
        What to show; by default the error with its type.
    """
    message = message or f"{type(error).__name__}: {error}"
    if deployment.id is not None:  # at a terminal, the command says it
        get_run_logger().error(message)
    return Failed(message=message, data=error)
