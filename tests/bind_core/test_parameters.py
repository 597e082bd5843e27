"""The parameter table: joined by name, whatever its form."""

import numpy as np
import pytest

from bind_core.config import DatasetConfig
from bind_core.errors import ParameterTableError
from bind_core.parameters import find_parameter_file, read_parameter_table

PUBLISHED = """#Name Omega0 sigma8 seed
 SB35_2 0.38 0.7 314159
   SB35_10 0.22 0.9 271828
 SB35_0 0.3 0.8 181170
"""


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.txt"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return read_parameter_table(path)


def assert_published(found):
    assert found.names == ("Omega0", "sigma8")
    assert {name: row.tolist() for name, row in found.rows.items()} == {
        "SB35_2": [0.38, 0.7],
        "SB35_10": [0.22, 0.9],
        "SB35_0": [0.3, 0.8],
    }
    assert found.unusable == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("#Name", "# Name"),
        lambda text: text.replace("#Name", "Name"),
        lambda text: "\n\n" + text.replace("\n", "\n\n"),
        lambda text: "# The table of set SB35: name and values\n" + text,
        lambda text: text + "# the end\n",
        lambda text: text.replace(" seed", " Seed"),
        lambda text: text.rstrip("\n"),
        lambda text: text + " SB35_0 0.3 0.8 181170\n",
        lambda text: "\n".join(",".join(line.split()) for line in text.splitlines()),
        lambda text: "\n".join(" , ".join(line.split()) for line in text.splitlines()).replace("#Name", "simulation"),
        lambda text: "\n".join("\t".join(line.split()) for line in text.splitlines()),
        lambda text: "\n".join(",".join([*line.split()[1:], line.split()[0]]) for line in text.splitlines()).replace(
            "#Name", "Name"
        ),
    ],
)
def test_forms_of_the_table_read_the_same(tmp_path, change):
    """White space or commas, line ends, blanks, comments, a repeated row: the values by name are the same."""
    assert_published(table(tmp_path, change(PUBLISHED)))


def test_byte_order_mark_is_no_part_of_the_header(tmp_path):
    """A table saved by a spreadsheet starts with a byte-order mark, which is ignored."""
    assert_published(table(tmp_path, PUBLISHED, "utf-8-sig"))


def test_order_of_rows_does_not_matter(tmp_path):
    """Rows are joined by name: reversing them changes nothing, and row 0 need not be simulation 0."""
    header, *rows = PUBLISHED.splitlines()
    assert_published(table(tmp_path, "\n".join([header, *reversed(rows)])))
    assert table(tmp_path, PUBLISHED).values("SB35_0") == {"Omega0": 0.3, "sigma8": 0.8}


def test_known_misspelling_is_mended(tmp_path):
    """Both spellings of the one parameter give the same name, so that two tables of a suite agree."""
    for spelling in ("RadioFeedbackReiorientationFactor", "RadioFeedbackReorientationFactor"):
        assert table(tmp_path, f"#Name {spelling} seed\nSB35_0 20 1\n").names == ("RadioFeedbackReorientationFactor",)


def test_header_without_a_known_name_column_uses_its_first(tmp_path):
    """A header line marked with # has its names in the first column, whatever that is called."""
    assert table(tmp_path, "#Run a\nSB35_0 1\n").rows["SB35_0"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("SB35_7 0.3", "2 fields"),
        ("SB35_7 0.3 0.8 1 2", "5 fields"),
        ("SB35_7 0.3 high 1", "sigma8: 'high'"),
        ("SB35_7 0.3 nan 1", "'nan'"),
        ("SB35_7 0.3 inf 1", "'inf'"),
        ("SB35_7 0.3 0_8 1", "'0_8'"),
        ("SB35_2 0.39 0.7 314159", "line 5 contradicts"),
    ],
)
def test_rows_that_cannot_be_used_say_why_and_spare_the_others(tmp_path, row, reason):
    """A short, long, non-numeric or contradictory row makes its own simulation unusable, and no other."""
    found = table(tmp_path, PUBLISHED + row + "\n")
    name = row.split()[0]
    assert reason in found.unusable[name]
    assert set(found.unusable) == {name}
    assert found.rows["SB35_10"].tolist() == [0.22, 0.9]


def test_the_seed_may_be_anything(tmp_path):
    """The column seed is no parameter, so what stands there does not matter."""
    assert "SB35_0" in table(tmp_path, "#Name a seed\nSB35_0 1 none\n").rows


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "Name"),
        ("#Name a a\nSB35_0 1 2\n", "same name"),
        (b"\xff\xfe\x00\x00\x89HDF", "Cannot read"),
    ],
)
def test_files_that_are_no_table_are_explained(tmp_path, content, part):
    """An empty or binary file, or one without names, is an error that names the file."""
    with pytest.raises(ParameterTableError, match=part) as caught:
        table(tmp_path, content)
    assert "table.txt" in str(caught.value)


def test_a_table_of_many_rows_is_joined_by_name(mock_suite):
    """The mock suite's table has more rows than simulations, as the published one, and all are known by name."""
    suite = mock_suite(particles_per_side=8, halos_per_simulation=1)
    found = read_parameter_table(suite.parameter_file)
    assert len(found.rows) > 1
    assert "seed" not in found.names
    assert all(row.shape == (len(found.names),) and np.isfinite(row).all() for row in found.rows.values())


@pytest.fixture
def config(tmp_path):
    for base in ("a/DMO", "b/Hydro", "b/FOF"):
        (tmp_path / base).mkdir(parents=True)
    return DatasetConfig(
        dmo_base=tmp_path / "a/DMO",
        hydro_base=tmp_path / "b/Hydro",
        catalogue_base=tmp_path / "b/FOF",
        output_root=tmp_path / "out",
    )


@pytest.mark.parametrize("folder", ["a", "a/DMO", "b", "b/Hydro"])
@pytest.mark.parametrize("name", ["CosmoAstroSeed_SB35.txt", "CosmoAstroSeed_IllustrisTNG_L50n512_SB35.txt"])
def test_the_table_is_found_near_the_simulations(tmp_path, config, folder, name):
    """The table of the set is found in a base folder or the one above, and those of other sets are not taken."""
    (tmp_path / "a" / "CosmoAstroSeed_SB350.txt").touch()
    (tmp_path / "a" / "CosmoAstroSeed_CV.txt").touch()
    (tmp_path / folder / name).touch()
    assert find_parameter_file(config).resolve() == (tmp_path / folder / name).resolve()


def test_no_or_several_tables_are_explained(tmp_path, config):
    """Without a table, or with two, the error says where was looked and which setting names one."""
    with pytest.raises(ParameterTableError, match="--param_file"):
        find_parameter_file(config)
    for suite in ("SIMBA", "IllustrisTNG"):
        (tmp_path / "b" / f"CosmoAstroSeed_{suite}_SB35.txt").touch()
    with pytest.raises(ParameterTableError, match=r"IllustrisTNG.*SIMBA"):
        find_parameter_file(config)


def test_a_named_table_is_taken(config):
    """The setting parameter_file is used as it is."""
    assert find_parameter_file(config.model_copy(update={"parameter_file": "here.txt"})) == "here.txt"
