"""What flows tell the Prefect server, so that deployments and automations can follow."""

from prefect.events import emit_event

from storage.layout import DatasetLayout
from storage.summary import RunSummary

SAMPLES_MADE = "bind-data.samples-made"
"""A run has ended, well or not, and there are samples that were not there before."""

DATASET = "bind-data.dataset"
"""Kind of the resource that the event is about; its id goes on with the data set's path."""


def announce_samples(summary: RunSummary, layout: DatasetLayout) -> None:
    """Emit `SAMPLES_MADE` for a run that has made any.

    The payload holds ``dataset`` (the root), ``run_id``, ``made`` (samples) and ``simulations`` (those with new
    samples).
    """
    if not summary.made:
        return
    root = str(layout.root)
    emit_event(
        event=SAMPLES_MADE,
        resource={
            "prefect.resource.id": f"{DATASET}.{root}",
            "prefect.resource.name": root,
            "bind-data.set": layout.set_name,
        },
        payload={
            "dataset": root,
            "run_id": summary.run_id,
            "made": summary.made,
            "simulations": [simulation.simulation for simulation in summary.simulations if simulation.made],
        },
    )
