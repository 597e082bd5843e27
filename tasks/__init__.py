"""One retryable step each, thin. `launchers` and `projection_job` know no Prefect."""
