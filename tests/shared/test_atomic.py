"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.shared.atomic import atomic_path, atomic_text, write_bytes
from rsp.shared.errors import StorageError


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    path = tmp_path / "sub" / "cover"
    with atomic_text(path) as file:
        file.write("1,2,3\n")
        assert not path.exists()
    assert path.read_text() == "1,2,3\n" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "cover"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_text(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_directory_or_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder: it is a directory"):
        write_bytes(tmp_path / "folder", b"")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        write_bytes(tmp_path / "file" / "cover", b"")


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_text(tmp_path / "out"):
        (tmp_path / "input").read_text()
    with pytest.raises(ConnectionError), atomic_text(tmp_path / "out"):
        raise ConnectionError("the network")
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_is_said(tmp_path):
    with pytest.raises(StorageError, match="out"), atomic_path(tmp_path / "out"):
        pass


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, "-c", f"print(open({str(pipe)!r}).read())"], stdout=subprocess.PIPE)
    write_bytes(pipe, b"1,2,3")
    assert reader.communicate()[0] == b"1,2,3\n" and list(tmp_path.iterdir()) == [pipe]


def test_dev_null_stays_what_it_is():
    with atomic_text(Path("/dev/null")) as file:
        file.write("gone")
    assert not Path("/dev/null").is_file()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from rsp.shared.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as path:\n    path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "model[1].safetensors"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)])
        (half,) = tmp_path.iterdir()
        assert half.name.startswith(".rsp-") and half.suffix == ".safetensors"
    other = tmp_path / half.name.replace(f".{os.uname().nodename}.", ".elsewhere.")
    other.touch()  # of another machine, whose processes we do not know
    with atomic_path(path) as one, atomic_path(path) as two:
        one.write_text("1")
        two.write_text("2")
        assert set(tmp_path.iterdir()) == {one, two, other}
    assert path.read_text() == "1" and set(tmp_path.iterdir()) == {path, other}


def test_a_file_too_large_is_said_and_nothing_stays(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from rsp.shared.atomic import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from rsp.shared.errors import StorageError\n"
        "try: write_bytes(Path(sys.argv[1]), bytes(5000))\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cannot write {tmp_path / 'big'}: File too large\n" and not list(tmp_path.iterdir())


def test_what_a_live_process_has_in_the_making_stays(tmp_path):
    """Others that write the same path clear away only what the dead have left."""
    code = (
        "import sys; from pathlib import Path; from rsp.shared.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as path:\n"
        "    path.write_text('theirs'); print(path, flush=True); sys.stdin.read()"
    )
    path = tmp_path / "cover"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
        theirs = Path(other.stdout.readline().strip())
        with atomic_path(path) as ours:
            ours.write_text("ours")
            with atomic_path(path) as third:
                third.write_text("third")
                assert {theirs, ours, third} == set(tmp_path.iterdir())
        assert path.read_text() == "ours" and theirs.read_text() == "theirs"
        other.stdin.close()
    assert other.returncode == 0 and path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def synced(monkeypatch):
    """What is made durable, in order: `(inode, the content of the file, or the names in the folder)`."""
    calls = []
    fsync = os.fsync

    def record(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        folder = stat.S_ISDIR(status.st_mode)
        calls.append(
            (
                status.st_ino,
                sorted(entry.name for entry in os.scandir(descriptor)) if folder else os.pread(descriptor, 99, 0),
            )
        )

    monkeypatch.setattr(os, "fsync", record)
    return calls


def test_content_is_on_the_disk_before_its_name_and_the_name_before_we_go_on(tmp_path, synced):
    path = tmp_path / "cover"
    write_bytes(path, b"old")
    synced.clear()
    write_bytes(path, b"new")
    assert synced == [(path.stat().st_ino, b"new"), (tmp_path.stat().st_ino, ["cover"])]


def test_folders_that_are_made_on_the_way_are_on_the_disk_too(tmp_path, synced):
    path = tmp_path / "a" / "b" / "cover"
    with atomic_text(path) as file:
        file.write("1,2,3\n")
    folders = [path.parent, path.parent.parent, tmp_path]
    assert synced == [
        (path.stat().st_ino, b"1,2,3\n"),
        *((folder.stat().st_ino, [name]) for folder, name in zip(folders, ("cover", "b", "a"), strict=True)),
    ]


@pytest.mark.parametrize(("reason", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_folders_and_one_that_fails(tmp_path, monkeypatch, reason, passes):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(reason, os.strerror(reason))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        write_bytes(tmp_path / "cover", b"new")
    else:
        with pytest.raises(StorageError, match=r"cannot write .*cover: Input/output error"):
            write_bytes(tmp_path / "cover", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["cover"]
