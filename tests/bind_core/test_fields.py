"""Further target channels: how they are declared, read from files, and divided by their weight."""

import h5py
import numpy as np
import pytest

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError, SnapshotError
from bind_core.field_reading import FieldError, FieldPass, field_passes, passes_of, target_stack
from bind_core.fields import ExtraField
from bind_core.inference import read_particles
from bind_core.maps import target_map
from bind_core.particles import component_source, read_slices
from bind_core.plan import BlockPlan
from bind_core.snapshot import Component
from bind_core.windows import Windows

PATHS = {"dmo_base": "d", "hydro_base": "h", "catalogue_base": "c", "output_root": "o"}
BOX = 50_000.0
WINDOWS = Windows(native_size=6.25, context_sizes=(), depth=50.0, resolution=16)
DEFAULT_DIGEST = "112d91023ee6437a9634a7ddbe940ce0b1367e252a36640ba5435ca0934fb857"


def config_of(*fields, **settings):
    return DatasetConfig.from_values(PATHS | {"extra_fields": list(fields)} | settings)


def gas(**settings):
    return ExtraField(**{"name": "field", "particle_type": "gas"} | settings)


def snapshot(path, groups, mass_table=(0.0, 0.5, 0.0, 0.0, 0.0, 0.0)):
    """Write a snapshot by hand: groups by particle type, each a mapping of dataset name to array."""
    counts = np.zeros(6, dtype=np.int32)
    for kind, datasets in groups.items():
        counts[kind] = len(datasets["Coordinates"])
    with h5py.File(path, "w") as file:
        file.create_group("Header").attrs.update(
            {
                "BoxSize": BOX,
                "MassTable": np.array(mass_table),
                "NumFilesPerSnapshot": 1,
                "NumPart_ThisFile": counts,
                "NumPart_Total": counts.astype(np.uint32),
                "Redshift": 0.0,
                "Omega0": 0.3,
                "HubbleParam": 0.67,
            }
        )
        for kind, datasets in groups.items():
            for name, values in datasets.items():
                file[f"PartType{kind}/{name}"] = values
    return path


def numbers(path, field, *, weights=False, config=None):
    """Return what a pass over a field reads of a file, particle by particle, and what is wrong with it."""
    source = component_source(FieldPass(field, weights), [path], config or config_of())
    parts = list(read_slices(source, source.pieces))
    return np.concatenate([part.masses for part in parts]), parts[0].tally


def map_of(path, field, *, weights=False):
    """Return the map of a field around the middle of the box."""
    particles = read_particles(FieldPass(field, weights), [path], config_of())
    return target_map(particles, np.full(3, 25.0), np.eye(3), WINDOWS, "fused")


MIDDLE = np.full((1, 3), BOX / 2)
TWO = np.array([[BOX / 2] * 3, [BOX / 2] * 3])


def test_without_further_fields_a_data_set_keeps_its_digest():
    """The digest of the default configuration is what it was before there were such fields, and so are its channels."""
    assert config_of().digest == DatasetConfig.from_values(PATHS).digest == DEFAULT_DIGEST
    assert "extra_fields" not in config_of().content
    assert config_of().target_channels == ("dark_matter", "gas", "stars")
    assert passes_of(config_of()) == tuple(Component)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"particle_type": "stars"},
        {"field": "Density"},
        {"component": 1},
        {"weight": "Volume"},
        {"statistic": "mean"},
    ],
)
def test_what_changes_a_channel_changes_the_digest(changed):
    """Name, particles, datasets and statistic are in the digest; the transform and the name of the unit are not."""
    field = {"name": "pressure", "particle_type": "gas", "field": "Pressure"}
    digest = config_of(field).digest
    assert digest != DEFAULT_DIGEST
    assert config_of(field | changed).digest != digest
    assert config_of(field | {"unit": "K", "transform": {"kind": "asinh", "scale": 3.0}}).digest == digest


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"name": "gas"}, "choose another name"),
        ({"name": "condition"}, "choose another name"),
        ({"name": "large_scale_0"}, "choose another name"),
        ({"name": "Gas-Pressure"}, "extra_fields.0.name"),
        ({"particle_type": "neutrinos"}, "extra_fields.0.particle_type"),
        ({"statistic": "mean"}, "needs a field"),
        ({"component": 3}, "needs a field"),
        ({"field": "../Header"}, "extra_fields.0.field"),
        ({"colour": "red"}, "known settings are name, particle_type"),
        ({"transform": {"shape": "log"}}, "known settings are kind, scale"),
    ],
)
def test_what_makes_no_channel_is_refused(field, said):
    """Names that are taken or no names, unknown particles and settings, and means of nothing are errors that say so."""
    with pytest.raises(ConfigurationError, match=said):
        config_of({"name": "pressure", "particle_type": "gas"} | field)


def test_two_channels_have_two_names():
    """Two fields of one name are refused."""
    field = {"name": "pressure", "particle_type": "gas", "field": "Pressure"}
    with pytest.raises(ConfigurationError, match="two fields are called pressure"):
        config_of(field, field | {"field": "Density"})


def test_yaml_gives_the_fields_back(tmp_path):
    """Printed as YAML and read again, a configuration has the same further channels, in their order."""
    config = config_of(
        {"name": "b", "particle_type": "stars", "field": "GFM_Metals", "component": 4, "statistic": "mean"},
        {"name": "a", "particle_type": "black_holes", "transform": {"kind": "linear", "scale": 1e8}},
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    again = DatasetConfig.from_yaml(file)
    assert again == config
    assert again.target_channels == ("dark_matter", "gas", "stars", "b", "a")


def test_one_particle_is_its_field_times_its_weight(tmp_path):
    """A particle in the middle puts field times weight on the halo's node, whatever the sign, and nothing elsewhere."""
    path = snapshot(
        tmp_path / "s.hdf5",
        {0: {"Coordinates": MIDDLE, "Masses": [2.0], "Field": [-3.5], "Volume": [4.0]}},
    )
    for field, expected in (
        (gas(field="Field", weight="Volume"), -14.0),
        (gas(field="Field", weight=""), -3.5),
        (gas(field="Field"), -7e10),
        (gas(field="Volume", weight="Volume"), 16.0),
        (gas(), 2e10),
        (gas(weight=""), 1.0),
    ):
        pixels = map_of(path, field)
        assert pixels[8, 8] == pytest.approx(expected, rel=1e-6)
        assert np.count_nonzero(pixels) == 1


def test_a_column_is_taken_of_a_dataset_of_several(tmp_path):
    """With component, the field is that column of the dataset."""
    metals = np.arange(10.0).reshape(1, 10)
    path = snapshot(tmp_path / "s.hdf5", {4: {"Coordinates": MIDDLE, "Masses": [1.0], "GFM_Metals": metals}})
    for column in (0, 4, 9):
        field = ExtraField(name="z", particle_type="stars", field="GFM_Metals", component=column, weight="")
        values, tally = numbers(path, field)
        assert values.tolist() == [column]
        assert tally.bad_values == 0


def test_masses_come_from_the_header_where_there_are_none(tmp_path):
    """Without a dataset Masses, the weight is the header's mass; without that, an error names both."""
    groups = {1: {"Coordinates": TWO, "Potential": [1.0, 2.0]}}
    field = ExtraField(name="potential", particle_type="dark_matter", field="Potential")
    values, _ = numbers(snapshot(tmp_path / "s.hdf5", groups), field)
    np.testing.assert_allclose(values, [0.5e10, 1e10])
    path = snapshot(tmp_path / "none.hdf5", groups, mass_table=(0.0,) * 6)
    with pytest.raises(SnapshotError, match=r"MassTable\[1\]"):
        numbers(path, field)
    assert numbers(path, field.model_copy(update={"weight": ""}))[0].tolist() == [1.0, 2.0]


def test_wind_is_left_out_of_stellar_fields_by_the_policy(tmp_path):
    """With stars: no_wind, a field of the stars has no wind-phase gas either."""
    path = snapshot(
        tmp_path / "s.hdf5",
        {4: {"Coordinates": TWO, "Masses": [1.0, 1.0], "Age": [3.0, 4.0], "GFM_StellarFormationTime": [0.5, -0.5]}},
    )
    field = ExtraField(name="age", particle_type="stars", field="Age", weight="")
    assert numbers(path, field)[0].tolist() == [3.0, 4.0]
    assert numbers(path, field, config=config_of(stars="no_wind"))[0].tolist() == [3.0]


def test_particles_that_are_not_there_give_empty_maps(tmp_path):
    """A simulation without black holes has a map of zeros, and needs no dataset of theirs."""
    path = snapshot(tmp_path / "s.hdf5", {0: {"Coordinates": MIDDLE, "Masses": [1.0]}})
    field = ExtraField(name="mdot", particle_type="black_holes", field="BH_Mdot", statistic="mean")
    assert not map_of(path, field).any()
    assert not map_of(path, field, weights=True).any()


@pytest.mark.parametrize(
    ("field", "where", "expected"),
    [
        (gas(field="Pressure"), "PartType0/Pressure", "a dataset of 2 particles"),
        (gas(field="Masses", weight="Volume"), "PartType0/Volume", "a dataset of 2 particles"),
        (gas(field="Metals"), "PartType0/Metals", r"the shape \(2,\)"),
        (gas(field="Metals", component=3), "PartType0/Metals", r"the shape \(2, 4\) or more columns"),
        (gas(field="Density", component=0), "PartType0/Density", r"the shape \(2, 1\) or more columns"),
        (gas(field="Short"), "PartType0/Short", r"the shape \(2,\)"),
        (gas(field="Names"), "PartType0/Names", "numbers"),
    ],
)
def test_unfit_datasets_are_named(tmp_path, field, where, expected):
    """A dataset that is missing, has another shape or holds no numbers is an error that names file and dataset."""
    path = snapshot(
        tmp_path / "s.hdf5",
        {
            0: {
                "Coordinates": TWO,
                "Masses": [1.0, 1.0],
                "Density": [1.0, 1.0],
                "Metals": np.zeros((2, 3)),
                "Short": [1.0],
                "Names": np.array([b"a", b"b"]),
            }
        },
    )
    with pytest.raises(FieldError, match=f"{where}: expected {expected}") as caught:
        component_source(FieldPass(field), [path], config_of())
    assert str(path) in str(caught.value)
    assert "extra_fields" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "weights", "bad"),
    [([np.nan, 1.0], [1.0, 1.0], "Field"), ([1.0, 1.0], [np.inf, 1.0], "Weight"), ([1e30, 1.0], [1e30, 1.0], "Weight")],
)
def test_numbers_that_cannot_be_used_are_counted(tmp_path, values, weights, bad):
    """NaN, infinity and what overflows single precision are counted, with the dataset that they come from."""
    path = snapshot(tmp_path / "s.hdf5", {0: {"Coordinates": TWO, "Field": values, "Weight": weights}})
    field = gas(field="Field", weight="Weight")
    _, tally = numbers(path, field)
    assert (tally.bad_values, tally.bad_values_in) == (1, f"{path}, PartType0/{bad}")
    with pytest.raises(SnapshotError, match=f"PartType0/{bad}: expected finite numbers"):
        map_of(path, field)


def test_weights_of_a_mean_are_not_negative(tmp_path):
    """A weight below 0 is wrong in a mean, and may be in a sum."""
    path = snapshot(tmp_path / "s.hdf5", {0: {"Coordinates": TWO, "Field": [1.0, 1.0], "Weight": [-1.0, 1.0]}})
    field = gas(field="Field", weight="Weight", statistic="mean")
    assert numbers(path, field)[1].bad_values == 0
    assert numbers(path, field, weights=True)[1].bad_values == 1


def test_means_of_one_weight_share_its_pass():
    """Each field takes a pass, and each weight that means are over one more, however many there are."""
    first, second = gas(name="a", field="A", statistic="mean"), gas(name="b", field="B", statistic="mean")
    stars = ExtraField(name="c", particle_type="stars", field="C", statistic="mean")
    total = gas(name="d", field="D", weight="Volume")
    passes = field_passes([first, total, second, stars])
    assert passes == (*map(FieldPass, (first, total, second, stars)), FieldPass(first, True), FieldPass(stars, True))


def test_means_are_divided_by_their_own_weight():
    """The target has a channel per field: sums as they are, means over their weight, 0 where there is none."""
    fields = [
        gas(name="a", field="A", statistic="mean"),
        gas(name="b", field="B"),
        gas(name="c", field="C", weight="Volume", statistic="mean"),
    ]
    three = np.ones((3, 1, 2), dtype=np.float32)
    sums = np.array([[[6.0, 0.0]], [[5.0, 1.0]], [[-8.0, 2.0]]], dtype=np.float32)
    weights = np.array([[[3.0, 0.0]], [[2.0, 4.0]]], dtype=np.float32)
    stack = target_stack(np.concatenate([three, sums, weights]), fields)
    assert stack.dtype == np.float32
    assert stack[3:].tolist() == [[[2.0, 0.0]], [[5.0, 1.0]], [[-4.0, 0.5]]]
    assert np.array_equal(stack[:3], three)
    assert sums[0, 0, 0] == 6.0


def test_plans_carry_the_fields():
    """A block's plan, as the MPI program reads it, has the further channels of its configuration."""
    plan = BlockPlan(config_of({"name": "metals", "particle_type": "gas", "field": "M", "component": 2}), "run", 0, ())
    assert BlockPlan.from_json(plan.to_json()) == plan
