"""Links and names that would lead out of a data set, and SQL and markup in what people and files call things."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from block_runs import layout_of, make, manifest_of, refresh
from command_line import MadeDataset, bases, call, fine, made, refused
from older_generator import write_older_dataset

from bind_core.config import DatasetConfig, Stratum
from bind_core.dataset import DatasetError, FileReader, SampleDataset
from bind_core.errors import BindDataError, ConfigurationError
from storage.columns import SimulationStatus
from storage.context_maps import ContextError, add_context_maps
from storage.layout import LayoutError
from storage.markdown import shown_cell, shown_code, shown_either_way, shown_text
from storage.mock_suite import write_mock_suite
from storage.workload import plan_workload

OUTWARD = [
    "../../x",
    "../x",
    "SB35_../x",
    "/etc",
    "SB35_0/../../x",
    "SB35_\0",
    "SB35_<script>",
    "SB35_$(id)",
    "SB35_;id",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> MadeDataset:
    return made(tmp_path_factory.mktemp("original"), simulations=1)


@pytest.fixture
def dataset(original: MadeDataset, tmp_path: Path) -> MadeDataset:
    """Return a copy that a test may spoil."""
    root = tmp_path / "dataset"
    shutil.copytree(original.root, root)
    return MadeDataset(original.suite, original.config.model_copy(update={"output_root": root}))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Return a folder outside of the data set; at the end, it must be as it was."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    yield folder
    assert (folder / "kept.txt").read_text() == "kept"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_sample(dataset: MadeDataset) -> tuple[str, Path]:
    name, path = manifest_of(dataset.config).samples().select("sample_id", "path").sort("sample_id").row(0)
    return name, dataset.config.output_root / path


def test_a_sample_that_became_a_link_is_not_followed(dataset: MadeDataset, outside: Path) -> None:
    """Showing, packing and auditing refuse a sample that lies elsewhere, and repair makes a file in its place."""
    name, path = one_sample(dataset)
    shutil.move(path, outside / "sample.npz")
    path.symlink_to(outside / "sample.npz")
    before = contents(outside)
    assert "leads out" in refused("show", name, "--dataset", dataset.root)
    assert "leads out" in refused("pack", "--dataset", dataset.root)
    assert call("audit", "--depth", "verified", "--dataset", dataset.root).exit_code == 1
    call("repair", "--yes", "--dataset", dataset.root)
    assert contents(outside) == before


@pytest.mark.parametrize("linked", ["split", "simulation"])
def test_a_folder_that_became_a_link_is_not_written_through(dataset: MadeDataset, outside: Path, linked: str) -> None:
    """Neither a run, nor a refresh, a repair or added context maps write or remove anything where the link leads."""
    _, path = one_sample(dataset)
    folder = path.parent if linked == "simulation" else path.parent.parent
    shutil.move(folder, outside / "moved")
    folder.symlink_to(outside / "moved")
    before = contents(outside)
    call("repair", "--yes", "--dataset", dataset.root)
    assert contents(outside) == before
    more = dataset.config.model_copy(update={"strata": (Stratum(rotations=5),)})
    for work in (make, refresh):
        with suppress(BindDataError):
            assert SimulationStatus.COMPLETE not in work(more).values()
        assert contents(outside) == before
    with pytest.raises(ContextError, match=r"nothing is changed there|There are no samples"):
        add_context_maps(dataset.config, rebuild=True)
    assert contents(outside) == before


@pytest.mark.parametrize("linked", ["split", "simulation"])
def test_an_import_does_not_write_through_a_link(tmp_path: Path, outside: Path, linked: str) -> None:
    """Where a folder of the new data set leads elsewhere, nothing is written or swept there, and the error names it."""
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=8, halos_per_simulation=1)
    older = tmp_path / "older"
    write_older_dataset(older, suite.dmo_base, suite.hydro_base, suite.catalogue_base, range(1), total_sims=1, npix=16)
    (split,) = [folder.name for folder in older.iterdir()]
    folder = tmp_path / "new" / split if linked == "split" else tmp_path / "new" / split / "sim_0"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    (outside / ".a.npz.0123456789abcdef.bind-tmp").write_text("somebody else's")
    before = contents(outside)
    said = call(
        "import", older, "--dataset", tmp_path / "new", "--total-sims", "1", "--option", "resolution=16", *bases(suite)
    )
    assert said.exit_code == 1
    assert isinstance(said.exception, SystemExit)
    assert "leads out of the data set" in said.stderr
    assert contents(outside) == before


@pytest.mark.parametrize("name", OUTWARD)
def test_a_simulation_of_such_a_name_is_never_looked_for(dataset: MadeDataset, name: str) -> None:
    """A name that is no name of the set is refused, however it is given, before any path is made of it."""
    before = contents(dataset.config.output_root)
    with pytest.raises(ConfigurationError, match="is not the name of a simulation"):
        plan_workload(dataset.config, manifest_of(dataset.config), [name])
    assert contents(dataset.config.output_root) == before


def test_folders_of_such_names_are_no_simulations(tmp_path: Path, outside: Path) -> None:
    """What lies in the base folders under names that no path should hold is passed over."""
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=8, halos_per_simulation=1)
    for name in ("SB35_<img src=x onerror=alert(1)>", "SB35_..", "SB35_a b", "SB35_`id`", "SB35_$(id)", "..SB35_1"):
        (suite.dmo_base / name).mkdir()
    (suite.dmo_base / "SB35_9").symlink_to(outside / "nowhere")
    config = DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        output_root=tmp_path / "out",
        resolution=16,
    )
    make(config)
    assert manifest_of(config).simulations()["simulation"].unique().to_list() == ["SB35_0"]


@pytest.mark.parametrize("set_name", ["../a", "/a", "a/b", "..", "", ".hidden", "a\0"])
def test_a_set_of_such_a_name_is_refused(tmp_path: Path, set_name: str) -> None:
    """Neither a mock suite is written for it, nor a configuration accepted, from a file with a data set either."""
    with pytest.raises(ValueError, match="cannot be the name of a set"):
        write_mock_suite(tmp_path / "deep" / "suite", simulations=1, set_name=set_name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="set_name"):
        DatasetConfig.from_values({"set_name": set_name})


@pytest.mark.parametrize("recorded", ["../../x.npz", "/etc/passwd", "train/../../x", "a\0b", "loop/x"])
def test_a_recorded_path_that_leads_out_or_nowhere_is_refused(dataset: MadeDataset, recorded: str) -> None:
    """Rows of a manifest that was tampered with name no file elsewhere."""
    (dataset.config.output_root / "loop").symlink_to("loop")
    with pytest.raises(LayoutError, match="leads"):
        layout_of(dataset.config).absolute(recorded)


FILE_SQL = [
    "COPY samples TO '{folder}/stolen.csv'",
    "ATTACH '{folder}/stolen.db'",
    "INSTALL httpfs",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SET threads = 1",
    "PRAGMA database_list; SELECT 1",
    "SELECT getenv('HOME')",
    "SELECT * FROM samples WHERE simulation IN (SELECT content FROM read_text('/etc/hostname'))",
    "WITH t AS (SELECT * FROM parquet_scan('/etc/passwd')) SELECT * FROM t",
    "CALL pragma_version(); COPY samples TO '{folder}/stolen.csv'",
    "EXPORT DATABASE '{folder}/stolen'",
    "DETACH memory",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
]


@pytest.mark.parametrize("sql", FILE_SQL)
def test_the_command_answers_no_question_about_files(dataset: MadeDataset, outside: Path, sql: str) -> None:
    """`bind-data query` ends in an orderly way and leaves no file, whatever it is asked."""
    before = contents(dataset.config.output_root), contents(outside)
    refused("query", sql.format(folder=outside), "--dataset", dataset.root)
    assert (contents(dataset.config.output_root), contents(outside)) == before


@pytest.mark.parametrize(
    "where",
    [
        "read_csv('/etc/passwd') IS NOT NULL",
        "simulation IN (SELECT * FROM read_csv('/etc/passwd'))",
        "1 = 1; DROP TABLE samples",
        "getenv('HOME') = 'x'",
        "halo_mass > (SELECT COUNT(*) FROM read_parquet('/etc/passwd'))",
        "EXISTS (SELECT 1 FROM scan_csv('/etc/passwd'))",
    ],
)
def test_a_condition_on_samples_reaches_no_file(dataset: MadeDataset, where: str) -> None:
    """Conditions of packs and of training sets know columns, and neither files, nor the environment, nor statements."""
    before = contents(dataset.config.output_root)
    assert "cannot be used" in refused("pack", "--where", where, "--dataset", dataset.root)
    assert contents(dataset.config.output_root) == before
    rows = manifest_of(dataset.config).samples()
    with pytest.raises(DatasetError, match="cannot be used"):
        SampleDataset(FileReader(dataset.config.output_root, rows), where=where)


HOSTILE = "<img src=x onerror=alert(1)> [a](javascript:b) ![c](http://d) | `e` ``f`` \n# g <script>h</script>"


def test_text_in_a_page_of_markdown_is_no_markup() -> None:
    """Angle brackets, links, pictures, rows, headings and runs of backticks lose their meaning, and the words stay."""
    for shown in (shown_text(HOSTILE), shown_cell(HOSTILE)):
        assert "\n" not in shown
        assert "<" not in shown
        assert "``" not in shown
        assert "\\[a](javascript" in shown
        assert "`e`" in shown
    assert " \\| " in shown_cell(HOSTILE)
    assert shown_code("a`<b>`").count("`") == 2
    assert shown_code("a`<b>`").startswith("`a'<b>'")


def test_text_is_no_markup_where_escapes_would_show() -> None:
    """Tags and links are taken apart, hostile or not read at all, and every visible character stays."""
    shown = shown_either_way(HOSTILE)
    assert not re.search(r"<[A-Za-z/!?]|\]\(", shown)
    assert shown.replace("\N{WORD JOINER}", "") == " ".join(HOSTILE.split())
    for harmless in ("SB35_0", "mass in [1e13, inf] < 2 * mean", "see `docs`"):
        assert shown_either_way(harmless) == harmless


def test_the_data_card_shows_parameters_of_any_name(dataset: MadeDataset, tmp_path: Path) -> None:
    """A table whose columns are called like markup adds none to the card."""
    table = tmp_path / "parameters.txt"
    text = dataset.suite.parameter_file.read_text()
    header = text.splitlines()[0].split()
    table.write_text(text.replace(header[1], "`<script>alert(1)</script>`|x", 1))
    config = dataset.config.model_copy(update={"output_root": tmp_path / "marked", "parameter_file": table})
    make(config)
    fine("card", "--dataset", str(config.output_root))
    page = (config.output_root / "DATASET.md").read_text()
    assert "`'<script>alert(1)</script>'|x`" in page.replace("\\|", "|").replace("\n", " ")


def test_names_of_people_and_notes_are_kept_as_they_are(dataset: MadeDataset) -> None:
    """Markup in a tag's note is data: it comes back as it was given, and a tag's name has none."""
    note = "<script>alert(1)</script> | `x`"
    fine("tag", "marked", "--note", note, "--dataset", dataset.root)
    assert "<script>" in fine("versions", "--json", "--dataset", dataset.root) + fine(
        "tag", "--list", "--json", "--dataset", dataset.root
    )
    for name in ("../x", "a/b", "<b>", "a\nb"):
        assert "cannot be a tag" in refused("tag", name, "--dataset", dataset.root)
