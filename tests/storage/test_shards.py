"""Packs: shards and tar files of a version's samples."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import webdataset
import zarr

from storage import shards
from storage.files import sha256_of
from storage.manifest import open_dataset
from storage.recorded import RecordedSampleError
from storage.shards import ARRAYS, PackError, PackFormat, pack, verify_pack
from storage.versions import resolve_version


@pytest.fixture
def packed(dataset, monkeypatch):
    """Commit 24 samples, and set a small number of samples per file."""
    monkeypatch.setattr(shards, "SAMPLES_PER_FILE", 5)
    dataset.commit("SB35_0", halos=4, rotations=3)
    dataset.commit("SB35_1", halos=4, rotations=3, split="test")
    return dataset


KILLED = """
import os, signal, sys
from pathlib import Path
from storage import shards
from storage.layout import DatasetLayout
from storage.versions import resolve_version

root, folder, pack_format, number = sys.argv[1:]
shards.SAMPLES_PER_FILE = 5
layout = DatasetLayout(Path(root), "SB35")

def progress(done, total):
    if done >= int(number):
        os.kill(os.getpid(), signal.SIGKILL)

pack_format = shards.PackFormat(pack_format)
shards.pack(layout, resolve_version(layout), Path(folder), pack_format=pack_format, progress=progress)
"""


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def make(dataset, folder: Path | None = None, **how):
    return pack(dataset.layout, resolve_version(dataset.layout), folder, **how)


def test_shards_hold_the_samples_in_the_manifests_order(packed) -> None:
    """Every array of every sample is found, to the bit, at the place of its row; any Zarr v3 reader opens them."""
    made = make(packed)
    rows = pl.read_parquet(made.folder / "samples.parquet")
    assert rows.equals(packed.open().samples())
    group = zarr.open_group(made.folder / ARRAYS, mode="r")
    for number, path in enumerate(rows["path"]):
        with np.load(packed.root / path) as sample:
            assert set(sample) == set(group.array_keys())
            for key, array in sample.items():
                found = group[key][number]
                assert np.asarray(found).dtype == array.dtype
                assert np.array_equal(found, array), (path, key)
    assert group["target"].shards[0] == 5
    assert group["target"].chunks[0] == 1
    assert len(list((made.folder / ARRAYS / "target").rglob("c/*/*/*/*"))) == 5
    assert verify_pack(packed.layout, made.folder) == []


def test_tars_hold_the_files_and_their_rows(packed) -> None:
    """A tar has, sample by sample, the very bytes of the file and its row, under one name, as WebDataset expects."""
    made = make(packed, pack_format=PackFormat.TAR)
    rows = packed.open().samples()
    names = []
    for tar in sorted(made.folder.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                name, _, suffix = member.name.partition(".")
                content = archive.extractfile(member).read()
                row = rows.row(by_predicate=pl.col("sample_id") == name, named=True)
                if suffix == "npz":
                    names.append(name)
                    assert content == (packed.root / row["path"]).read_bytes()
                else:
                    assert json.loads(content)["halo_mass"] == row["halo_mass"]
    assert names == rows["sample_id"].to_list()
    assert verify_pack(packed.layout, made.folder) == []


def test_tars_are_what_webdataset_reads(packed) -> None:
    """The library gives each sample under its id, with its arrays as ``npz`` and its row as ``json``, in order."""
    made = make(packed, pack_format=PackFormat.TAR)
    tars = sorted(str(path) for path in made.folder.glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    rows = packed.open().samples()
    assert [sample["__key__"] for sample in samples] == rows["sample_id"].to_list()
    for sample, row in zip(samples, rows.iter_rows(named=True), strict=True):
        assert {key for key in sample if not key.startswith("__")} == {"npz", "json"}
        assert sample["json"] == json.loads(json.dumps(row, default=str))
        with np.load(packed.root / row["path"]) as expected:
            assert list(sample["npz"]) == expected.files
            assert all(np.array_equal(sample["npz"][key], expected[key]) for key in expected.files)


def test_a_condition_chooses_samples(packed) -> None:
    """Only rows that fulfil the condition are packed; one that is none, or that fits no sample, says so."""
    made = make(packed, where="split = 'test' AND halo < 2")
    assert made.identity.n_samples == 6
    rows = pl.read_parquet(made.folder / "samples.parquet")
    assert set(rows["split"]) == {"test"}
    assert verify_pack(packed.layout, made.folder) == []
    for condition in ("no_such_column > 3", "halo <", "halo; SELECT 1", "halo"):
        with pytest.raises(PackError, match="cannot be used"):
            make(packed, where=condition)
    with pytest.raises(PackError, match="no sample where halo_mass < 0"):
        make(packed, where="halo_mass < 0")


def test_an_earlier_version_stays_packed_as_it_was(packed) -> None:
    """A version is packed with the samples that it had; made again, the pack is the same, to the byte."""
    first = resolve_version(packed.layout, 0)
    made = pack(packed.layout, first, packed.root / "one")
    assert made.identity.n_samples == 12
    again = pack(packed.layout, first, packed.root / "two", threads=3)
    assert contents(made.folder) == contents(again.folder)


@pytest.mark.parametrize("pack_format", list(PackFormat))
def test_a_killed_run_is_taken_up_again(packed, pack_format: PackFormat) -> None:
    """After SIGKILL at any file, nothing is there to be mistaken for a pack, and the rest makes the very same one."""
    whole = make(packed, packed.root / "whole", pack_format=pack_format)
    folder = packed.root / "killed"

    for number in (5, 15, 24):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(packed.root), str(folder), pack_format, str(number)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            timeout=120,
        )
        assert killed.returncode == -signal.SIGKILL
        assert not folder.exists()
    seen: list[int] = []
    make(packed, folder, pack_format=pack_format, progress=lambda done, total: seen.append(done))
    assert seen == []
    assert contents(folder) == contents(whole.folder)
    assert [path.name for path in packed.root.glob(".killed*")] == []


def test_what_was_packed_is_not_packed_again(packed) -> None:
    """The same pack is left as it is; a folder with another one, or with anything else, is refused."""
    made = make(packed)
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    assert make(packed) == made
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    with pytest.raises(PackError, match="holds another pack: where "):
        make(packed, made.folder, where="halo = 0")
    with pytest.raises(PackError, match="is no pack"):
        make(packed, packed.root / "train")


def test_a_sample_that_was_not_recorded_is_not_packed(packed) -> None:
    """A file that changed since it was recorded is refused by name, and no pack appears."""
    victim = packed.layout.sample_path("train", "SB35_0", 1, 1)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(RecordedSampleError, match="SB35_0_halo_1_rot_1"):
        make(packed, packed.root / "pack")
    assert not (packed.root / "pack").exists()


def test_samples_that_do_not_fit_together_are_refused(packed) -> None:
    """Samples of another configuration are not packed with the rest."""
    other = open_dataset(packed.layout, packed.config.model_copy(update={"root_seed": 7}), refresh=True)
    digest = pl.lit(other.config.digest)
    rows, attempts = packed.sample_rows("SB35_2"), packed.simulation_rows("SB35_2")
    other.commit(rows.with_columns(config_digest=digest), attempts.with_columns(config_digest=digest), "run")
    with pytest.raises(PackError, match="2 configurations"):
        make(packed)


def test_damage_to_a_pack_is_found(packed) -> None:
    """A flipped bit, a lost file, a foreign file and a manifest that has changed are each named."""
    made = make(packed)
    victim = made.folder / "gas"
    victim.write_text("?")
    shard = made.folder / ARRAYS / "target/c/2/0/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    (made.folder / ARRAYS / "condition/c/1/0/0").unlink()
    problems = verify_pack(packed.layout, made.folder)
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "gas is not part of the pack",
        "samples.zarr/condition/c/1/0/0 is missing",
        "samples.zarr/target/c/2/0/0/0 is damaged",
    ]
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(made.folder / ARRAYS, mode="r")["target"][10:15]
