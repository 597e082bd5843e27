import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import BinaryIO

import pytest

from storage.files import (
    StorageFullError,
    atomic_write,
    is_temporary,
    remove_stale_temporaries,
    sha256_of,
    write_bytes,
)


def test_a_written_file_holds_its_content_and_nothing_else_is_left(tmp_path: Path) -> None:
    """Writing makes missing folders and the file, and leaves no other file behind."""
    path = tmp_path / "a" / "b" / "file.npz"
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_the_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """Colleagues can read what one of them generated: the permissions are those of the umask, not 0600."""
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    """An exception while writing passes through; the old file is untouched and the temporary one removed."""
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"ne")
        raise KeyError("unexpected")

    with pytest.raises(KeyError, match="unexpected"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_exhausted_disk_or_quota_is_named_with_the_free_space(tmp_path: Path, number: int) -> None:
    """No space and no quota both say which file could not be written and how many bytes are free."""
    path = tmp_path / "new" / "file"

    def fail(_: BinaryIO) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageFullError) as caught:
        atomic_write(path, fail)
    assert caught.value.path == path
    assert caught.value.bytes_free is not None
    assert str(path) in str(caught.value)
    assert f"{caught.value.bytes_free:,} bytes are free" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_does_no_damage(small_disk: Path) -> None:
    """On a disk of 64 KiB, a file too large is refused, and what was there before is still whole."""
    write_bytes(small_disk / "file", b"x" * 30_000)
    with pytest.raises(StorageFullError):
        write_bytes(small_disk / "file", os.urandom(100_000))
    assert (small_disk / "file").read_bytes() == b"x" * 30_000
    assert [entry.name for entry in small_disk.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path, moment: str) -> None:
    """SIGKILL before the rename leaves the old content, and a leftover that the next run recognises and removes."""
    path = tmp_path / "sample.npz"
    write_bytes(path, b"old")
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from storage.files import atomic_write

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        def write(stream):
            stream.write(b"half of the new content")
            stream.flush()
            if sys.argv[2] == "while writing":
                die()

        Path.replace = die
        atomic_write(Path(sys.argv[1]), write)
        """
    )
    repository = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path), moment], cwd=repository, env=os.environ | {"PYTHONPATH": "."}
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (leftover,) = (entry for entry in tmp_path.iterdir() if entry != path)
    assert is_temporary(leftover)
    assert leftover.suffix != ".npz"
    assert remove_stale_temporaries(tmp_path) == [leftover]
    assert list(tmp_path.iterdir()) == [path]


def test_only_temporaries_are_removed(tmp_path: Path) -> None:
    """Hidden files and files with similar names are left alone."""
    kept = [tmp_path / name for name in (".hidden", "a.bind-tmp", ".a.bind-tmp", ".a.npz.12.bind-tmp", "a.npz")]
    for path in kept:
        path.touch()
    stale = tmp_path / ".a.npz.0123456789abcdef.bind-tmp"
    stale.touch()
    assert remove_stale_temporaries(tmp_path) == [stale]
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert remove_stale_temporaries(tmp_path / "missing") == []


def test_a_living_writers_temporary_file_is_left_alone(tmp_path: Path) -> None:
    """Cleaning a folder does not disturb a process that is writing there; once it is killed, its leftover goes."""
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from storage.files import atomic_write

        def write(stream):
            stream.write(b"half")
            stream.flush()
            print("writing", flush=True)
            sys.stdin.read(1)

        atomic_write(Path(sys.argv[1]), write)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for kill in (False, True):
        path = tmp_path / f"sample_{kill}.npz"
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        with writer:
            assert writer.stdout.readline() == b"writing\n"
            (temporary,) = (entry for entry in tmp_path.iterdir() if is_temporary(entry))
            assert remove_stale_temporaries(tmp_path) == []
            if kill:
                writer.kill()
            else:
                writer.stdin.write(b"x")
                writer.stdin.close()
            writer.wait()
        assert remove_stale_temporaries(tmp_path) == ([temporary] if kill else [])
        assert path.exists() is not kill


def test_a_file_that_is_there_can_be_spared(tmp_path: Path) -> None:
    """Not to be replaced, a file stays as it is, and no temporary one is left."""
    path = tmp_path / "tag.json"
    write_bytes(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_bytes(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    """The digest is the SHA-256 known for the text 'abc' (FIPS 180-2, appendix B.1)."""
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
