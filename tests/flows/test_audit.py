"""The audit as a command, and as a flow on an embedded server."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call, refused
from damaged_datasets import AuditedDataset, mock_dataset
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.testing.utilities import prefect_test_harness

from bind_core.errors import BindDataError
from flows.audit import UnsoundDatasetError, audit_dataset
from storage.audit_depth import Depth
from storage.audit_result import AuditCode, AuditResult
from storage.manifest import ManifestError

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]

SAMPLE = "SB35_0_halo_0_rot_0"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> AuditedDataset:
    """Return a sound data set; tests must not change its samples."""
    return mock_dataset(tmp_path_factory.mktemp("sound"), rotations=2, particles_per_side=8)


@pytest.fixture
def damaged(sound: AuditedDataset, tmp_path: Path) -> AuditedDataset:
    """Return a copy in which seven samples' files are missing."""
    copy = sound.copied_to(tmp_path / "copy")
    shutil.rmtree(copy.root / "audit", ignore_errors=True)
    for path in sorted(copy.root.rglob("*.npz"))[-7:]:
        path.unlink()
    return copy


def artifact(key: str) -> Artifact:
    """Return the newest artifact with a key."""

    async def read() -> list[Artifact]:
        async with get_client() as client:
            chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            return await client.read_artifacts(artifact_filter=chosen)

    return max(asyncio.run(read()), key=lambda each: str(each.created))


def test_the_flow_of_a_sound_data_set_ends_well(sound: AuditedDataset) -> None:
    """The flow returns the result, and leaves the checks as a table, the verdict, and a link to the report."""
    result = audit_dataset(sound.root, Depth.VERIFIED)
    assert isinstance(result, AuditResult)
    assert (result.ok, result.depth) == (True, Depth.VERIFIED)
    checks = {row["check"]: row["outcome"] for row in json.loads(str(artifact("audit-checks").data))}
    assert checks["files have the recorded SHA-256"] == "passed"
    assert checks["lines of sight are uniform on the sphere"] == "not made"
    assert "Sound: 16 samples" in str(artifact("audit-verdict").data)
    report = sound.root / "audit" / "report.html"
    assert report.as_uri() in str(artifact("audit-report").data)
    assert "</html>" in report.read_text()


def test_the_flow_of_a_damaged_data_set_fails_with_the_verdict(damaged: AuditedDataset, tmp_path: Path) -> None:
    """Errors fail the flow with one sentence; what they are stands in the artifact, and the report is there too."""
    report = tmp_path / "reports" / "today.html"
    with pytest.raises(UnsoundDatasetError, match="Not sound: 7 errors") as caught:
        audit_dataset(damaged.root, report=report)
    assert caught.value.result.counts == {AuditCode.MISSING_FILE: 7}
    assert report.exists()
    text = str(artifact("audit-verdict").data)
    assert "error: missing file: 7" in text
    assert "SELECT * FROM samples WHERE sample_id = 'SB35_" in text


def test_the_flow_names_what_it_cannot_audit(sound: AuditedDataset, tmp_path: Path) -> None:
    """Without a data set, or without the version asked for, the flow fails with what says so."""
    with pytest.raises(ManifestError, match="no data set"):
        audit_dataset(tmp_path)
    with pytest.raises(BindDataError, match="no version '7'"):
        audit_dataset(sound.root, version="7")


def test_the_command_prints_the_verdict_first(sound: AuditedDataset) -> None:
    """For a sound data set, verdict, checks and where the report is, with status 0."""
    result = call("audit", "--dataset", sound.root)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Sound: 16 samples of 4 simulations at depth known.")
    assert "✓ every sample's file is there (16 samples, 16 files)" in lines
    assert lines[-1] == f"Report: {sound.root / 'audit' / 'report.html'}"


def test_the_command_groups_findings_by_kind(damaged: AuditedDataset) -> None:
    """For a damaged one, some findings of each kind with how many there are and a query, with status 1."""
    result = call("audit", "--dataset", damaged.root, "--no-report")
    assert result.exit_code == 1
    assert result.stdout.startswith("Not sound: 7 errors and 0 warnings")
    assert "error: missing file: 7  The manifest lists a sample whose file is not there." in result.stdout
    assert "… and 2 more" in result.stdout
    asked = re.search(r'bind-data query --dataset (\S+) "(.+)"', result.stdout)
    assert asked is not None
    assert call("query", "--dataset", asked[1], asked[2]).stdout.strip().endswith("1 row")
    assert not (damaged.root / "audit").exists()


def test_the_command_prints_json_for_scripts(damaged: AuditedDataset, tmp_path: Path) -> None:
    """As JSON: the verdict, every check, every finding, and where the report was written."""
    report = tmp_path / "report.html"
    result = call("audit", "--dataset", damaged.root, "--depth", "verified", "--report", report, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["ok"], said["errors"], said["counts"]) == (False, 7, {"missing_file": 7})
    assert said["report"] == str(report)
    assert report.exists()
    assert {"check": "files can be read", "passed": True} in [
        {"check": check["name"], "passed": check["passed"]} for check in said["checks"]
    ]
    assert {finding["code"] for finding in said["findings"]} == {"missing_file"}


def test_the_command_audits_earlier_versions(sound: AuditedDataset, tmp_path: Path) -> None:
    """A version by number is audited as it was; one that there is not is refused, as are two ways to name it."""
    result = call("audit", "--dataset", sound.root, "--version", "0", "--no-report", "--json")
    assert json.loads(result.stdout)["version"] == 0
    assert "no version '5'" in refused("audit", "--dataset", sound.root, "--version", "5", "--no-report")
    assert "both" in refused("audit", "--dataset", sound.root, "--version", "0", "--at", "2026-01-01")
    assert "exclude each other" in refused("audit", "--dataset", sound.root, "--report", "x", "--no-report")
    assert "no data set" in refused("audit", "--dataset", tmp_path)
