"""The configuration: what it accepts, how it explains what it refuses, and what its digest depends on."""

import importlib
import inspect
import math
import pickle
import pkgutil

import pytest
import yaml

import bind_core
import storage
import tasks
from bind_core.config import DatasetConfig, Stratum
from bind_core.errors import BindDataError, ConfigurationError
from bind_core.findings import Finding, FindingCode

PATHS = {"dmo_base": "d", "hydro_base": "h", "catalogue_base": "c", "output_root": "o"}


def config(**settings):
    return DatasetConfig.from_values(PATHS | settings)


def refusal(**settings):
    with pytest.raises(ConfigurationError) as caught:
        config(**settings)
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strata": [{"min_mass": 1e13}, {"min_mass": 1e12, "max_mass": 1e13, "rotations": 1}]},
        {"split": "shuffle", "total_simulations": 1000, "rotations": "euler", "stars": "no_wind"},
        {"context_sizes": [], "set_name": "1P", "snapshot_number": 33, "parameter_file": "tables/päräms.txt"},
        {"strata": [{"min_mass": 1e13, "max_mass": math.inf}]},
    ],
)
def test_yaml_round_trip(tmp_path, settings):
    """A configuration printed as YAML and read back is equal to the first."""
    path = tmp_path / "config.yaml"
    path.write_text(config(**settings).to_yaml(), encoding="utf-8")
    assert DatasetConfig.from_yaml(path) == config(**settings)


def test_unknown_settings_are_named_with_the_known_ones():
    """A misspelt setting is refused by name, with the names that there are."""
    message = refusal(resolutoin=64)
    assert "resolutoin" in message
    assert "resolution," in message
    message = refusal(strata=[{"minimum": 1}])
    assert "minimum" in message
    assert "known settings are min_mass, max_mass, rotations" in message


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"resolution": "many"}, ["resolution", "integer", "'many'"]),
        ({"resolution": 127}, ["even"]),
        ({"resolution": 12.5}, ["resolution", "12.5"]),
        ({"window_size": -1}, ["window_size", "-1"]),
        ({"window_size": math.nan}, ["window_size"]),
        ({"context_sizes": [10.0]}, ["multiple"]),
        ({"test_fraction": 1.5}, ["test_fraction", "1.5"]),
        ({"stars": "some"}, ["stars", "no_wind"]),
        ({"set_name": "../SB35"}, ["set_name"]),
        ({"strata": []}, ["strata"]),
        ({"strata": [{"min_mass": 1e13, "max_mass": 1e12}]}, ["max_mass", "1e+13"]),
        ({"split": "shuffle"}, ["total_simulations"]),
        ({"slurm_job": {"time_limit": "2h"}}, ["slurm_job.time_limit", "'2h'"]),
        ({"slurm_job": {"partition": "a; rm -r b"}}, ["slurm_job.partition"]),
        ({"slurm_job": {"options": ["-w node1"]}}, ["slurm_job.options", "'-w node1'", "--name=value"]),
        ({"slurm_job": {"options": ["--comment=a\nrm -r b"]}}, ["slurm_job.options", "one line"]),
        ({"slurm_job": {"options": ["--wrap=hostname"]}}, ["--wrap cannot be given here"]),
        ({"slurm_job": {"qos": "long"}}, ["slurm_job.qos", "known settings are partition"]),
    ],
)
def test_values_that_cannot_be_used_are_explained(settings, parts):
    """A refusal names the setting, what is allowed and what was found."""
    message = refusal(**settings)
    assert all(part in message for part in parts), message


def test_all_problems_are_reported_at_once():
    """Two wrong settings give one error with two lines."""
    message = refusal(resolution=1, depth=0)
    assert "resolution" in message
    assert "depth" in message


def test_missing_paths_are_named():
    """The folders have no default: leaving one out is explained by its name."""
    with pytest.raises(ConfigurationError, match="hydro_base"):
        DatasetConfig.from_values({key: value for key, value in PATHS.items() if key != "hydro_base"})


@pytest.mark.parametrize("order", [1, -1])
def test_overlapping_strata_are_refused(order):
    """A halo belongs to one stratum: ranges that overlap are refused in either order; ranges that touch are not."""
    touching = [{"min_mass": 1e12, "max_mass": 1e13}, {"min_mass": 1e13}][::order]
    assert len(config(strata=touching).strata) == 2
    message = refusal(strata=[{"min_mass": 1e12, "max_mass": 1.1e13}, {"min_mass": 1e13}][::order])
    assert "(1e+12, 1.1e+13]" in message
    assert "overlap" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a list", "list"),
        ("resolution: [1", "not valid YAML"),
        ("resolution: 64\nresolution: 128", "resolution is there twice"),
    ],
)
def test_files_that_are_no_settings_are_explained(tmp_path, text, part):
    """A file that is no mapping, no YAML, or says a thing twice, is an error that names the file."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        DatasetConfig.from_yaml(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_missing_file_is_explained(tmp_path):
    """A configuration file that is not there is an error that names it."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        DatasetConfig.from_yaml(tmp_path / "nowhere.yaml")


def test_snapshot_numbers_with_leading_zeros_are_decimal(tmp_path):
    """033 and 090 are snapshots 33 and 90, though YAML would read the first as octal 27."""
    path = tmp_path / "config.yaml"
    for text, number in (("033", 33), ("090", 90), ("0", 0), ("0x10", 16)):
        path.write_text(yaml.safe_dump(PATHS) + f"snapshot_number: {text}\nstrata: [{{min_mass: 1e13}}]\n")
        assert DatasetConfig.from_yaml(path).snapshot_number == number


CONTENT = {
    "extra_fields": [{"name": "pressure", "particle_type": "gas", "field": "Pressure"}],
    "set_name": "CV",
    "snapshot_number": 33,
    "window_size": 3.125,
    "context_sizes": [12.5],
    "depth": 25.0,
    "resolution": 64,
    "stars": "no_wind",
    "black_holes": "with_stars",
    "backend": "reference",
    "rotations": "euler",
    "root_seed": 1,
    "test_fraction": 0.2,
}
ELSEWHERE = {
    **dict.fromkeys((*PATHS, "parameter_file"), "elsewhere"),
    "runner": "dask",
    "slurm_job": {"partition": "cmem", "options": ["--constraint=icelake"]},
    "dask": {"workers": 8},
    "ranks": 7,
    "simulations_per_block": 1,
    "concurrent_blocks": 2,
    "read_ahead_memory": 2.0,
    "retries": 0,
    "retry_delay": 1.0,
    "strata": [{"min_mass": 1e12, "rotations": 1}],
    "pairing_threshold": 0.9,
    "transforms": {"gas": {"kind": "asinh", "scale": 1e6}},
    "total_simulations": 10,
}


@pytest.mark.parametrize(
    ("dask", "said"),
    [
        ({"workers": 0}, ("dask.workers", "found 0")),
        ({"address": "node7"}, ("dask.address", "found 'node7'")),
        ({"slurm": "often"}, ("dask.slurm", "found 'often'")),
        ({"interface": "ib0 --help"}, ("dask.interface", "found 'ib0 --help'")),
        ({"nodes": 2}, ("dask.nodes", "known settings are workers, address, slurm, interface")),
        ({"address": "tcp://node7:8786", "slurm": True}, ("dask:", "exclude each other")),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(dask, said):
    """Each wrong setting of the Dask cluster is named by its path, with what was found or what is known there."""
    with pytest.raises(ConfigurationError) as caught:
        config(dask=dask)
    assert all(words in str(caught.value) for words in said)
    with pytest.raises(ConfigurationError, match="one node"):
        config(dask={"slurm": True}, slurm_job={"nodes": 2})


@pytest.mark.parametrize("name", CONTENT)
def test_digest_changes_with_what_is_in_a_sample(name):
    """Every setting that changes a sample or its split changes the digest."""
    assert config(**{name: CONTENT[name]}).digest != config().digest


@pytest.mark.parametrize("name", ELSEWHERE)
def test_digest_does_not_change_with_where_and_how(name):
    """Paths, workers and strata leave the digest as it is, so that a data set can move and grow."""
    assert config(**{name: ELSEWHERE[name]}).digest == config().digest


def test_every_setting_is_content_or_not():
    """No setting is forgotten: a new one must be declared to be content or not."""
    undecided = set(DatasetConfig.model_fields) - set(CONTENT) - set(ELSEWHERE)
    assert undecided == {"split", "launcher"}
    assert config(split="shuffle", total_simulations=10).digest != config().digest
    assert config(split="shuffle", total_simulations=10).digest != config(split="shuffle", total_simulations=11).digest


def test_order_of_context_sizes_does_not_matter():
    """Context sizes are sorted, so that the same maps have the same digest."""
    assert config(context_sizes=[50, 12.5, 25]) == config(context_sizes=[12.5, 25, 50])


def test_a_stratum_is_named_as_an_interval():
    """A stratum's name is its mass range, open below and closed above."""
    assert Stratum(min_mass=1e12, max_mass=1e13).name == "(1e+12, 1e+13]"
    assert Stratum().name == "(1e+13, inf]"


def error_types():
    for package in (bind_core, storage, tasks):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    found, waiting = [], [BindDataError]
    while waiting:
        found.append(waiting.pop())
        waiting.extend(found[-1].__subclasses__())
    return sorted((kind for kind in found if kind.__module__.split(".")[0] != "flows"), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", error_types(), ids=lambda kind: kind.__name__)
def test_errors_survive_the_way_between_ranks(kind):
    """An error pickled on one rank and raised on another is of the same type with the same message and facts."""
    needed = [
        parameter
        for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    finding = Finding(FindingCode.ABSENT, "SB35_0", "here", "this", "that", "Go.")
    arguments = [[finding] if "Sequence" in str(parameter.annotation) else "text" for parameter in needed] or ["text"]
    error = kind(*arguments)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_empty_field_of_a_form_is_no_path():
    """An empty text is refused for a folder, since it would be the current one, and means no parameter table."""
    assert "output_root: no folder is given" in refusal(output_root="")
    assert "dmo_base: no folder is given" in refusal(dmo_base="")
    assert config(parameter_file="").parameter_file is None


def test_every_setting_explains_itself():
    """Each setting has a help text, is called in a form as in a file, and an enumeration's names each of its values."""
    schema = DatasetConfig.model_json_schema()
    for model in (schema, *(schema["$defs"][name] for name in ("Stratum",))):
        for name, field in model["properties"].items():
            assert field["description"].endswith((".", "…")), name
            assert field["title"] == name
            values = schema["$defs"].get(field.get("$ref", "").split("/")[-1], {}).get("enum", [])
            assert len(values) < 2 or all(value in field["description"] for value in values), name
