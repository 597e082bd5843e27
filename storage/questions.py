"""Ready questions to a data set's manifest.

Their SQL is complete: what a user gives is bound to parameters, and never becomes part of it.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from bind_core.errors import BindDataError
from storage.layout import DatasetLayout
from storage.queries import Value, query
from storage.versions import DatasetVersion


class QuestionError(BindDataError):
    """A question that there is not, or one with parameters that it does not take."""


@dataclass(frozen=True)
class Parameter:
    """What a question leaves open."""

    name: str
    meaning: str
    default: int | None = None
    """A whole number of 1 or more is asked for, and this is it unless another is given; a text is, where None."""

    def read(self, text: str) -> Value:
        """Return the value that a user means.

        Raises
        ------
        QuestionError
            If it is not of the parameter's kind.
        """
        if self.default is None:
            return text
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**63):
            raise QuestionError(
                f"--param {self.name}={text}: expected a whole number of 1 or more, e.g. {self.name}={self.default}."
            )
        return int(text)


@dataclass(frozen=True)
class Question:
    """A question with its SQL."""

    name: str
    answers: str
    """What the answer says, in one sentence."""
    sql: str
    """One statement, with ``$name`` for each parameter."""
    parameters: tuple[Parameter, ...] = ()

    def values(self, given: Mapping[str, str]) -> dict[str, Value]:
        """Return the value of every parameter.

        Raises
        ------
        QuestionError
            If one is missing, unknown, or not of its kind.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        unknown = sorted(given.keys() - known.keys())
        missing = [name for name, parameter in known.items() if parameter.default is None and name not in given]
        if unknown or missing:
            takes = ", ".join(f"{parameter.name} ({parameter.meaning})" for parameter in self.parameters)
            problem = f"has no parameter {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            example = f" Give it as --param {missing[0]}=VALUE." if missing else ""
            raise QuestionError(f"The question {self.name} {problem}; it takes {takes or 'none'}.{example}")
        defaults = {name: parameter.default for name, parameter in known.items() if parameter.default is not None}
        return defaults | {name: known[name].read(text) for name, text in given.items()}


def find_question(name: str) -> Question:
    """Return the ready question of a name.

    Raises
    ------
    QuestionError
        If there is none.
    """
    for question in QUESTIONS:
        if question.name == name:
            return question
    names = ", ".join(question.name for question in QUESTIONS)
    raise QuestionError(f"There is no ready question called {name!r}; there are {names}.")


def ask(
    layout: DatasetLayout, name: str, given: Mapping[str, str] | None = None, version: DatasetVersion | None = None
) -> pl.DataFrame:
    """Answer a ready question.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    name : str
        Of the question.
    given : mapping, optional
        Its parameters, as text.
    version : DatasetVersion, optional
        The version to ask; the latest by default.

    Raises
    ------
    QuestionError
        If there is no such question, or it does not take these parameters.
    QueryError
        If the data set has no manifest, or the version lacks what the question is about.
    ManifestError
        If a table cannot be read.
    ConfigurationError
        If the recorded configuration cannot be read.
    """
    question = find_question(name)
    return query(layout, question.sql, question.values(given or {}), version)


def _sql(text: str) -> str:
    return textwrap.dedent(text).strip()


_RUN = Parameter("run", "id of a run")
_SIMULATION = Parameter("simulation", "name of a simulation")

QUESTIONS: tuple[Question, ...] = (
    Question(
        "contents",
        "What is in the data set: samples, simulations, haloes, masses, configuration, code and runs, by split.",
        _sql("""
            SELECT split, count(*) AS samples, count(DISTINCT simulation) AS simulations,
                count(DISTINCT (simulation, halo)) AS haloes, min(halo_mass) AS lightest, max(halo_mass) AS heaviest,
                sum(bytes) AS bytes, min(created_at) AS first_made, max(created_at) AS last_made,
                list(DISTINCT config_digest ORDER BY config_digest) AS config_digests,
                list(DISTINCT code_version ORDER BY code_version) AS code_versions,
                list(DISTINCT run_id ORDER BY run_id) AS runs
            FROM samples GROUP BY split ORDER BY split
        """),
    ),
    Question(
        "strata",
        "Samples, simulations and haloes in each split and stratum, with the range of masses in Msun/h.",
        _sql("""
            SELECT split, stratum, count(*) AS samples, count(DISTINCT simulation) AS simulations,
                count(DISTINCT (simulation, halo)) AS haloes, min(halo_mass) AS lightest, max(halo_mass) AS heaviest
            FROM samples GROUP BY split, stratum ORDER BY split, lightest
        """),
    ),
    Question(
        "statuses",
        "Where each simulation stood by its newest attempt, and how many samples of it there are.",
        _sql("""
            WITH made AS (
                SELECT simulation, any_value(split) AS split, count(*) AS samples FROM samples GROUP BY simulation
            )
            SELECT simulation, status, coalesce(current_simulations.split, made.split) AS split,
                coalesce(samples, 0) AS samples, recorded_at, coalesce(message, 'no attempt was recorded') AS message
            FROM current_simulations FULL JOIN made USING (simulation) ORDER BY length(simulation), simulation
        """),
    ),
    Question(
        "no-work",
        "Simulations that are sound and hold no halo of any stratum.",
        _sql("""
            SELECT simulation, split, n_halos, recorded_at, run_id
            FROM current_simulations WHERE status = 'no_work' ORDER BY length(simulation), simulation
        """),
    ),
    Question(
        "blocked",
        "Simulations that are blocked or failed, with the first error that was found, and how many there are.",
        _sql("""
            WITH bad AS (
                SELECT *, list_filter(CAST(findings AS JSON[]), lambda f: f->>'severity' = 'error') AS errors
                FROM current_simulations WHERE status IN ('blocked', 'failed')
            )
            SELECT simulation, status, len(errors) AS errors, errors[1]->>'code' AS code, errors[1]->>'where' AS place,
                errors[1]->>'expected' AS expected, errors[1]->>'found' AS found, errors[1]->>'advice' AS advice,
                message, recorded_at, run_id
            FROM bad ORDER BY length(simulation), simulation
        """),
    ),
    Question(
        "attempts",
        "All attempts at one simulation, oldest first.",
        _sql("""
            SELECT recorded_at, run_id, status, n_halos, n_planned, n_committed, code_version, message
            FROM simulations WHERE simulation = $simulation ORDER BY recorded_at, run_id
        """),
        (_SIMULATION,),
    ),
    Question(
        "samples",
        "The samples of one simulation: orientation, mass of the halo in Msun/h, file and run.",
        _sql("""
            SELECT sample_id, split, stratum, halo, rotation, halo_mass, path, bytes, run_id, created_at
            FROM samples WHERE simulation = $simulation ORDER BY halo, rotation
        """),
        (_SIMULATION,),
    ),
    Question(
        "heaviest",
        "The heaviest haloes, with their mass in Msun/h, centre in Mpc/h and number of samples.",
        _sql("""
            SELECT simulation, halo, split, stratum, max(halo_mass) AS halo_mass, any_value(halo_center_x) AS x,
                any_value(halo_center_y) AS y, any_value(halo_center_z) AS z, count(*) AS samples
            FROM samples GROUP BY simulation, halo, split, stratum
            ORDER BY halo_mass DESC, length(simulation), simulation, halo LIMIT $count
        """),
        (Parameter("count", "how many", default=10),),
    ),
    Question(
        "fewer-rotations",
        "Haloes with some, but not all of the orientations that their stratum asks for by the configuration of now.",
        _sql("""
            SELECT simulation, halo, split, stratum, count(DISTINCT rotation) AS there,
                any_value(strata.rotations) AS asked_for
            FROM samples JOIN strata USING (stratum) GROUP BY simulation, halo, split, stratum
            HAVING there < asked_for ORDER BY length(simulation), simulation, halo
        """),
    ),
    Question(
        "runs",
        "All runs, oldest first: what became of the simulations attempted, and the samples that are still of the run.",
        _sql("""
            WITH tried AS (
                SELECT run_id, count(*) AS attempts, count(*) FILTER (status = 'complete') AS complete,
                    count(*) FILTER (status = 'no_work') AS no_work, count(*) FILTER (status = 'blocked') AS blocked,
                    count(*) FILTER (status IN ('failed', 'partial')) AS unfinished,
                    min(recorded_at) AS first_recorded, max(recorded_at) AS last_recorded
                FROM simulations GROUP BY run_id
            ), made AS (
                SELECT run_id, count(*) AS samples, sum(bytes) AS bytes FROM samples GROUP BY run_id
            )
            SELECT run_id, attempts, complete, no_work, blocked, unfinished, coalesce(samples, 0) AS samples,
                coalesce(bytes, 0) AS bytes, first_recorded, last_recorded
            FROM tried FULL JOIN made USING (run_id) ORDER BY first_recorded, run_id
        """),
    ),
    Question(
        "made-by",
        "Every sample that one run made, unless another has made it anew.",
        _sql("""
            SELECT sample_id, simulation, split, halo_mass, path, bytes, sha256, created_at
            FROM samples WHERE run_id = $run ORDER BY length(simulation), simulation, halo, rotation
        """),
        (_RUN,),
    ),
    Question(
        "mass-budget",
        "Mass in the targets of each simulation in Msun/h, its fractions, and its ratio to that in the conditions.",
        _sql("""
            WITH sums AS (
                SELECT simulation, split, count(*) AS samples, sum(mass_condition) AS condition,
                    sum(mass_target_dark_matter) AS dark, sum(mass_target_gas) AS gas, sum(mass_target_stars) AS stars,
                    dark + gas + stars AS target
                FROM samples GROUP BY simulation, split
            )
            SELECT simulation, split, samples, target, dark / nullif(target, 0) AS dark_fraction,
                gas / nullif(target, 0) AS gas_fraction, stars / nullif(target, 0) AS star_fraction,
                target / nullif(condition, 0) AS target_to_condition
            FROM sums ORDER BY length(simulation), simulation
        """),
    ),
    Question(
        "disk-use",
        "Bytes that the samples of each simulation take.",
        _sql("""
            SELECT split, simulation, count(*) AS samples, sum(bytes) AS bytes, min(bytes) AS smallest,
                max(bytes) AS largest
            FROM samples GROUP BY split, simulation ORDER BY split, length(simulation), simulation
        """),
    ),
)
"""All ready questions."""
