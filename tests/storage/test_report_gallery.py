"""Which samples the report shows, and what it says of them."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from audit_results import empty_result, finding, halo_sample, result_of, write_samples
from PIL import Image

from storage.audit_result import AuditCode, Depth
from storage.layout import DatasetLayout
from storage.report_gallery import Gallery, gallery_of, scientific
from storage.samples import write_sample


@pytest.fixture
def layout(tmp_path: Path) -> DatasetLayout:
    return DatasetLayout(tmp_path, "SB35")


def shown(gallery: Gallery) -> dict[str, list[str]]:
    return {group.title: [card.sample_id for card in group.cards] for group in gallery.groups}


def opened(uri: str) -> Image.Image:
    kind, content = uri.split(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def names(number: int) -> list[str]:
    return [f"SB35_{index}" for index in range(number)]


def test_a_verified_audit_is_shown_by_suspicion(layout: DatasetLayout) -> None:
    """The largest and smallest suspicions are shown, largest and smallest first, and no sample twice."""
    result = result_of(layout.root, names(40), haloes=1, rotations=1)
    order = result.measures.sort("suspicion", descending=True)["sample_id"].to_list()
    groups = shown(gallery_of(result, layout))
    assert groups["Most suspicious"] == order[:8]
    assert groups["Best"] == order[:-5:-1]
    assert set(groups["Median"]) < set(order[15:25])
    together = [sample for group in groups.values() for sample in group]
    assert len(together) == len(set(together)) == 16


def test_a_halo_shows_once_as_long_as_there_are_others(layout: DatasetLayout) -> None:
    """All orientations of one halo are odd: it is shown once, and then the other haloes' turn comes."""
    result = result_of(layout.root, names(12), haloes=1, rotations=4)
    odd = result.measures.with_columns(
        suspicion=pl.when(pl.col("sample_id").str.starts_with("SB35_3_")).then(99.0).otherwise(pl.col("suspicion"))
    )
    suspects = shown(gallery_of(replace(result, measures=odd), layout))["Most suspicious"]
    assert [name.split("_halo")[0] for name in suspects].count("SB35_3") == 1
    assert suspects[0].startswith("SB35_3_")


def test_what_could_not_be_measured_comes_first(layout: DatasetLayout) -> None:
    """A sample without measures, because its file cannot be read, is the most suspicious of all."""
    result = result_of(layout.root, names(9), haloes=1, rotations=1)
    lost = "SB35_4_halo_0_rot_0"
    measures = result.measures.filter(pl.col("sample_id") != lost)
    assert shown(gallery_of(replace(result, measures=measures), layout))["Most suspicious"][0] == lost


def test_lost_orientations_of_one_halo_are_all_shown(layout: DatasetLayout) -> None:
    """Two orientations of a halo that cannot be read both stand before any sample that can."""
    result = result_of(layout.root, names(12), haloes=1, rotations=4)
    lost = ["SB35_4_halo_0_rot_0", "SB35_4_halo_0_rot_3"]
    measures = result.measures.filter(~pl.col("sample_id").is_in(lost))
    assert shown(gallery_of(replace(result, measures=measures), layout))["Most suspicious"][:2] == lost


def test_without_measures_haloes_are_picked_by_mass(layout: DatasetLayout) -> None:
    """A known audit shows the heaviest and the lightest haloes, and the samples that errors name."""
    named = finding(AuditCode.WRONG_SEED, subject="SB35_7_halo_0_rot_0", simulation="SB35_7")
    result = result_of(layout.root, names(20), haloes=1, rotations=1, depth=Depth.KNOWN, findings=[named])
    groups = shown(gallery_of(result, layout))
    others = result.samples.filter(pl.col("simulation") != "SB35_7").sort("halo_mass", descending=True)["sample_id"]
    assert groups["Named by a finding"] == ["SB35_7_halo_0_rot_0"]
    assert groups["Heaviest haloes"] == others.head(4).to_list()
    assert groups["Lightest haloes"] == others.reverse().head(4).to_list()


@pytest.mark.parametrize("depth", Depth)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_samples_are_all_shown_once(layout: DatasetLayout, number: int, depth: Depth) -> None:
    """A handful of samples is divided among the groups."""
    result = result_of(layout.root, names(number), haloes=1, rotations=1, depth=depth)
    together = [sample for group in shown(gallery_of(result, layout)).values() for sample in group]
    assert sorted(together) == sorted(result.samples["sample_id"])


def test_no_sample_is_an_empty_gallery(layout: DatasetLayout) -> None:
    """A data set without samples has nothing to show, and that is no error."""
    assert gallery_of(empty_result(layout.root), layout).groups == ()


def test_maps_are_shown_upright_and_coloured_by_their_mass(layout: DatasetLayout) -> None:
    """Right is x' and up is y': a clump at small x' and large y' is bright at the top left."""
    result = result_of(layout.root, names(3), haloes=1, rotations=1)
    row = result.samples.row(0, named=True)
    sample = halo_sample(row)
    sample.condition[:] = 1e8
    sample.condition[2:6, -6:-2] = 1e12
    file = write_sample(layout.absolute(row["path"]), sample)
    samples = result.samples.with_columns(
        sha256=pl.when(pl.col("sample_id") == row["sample_id"]).then(pl.lit(file.sha256)).otherwise("sha256")
    )
    gallery = gallery_of(replace(result, samples=samples), layout)
    (card,) = [c for group in gallery.groups for c in group.cards if c.sample_id == row["sample_id"]]
    assert [picture.window for picture in card.pictures] == ["6.25 Mpc/h"] * 4 + ["12.5 Mpc/h", "25 Mpc/h", "50 Mpc/h"]
    brightness = np.asarray(opened(card.pictures[0].uri).convert("L"), dtype=float)
    assert np.unravel_index(brightness.argmax(), brightness.shape) < (8, 8)
    assert brightness[:8, :8].mean() > 3 * brightness[-8:, -8:].mean()
    assert card.pictures[0].brightest == scientific(1e12)


def test_large_maps_become_small_pictures(layout: DatasetLayout) -> None:
    """The page does not grow with the resolution of the maps."""
    result = result_of(layout.root, names(1), haloes=1, rotations=1)
    row = result.samples.row(0, named=True)
    small = halo_sample(row)
    times = 1024 // small.condition.shape[0]
    large = {
        key: getattr(small, key).repeat(times, axis=-1).repeat(times, axis=-2)
        for key in ("condition", "target", "large_scale")
    }
    write_sample(layout.absolute(row["path"]), replace(small, **large))
    config = result.config.model_copy(update={"resolution": 1024})
    (card,) = [card for group in gallery_of(replace(result, config=config), layout).groups for card in group.cards]
    assert {opened(picture.uri).size for picture in card.pictures} == {(256, 256)}


def test_a_sample_that_cannot_be_read_says_why(layout: DatasetLayout) -> None:
    """Missing, truncated and foreign files are shown as such, beside the others."""
    result = result_of(layout.root, names(4), haloes=1, rotations=1)
    samples = write_samples(result, layout)
    paths = dict(samples.select("simulation", "path").iter_rows())
    layout.absolute(paths["SB35_0"]).unlink()
    whole = layout.absolute(paths["SB35_1"])
    whole.write_bytes(whole.read_bytes()[:1000])
    outside = pl.when(pl.col("simulation") == "SB35_2").then(pl.lit("train/../../passwd.npz")).otherwise("path")
    gallery = gallery_of(replace(result, samples=samples.with_columns(path=outside)), layout)
    cards = {card.sample_id.split("_halo")[0]: card for group in gallery.groups for card in group.cards}
    assert "No such file" in cards["SB35_0"].problem
    assert all(cards[f"SB35_{index}"].problem and not cards[f"SB35_{index}"].pictures for index in range(3))
    assert "leads out of the data set" in cards["SB35_2"].problem
    assert len(cards["SB35_3"].pictures) == 7 and not cards["SB35_3"].problem


def test_maps_of_another_file_are_shown_with_a_warning(layout: DatasetLayout) -> None:
    """A readable file whose digest is not the recorded one is shown, and said to be another one."""
    result = result_of(layout.root, names(1), haloes=1, rotations=1)
    write_samples(result, layout)
    (card,) = [card for group in gallery_of(result, layout).groups for card in group.cards]
    assert card.pictures
    assert "SHA-256" in card.problem


def test_an_earlier_version_is_shown_as_it_was(layout: DatasetLayout) -> None:
    """A sample that was made anew since is shown from the file that was kept of it."""
    result = result_of(layout.root, names(1), haloes=1, rotations=1)
    samples = write_samples(result, layout)
    place, kept = layout.absolute(samples["path"][0]), layout.superseded_file(samples["sha256"][0])
    kept.parent.mkdir(parents=True)
    place.rename(kept)
    write_sample(place, halo_sample(samples.row(0, named=True) | {"halo_mass": 1e15}))
    (card,) = [card for group in gallery_of(replace(result, samples=samples), layout).groups for card in group.cards]
    brightest = halo_sample(samples.row(0, named=True)).condition.max()
    assert card.pictures[0].brightest == scientific(float(brightest))
    assert not card.problem


def test_a_card_holds_all_numbers_of_its_sample(layout: DatasetLayout) -> None:
    """Identity, masses, measures, file and the findings about it come with a sample."""
    about = finding(AuditCode.OUTLIER, subject="SB35_0_halo_0_rot_0")
    result = result_of(layout.root, names(1), haloes=1, rotations=1, findings=[about, finding()])
    (card,) = [card for group in gallery_of(result, layout).groups for card in group.cards]
    row = result.samples.row(0, named=True)
    assert card.findings == (about,)
    assert card.facts["Sample"]["M200c"] == f"{scientific(row['halo_mass'])} Msun/h"
    assert card.facts["Mass in the window"]["target gas"] == f"{scientific(row['mass_target_gas'])} Msun/h"
    assert set(card.facts["Measured"]) >= {"suspicion", "gas fraction", "z stars"}
    assert card.facts["File"]["path"] == row["path"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.214e13, "3.21 \N{MULTIPLICATION SIGN} 10¹³"), (0.0, "0"), (None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}")],
)
def test_numbers_are_written_as_people_do(value: float | None, text: str) -> None:
    """Powers of ten are raised, and what is no number is a dash."""
    assert scientific(value) == text
