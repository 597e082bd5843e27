"""A batch run under MPI, as its first rank sees it.

Knows no Prefect. Imported by the first rank only: the others need neither the manifest nor its libraries.
"""

import os
from contextlib import nullcontext
from importlib import import_module
from threading import Thread

from mpi4py import MPI
from rich.console import Console

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.plan import BlockPlan, Share
from bind_core.suite import discover_simulations, find_simulation
from storage.blocks import block_outcomes, plan_block, screen_block
from storage.faults import Step, passing
from storage.layout import DatasetLayout
from storage.lease import writing
from storage.manifest import Manifest, open_dataset
from storage.preparation import prepare_root
from storage.recording import commit_outcomes, new_run_id
from storage.replacement import staging_kept
from storage.results import SimulationResult
from storage.summary import RunSummary, summarise
from storage.summary_table import print_summary
from storage.workload import Reason, Workload, has_any_file, plan_workload
from tasks.preflight import check_resources, estimates
from tasks.progress import RunProgress, phases_of
from tasks.projection_job import project_block


class BatchRun:
    """A run on all ranks of a communicator, as its first rank sees it: that one plans and records.

    Parameters
    ----------
    comm : MPI.Intracomm
        All ranks; those but the first must be in `tasks.projection_job.follow`.
    config : DatasetConfig
        What to make.
    names : list of str or None
        Simulations asked for; all that exist if None.
    skip_missing : bool
        Leave those out that do not exist.
    refresh : bool
        Make stale samples anew.
    share : Share or None
        Which part of these simulations is to be made, where other runs make the others at the same time.
    console : rich.console.Console
        Where progress and summary are shown.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        config: DatasetConfig,
        names: list[str] | None,
        skip_missing: bool,
        refresh: bool,
        share: Share | None,
        console: Console,
    ) -> None:
        self.comm = comm
        self.config = config
        self.asked = names
        self.skip_missing = skip_missing
        self.refresh = refresh
        self.share = share
        self.console = console
        self.layout = DatasetLayout(self.config.output_root, self.config.set_name)
        self.run_id = new_run_id()

    def execute(self, *, dry_run: bool) -> bool:
        """Plan, hand out and record all blocks, or print the plan; return whether all is, or would be, well.

        Raises
        ------
        BindDataError
            If the run cannot begin or go on; the message says why.
        """
        manifest = open_dataset(self.layout, self.config, refresh=self.refresh)
        names, skipped = self._names()
        before = manifest.state
        workload = plan_workload(self.config, manifest, names, refresh=self.refresh)
        if dry_run:
            return self._print_plan(manifest, workload, skipped)
        made: dict[str, int] = {}
        if workload.outstanding or manifest.is_interrupted:
            passing(Step.AFTER_PLANNING)
            check_resources(self.config, manifest, workload, self._warn, batch_ranks=self._ranks_per_node)
            prepare_root(self.layout)
            with writing(self.layout, "process_simulations.py", self.run_id, names, tell=self.console.print) as lease:
                manifest = open_dataset(self.layout, self.config, lease, refresh=self.refresh)
                if manifest.finish_interrupted() or manifest.state != before:  # another run has ended meanwhile
                    workload = plan_workload(self.config, manifest, names, refresh=self.refresh)
                if workload.outstanding:
                    made = self._make(workload, manifest)
        return self._summary(manifest, plan_workload(self.config, manifest, names), made, skipped)

    def _names(self) -> tuple[list[str] | None, tuple[str, ...]]:
        names = self.asked
        if self.share is not None:
            names = self.share.of_simulations(
                discover_simulations(self.config) if names is None else names, self.config
            )
        if names is None or not self.skip_missing:
            return names, ()
        present = [name for name in names if has_any_file(find_simulation(name, self.config))]
        if not present and self.share is None:
            bases = ", ".join(str(base) for base in (self.config.dmo_base, self.config.hydro_base))
            raise ConfigurationError(
                f"None of the simulations {names[0]} to {names[-1]} exists under {bases}. Correct the base folders, "
                "--set or the range."
            )
        return present, tuple(name for name in names if name not in set(present))

    @property
    def _ranks_per_node(self) -> int:
        """As many as the job has, and not more than a node has cores."""
        return min(self.comm.size, os.cpu_count() or 1)

    def _warn(self, message: str) -> None:
        self.console.print(message, style="yellow", soft_wrap=True, highlight=False, markup=False)

    def _make(self, workload: Workload, manifest: Manifest) -> dict[str, int]:
        table = read_parameter_table(find_parameter_file(self.config))
        made: dict[str, int] = {}
        # What checks the rows takes long to import, and is needed only when the first block is done.
        Thread(target=import_module, args=("storage.schemas",)).start()
        staging = staging_kept(self.layout, self.run_id) if self.refresh else nullcontext()
        with RunProgress(workload.samples, self.console, phases_of(self.config)) as progress, staging:
            for number, block in enumerate(workload.blocks(self.config.simulations_per_block)):
                screened = screen_block(block, self.config, table)
                plan = plan_block(screened, self.config, self.run_id, number)
                results = self._project(plan, progress)
                outcomes = block_outcomes(self.layout, screened, plan, results)
                commit_outcomes(manifest, self.config, outcomes, self.run_id)
                for outcome in outcomes:
                    made[outcome.work.files.name] = len(outcome.samples)
                    progress.finish_simulation(outcome.work.files.name, len(outcome.work.to_make))
        return made

    def _project(self, plan: BlockPlan | None, progress: RunProgress) -> dict[str, SimulationResult]:
        if plan is None:
            return {}
        self.comm.bcast(plan)
        # What it raises is no simulation's fault: the run ends, and no failures are recorded.
        return {result.simulation: result for result in project_block(self.comm, plan, progress.report)}

    def _print_plan(self, manifest: Manifest, workload: Workload, skipped: tuple[str, ...]) -> bool:
        self.console.print(f"Plan for {self.layout.root} (nothing is done):", soft_wrap=True, highlight=False)
        for work in workload.simulations:
            reason = work.reason.value
            if work.reason is Reason.ABSENT:
                reason += ", which fails the run (--skip_missing leaves it out)"
            self.console.print(
                f"  {work.files.name}: {reason}; {len(work.predicted):,} samples planned, "
                f"{len(work.to_make):,} to be made" + (f" ({work.explanation})" if work.stale else ""),
                soft_wrap=True,
                highlight=False,
            )
        for name in skipped:
            self.console.print(f"  {name}: does not exist, skipped", highlight=False)
        blocks = workload.blocks(self.config.simulations_per_block)
        self.console.print(
            f"{workload.samples:,} samples to be made of {len(workload.outstanding):,} simulations in "
            f"{len(blocks):,} blocks.",
            highlight=False,
        )
        for line in estimates(self.config, manifest, workload, batch_ranks=self._ranks_per_node):
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        if workload.verdict:
            self.console.print(workload.verdict, soft_wrap=True, highlight=False, markup=False)
        return not workload.verdict

    def _summary(self, manifest: Manifest, workload: Workload, made: dict[str, int], skipped: tuple[str, ...]) -> bool:
        summary: RunSummary = summarise(manifest, workload, self.run_id, made, skipped)
        print_summary(summary, self.console)
        return summary.ok
