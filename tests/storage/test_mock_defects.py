"""What each defect of the mock suite does, and that it does nothing else."""

import h5py
import numpy as np
import pytest
from mock_readback import BOX, attribute, correlation, digests, joined, roles, table_of, write

from storage.mock_suite import Compression, Defect, MockFormat


def test_defects_of_unknown_simulations_are_refused(tmp_path):
    """A defect for a simulation that is not written is an error, not a no-op."""
    with pytest.raises(ValueError, match="SB35_9"):
        write(tmp_path, defects={"SB35_9": [Defect.NOT_HDF5]})


@pytest.mark.parametrize(
    "defect", [Defect.MISSING_FIRST_CHUNK, Defect.MISSING_MIDDLE_CHUNK, Defect.MISSING_CATALOGUE_CHUNK]
)
def test_chunks_cannot_be_missing_where_there_are_none(tmp_path, defect):
    """A defect of chunks asks for a chunked layout."""
    with pytest.raises(ValueError, match="chunk"):
        write(tmp_path, particles_per_side=8, formats=[MockFormat()], defects={"SB35_0": [defect]})


def test_every_defect_says_what_it_is():
    """Each defect has a name for the command line, unlike any other."""
    assert all(defect.value == defect.name.lower().replace("_", "-") for defect in Defect)


# What each defect must show, given a sound suite and the spoilt one: (dmo, hydro, catalogue) of each.
def _gone(role, *numbers):
    def check(sound, spoilt):
        names = [path.name for path in sound[role]]
        kept = [name for number, name in enumerate(names) if number not in numbers]
        assert [path.name for path in spoilt[role]] == (kept if numbers else [])

    return check


def _attribute_is(role, name, expected):
    def check(sound, spoilt):
        for before, after in zip(sound[role], spoilt[role], strict=True):
            assert np.asarray(attribute(after, name)) == pytest.approx(expected(attribute(before, name)))

    return check


def _unreadable(role, number):
    def check(_, spoilt):
        with pytest.raises(OSError):
            h5py.File(spoilt[role][number])

    return check


def _without(role, number, name):
    def check(_, spoilt):
        with h5py.File(spoilt[role][number]) as file:
            assert name not in file

    return check


def _changed_rows(role, name, count, holds):
    """Exactly `count` rows of a dataset (None: all) differ from the sound ones, and `holds` is true of them."""

    def check(sound, spoilt):
        before, after = joined(sound[role], name), joined(spoilt[role], name)
        same = (before == after).reshape(len(before), -1).all(axis=1)
        assert np.count_nonzero(~same) == (len(before) if count is None else count)
        assert holds(after[~same], before[~same])

    return check


def _one_more(kind):
    return lambda counts: np.asarray(counts) + (np.arange(6) == kind)


def _mispaired(sound, spoilt):
    name = "PartType1/Coordinates"
    assert correlation(joined(sound[0], name), joined(sound[1], name)) > 0.99
    assert abs(correlation(joined(spoilt[0], name), joined(spoilt[1], name))) < 0.3
    for before, after in zip(sound[1], spoilt[1], strict=True):
        for attribute_name in ("BoxSize", "Omega0", "HubbleParam", "Redshift"):
            assert attribute(before, attribute_name) == attribute(after, attribute_name)


def _no_dark_matter(_, spoilt):
    assert joined(spoilt[1], "PartType1/Coordinates") is None
    assert attribute(spoilt[1][0], "NumPart_Total")[1] == 0
    assert joined(spoilt[1], "PartType0/Coordinates") is not None


def _no_groups(_, spoilt):
    assert joined(spoilt[2], "Group/GroupPos") is None
    assert {int(attribute(path, "Ngroups_Total")) for path in spoilt[2]} == {0}


def _no_massive_halo(_, spoilt):
    assert joined(spoilt[2], "Group/Group_M_Crit200").max() < 1e3


def _no_stars(sound, spoilt):
    assert joined(sound[1], "PartType4/Masses") is not None
    assert joined(spoilt[1], "PartType4/Masses") is None
    assert joined(spoilt[1], "PartType0/Masses").sum(dtype=float) == pytest.approx(
        sum(joined(sound[1], f"PartType{kind}/Masses").sum(dtype=float) for kind in (0, 4)), rel=1e-6
    )


def _extra_chunk(sound, spoilt):
    assert [path.name for path in spoilt[1]] == [*(path.name for path in sound[1]), "snapshot_090.3.hdf5"]


def _rival(sound, spoilt):
    names = {path.name for path in sound[0]}
    assert {path.name for path in spoilt[0]} == names | {name.replace("snapshot", "snap") for name in names}


def _mixed_box_sizes(_, spoilt):
    assert {float(attribute(path, "BoxSize")) for files in spoilt for path in files} == {50.0}


FILE_CHECKS = {
    Defect.MISSING_DMO_SNAPSHOT: _gone(0),
    Defect.MISSING_HYDRO_SNAPSHOT: _gone(1),
    Defect.MISSING_CATALOGUE: _gone(2),
    Defect.MISSING_FIRST_CHUNK: _gone(1, 0),
    Defect.MISSING_MIDDLE_CHUNK: _gone(1, 1),
    Defect.MISSING_LAST_CHUNK: _gone(1, 2),
    Defect.MISSING_CATALOGUE_CHUNK: _gone(2, 2),
    Defect.EXTRA_CHUNK: _extra_chunk,
    Defect.AMBIGUOUS_SNAPSHOT: _rival,
    Defect.WRONG_TOTAL_COUNT: _attribute_is(1, "NumPart_Total", _one_more(1)),
    Defect.WRONG_FILE_COUNT: lambda sound, spoilt: _attribute_is(0, "NumPart_ThisFile", _one_more(1))(
        [sound[0][:1]], [spoilt[0][:1]]
    ),
    Defect.WRONG_NUMBER_OF_FILES: _attribute_is(1, "NumFilesPerSnapshot", lambda number: number + 1),
    Defect.TRUNCATED_FILE: _unreadable(1, -1),
    Defect.NOT_HDF5: _unreadable(0, 0),
    Defect.MISSING_HEADER: _without(0, 0, "Header"),
    Defect.MISSING_COORDINATES: _without(0, -1, "PartType1/Coordinates"),
    Defect.MISSING_GAS_MASSES: _without(1, 0, "PartType0/Masses"),
    Defect.MISSING_HALO_MASSES: _without(2, 0, "Group/Group_M_Crit200"),
    Defect.NAN_POSITIONS: _changed_rows(0, "PartType1/Coordinates", 1, lambda after, _: np.isnan(after).all()),
    Defect.INFINITE_POSITIONS: _changed_rows(1, "PartType0/Coordinates", 1, lambda after, _: np.isinf(after).all()),
    Defect.POSITIONS_OUT_OF_BOX: _changed_rows(1, "PartType1/Coordinates", 1, lambda after, _: (after > BOX).all()),
    Defect.POSITIONS_IN_MPC: _changed_rows(
        1, "PartType0/Coordinates", None, lambda after, before: np.allclose(after, before / 1e3)
    ),
    Defect.BOX_SIZE_IN_MPC: _mixed_box_sizes,
    Defect.NEGATIVE_MASS: _changed_rows(1, "PartType0/Masses", 1, lambda after, _: (after < 0.0).all()),
    Defect.ZERO_MASS: _changed_rows(1, "PartType0/Masses", 1, lambda after, _: (after == 0.0).all()),
    Defect.WRONG_PARTICLE_MASS: _attribute_is(0, "MassTable", lambda table: 1.5 * table),
    Defect.HYDRO_BOX_SIZE: _attribute_is(1, "BoxSize", lambda _: 1.5 * BOX),
    Defect.CATALOGUE_BOX_SIZE: _attribute_is(2, "BoxSize", lambda _: 1.5 * BOX),
    Defect.HYDRO_OMEGA0: _attribute_is(1, "Omega0", lambda value: value + 0.05),
    Defect.CATALOGUE_OMEGA0: _attribute_is(2, "Omega0", lambda value: value + 0.05),
    Defect.HYDRO_HUBBLE_PARAM: _attribute_is(1, "HubbleParam", lambda value: value + 0.05),
    Defect.CATALOGUE_HUBBLE_PARAM: _attribute_is(2, "HubbleParam", lambda value: value + 0.05),
    Defect.HYDRO_REDSHIFT: _attribute_is(1, "Redshift", lambda _: 0.5),
    Defect.CATALOGUE_REDSHIFT: _attribute_is(2, "Redshift", lambda _: 0.5),
    Defect.MISPAIRED: _mispaired,
    Defect.NO_HYDRO_DARK_MATTER: _no_dark_matter,
    Defect.HALO_OUT_OF_BOX: _changed_rows(2, "Group/GroupPos", 1, lambda after, _: (after > BOX).all()),
    Defect.HALO_POSITION_NAN: _changed_rows(2, "Group/GroupPos", 1, lambda after, _: np.isnan(after).all()),
    Defect.HALO_MASS_NAN: _changed_rows(2, "Group/Group_M_Crit200", 1, lambda after, _: np.isnan(after).all()),
    Defect.EMPTY_CATALOGUE: _no_groups,
    Defect.NO_MASSIVE_HALO: _no_massive_halo,
    Defect.NO_STARS: _no_stars,
}
TABLE_DEFECTS = {
    Defect.NO_PARAMETER_ROW,
    Defect.PARAMETERS_CONTRADICT_HEADER,
    Defect.DUPLICATED_PARAMETER_ROW,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound"))


def test_every_defect_is_checked_below():
    """No defect is left without a check of what it does."""
    assert FILE_CHECKS.keys() | TABLE_DEFECTS == set(Defect)


@pytest.mark.parametrize("defect", list(FILE_CHECKS), ids=str)
def test_file_defects_do_what_they_say(tmp_path, sound, defect):
    """A defect shows in the files that it names, and the parameter table stays as it was."""
    spoilt = write(tmp_path, defects={"SB35_0": [defect]})
    FILE_CHECKS[defect](roles(sound), roles(spoilt))
    assert spoilt.parameter_file.read_text() == sound.parameter_file.read_text()
    assert spoilt.halos == sound.halos
    assert all((base / "SB35_0").is_dir() for base in (spoilt.dmo_base, spoilt.hydro_base, spoilt.catalogue_base))


@pytest.mark.parametrize("defect", [Defect.NEGATIVE_MASS, Defect.HALO_MASS_NAN, Defect.MISSING_CATALOGUE], ids=str)
def test_a_defect_spoils_nothing_else(tmp_path, sound, defect):
    """Of all files, only those of the spoilt role differ."""
    write(tmp_path, defects={"SB35_0": [defect]})
    before, after = digests(sound.dmo_base.parent), digests(tmp_path)
    differing = {path.split("/")[0] for path in before if before[path] != after.get(path)}
    assert differing == {"Hydro" if defect is Defect.NEGATIVE_MASS else "FOF"}


@pytest.mark.parametrize("defect", sorted(TABLE_DEFECTS), ids=str)
def test_table_defects_do_what_they_say(tmp_path, sound, defect):
    """A defect of the table shows in the simulation's rows, and the files stay as they were."""
    spoilt = write(tmp_path, defects={"SB35_0": [defect]})
    (right,), found = ([row for row in table_of(suite)[1] if row["#Name"] == "SB35_0"] for suite in (sound, spoilt))
    if defect is Defect.NO_PARAMETER_ROW:
        assert found == []
    elif defect is Defect.PARAMETERS_CONTRADICT_HEADER:
        (wrong,) = found
        assert {name for name in right if right[name] != wrong[name]} == {"Omega0"}
    else:
        assert found[0] == right
        assert {name for name in right if right[name] != found[1][name]} == {"sigma8"}
    before, after = digests(sound.dmo_base.parent), digests(tmp_path)
    table = spoilt.parameter_file.name
    assert {path for path in before if before[path] != after.get(path)} == {table}


def test_defects_add_up_and_go_again(tmp_path):
    """A simulation can have several defects at once; without them it is sound again, the others untouched."""
    defects = {"SB35_1": [Defect.NAN_POSITIONS, Defect.HALO_MASS_NAN, Defect.NO_PARAMETER_ROW]}
    spoilt = write(tmp_path / "a", simulations=2, particles_per_side=8, defects=defects)
    assert np.isnan(joined(roles(spoilt, "SB35_1")[0], "PartType1/Coordinates")).any()
    assert np.isnan(joined(roles(spoilt, "SB35_1")[2], "Group/Group_M_Crit200")).any()
    assert np.isfinite(joined(roles(spoilt)[0], "PartType1/Coordinates")).all()
    write(tmp_path / "a", simulations=2, particles_per_side=8)
    write(tmp_path / "b", simulations=2, particles_per_side=8)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("compression", list(Compression))
def test_positions_can_be_spoilt_in_any_storage(tmp_path, compression):
    """Edits work on compressed datasets as on plain ones."""
    form = MockFormat(dmo_compression=compression, hydro_compression=compression)
    defects = {"SB35_0": [Defect.NAN_POSITIONS, Defect.POSITIONS_IN_MPC]}
    dmo, hydro, _ = roles(write(tmp_path, particles_per_side=8, formats=[form], defects=defects))
    assert np.isnan(joined(dmo, "PartType1/Coordinates")).any()
    assert joined(hydro, "PartType1/Coordinates").max() < 51.0
