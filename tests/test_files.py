"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest

from minibrain import cli, files
from minibrain.data import phantom_task
from minibrain.data.decathlon import TaskError, open_task
from minibrain.errors import InputError
from minibrain.files import Lock, make_folder, read_json, replacing, require_writable
from minibrain.runs.run_folder import RunFolder

NOBODY = 65534


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_until_the_disk_is_full():
        with replacing(path) as file:
            file.write(b"half of the n")
            raise OSError("disk full")

    with pytest.raises(InputError, match="file: cannot be written: disk full"):
        write_until_the_disk_is_full()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_name_waits_for_the_disk_and_the_folder_for_the_new_name(tmp_path, monkeypatch):
    """What a power cut needs, and no kill would show: bytes, then names, then the folder."""
    path, before, order = tmp_path / "file", tmp_path / "before", []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        status = os.fstat(descriptor)
        folder = stat.S_ISDIR(status.st_mode)
        order.append("folder on the disk" if folder else f"{status.st_size} bytes on the disk")
        fsync(descriptor)

    def watched_replace(source, target):
        order.append(f"{Path(target).name} renamed")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    monkeypatch.setattr(files.os, "replace", watched_replace)
    with replacing(path, keep=before) as file:
        file.write(b"new!")
    assert order == [
        "4 bytes on the disk",
        "before renamed",
        "file renamed",
        "folder on the disk",
    ]
    assert (before.read_bytes(), path.read_bytes()) == (b"old", b"new!")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "R/O")])
def test_a_folder_that_may_not_be_written_is_named(error, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(files, "open", refuse, raising=False)
    expected = f"^{tmp_path}/file: cannot be written: {error.strerror}$"
    with pytest.raises(InputError, match=expected), replacing(tmp_path / "file"):
        pass
    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(InputError, match="cannot be written"):
        Lock(tmp_path / ".lock")


def test_what_numpy_could_not_write_is_no_riddle(tmp_path):
    """`np.save` says of a full disk how many of its items are there, and neither file nor why."""
    expected = rf"^{tmp_path}/a.npy: cannot be written: 9 requested and 5 written; is the disk full"
    with pytest.raises(InputError, match=expected), replacing(tmp_path / "a.npy"):
        raise OSError("9 requested and 5 written")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs as POSIX has them")
def test_a_lock_that_is_no_plain_file_is_refused_and_harms_nothing(tmp_path):
    (tmp_path / "precious").write_text("data")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo"):
        with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: cannot be written: "):
            Lock(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "data"


def test_a_lock_on_a_full_disk_is_one_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "write", refuse)
    with pytest.raises(InputError, match=r"lock: cannot be written: No space left on device"):
        Lock(tmp_path / "lock")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, b"\xff\xfe{"])
def test_what_is_no_json_is_one_error(content, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as a list: "):
        read_json(path, "a list")


@pytest.fixture
def home():
    """A folder where everybody may enter; pytest's own lie where only their owner may."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def without_rights_of_root(folder):
    """As whoever owns the folder: where tests run as root, it is given to somebody else."""
    root = os.geteuid() == 0
    if root:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        for path in folder.iterdir():
            path.chmod(0o700)
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_what_permissions_forbid_is_one_line_that_names_it(home, capsys):
    """With real permissions: nothing is faked."""
    locked, task = home / "locked", home / "task"
    make_folder(locked)
    phantom_task.write_task(task, cases=1, size=(16, 16, 16))
    programs = [
        ["inspect", str(task)],
        ["train", "--resume", f"{locked}/run"],
        ["evaluate", f"{locked}/run"],
        ["doctor", f"{locked}/last.npz"],
    ]
    for arguments in programs:  # first with all rights, as Python loads modules here
        assert cli.main(arguments) == (0 if arguments[0] == "inspect" else 2)
    capsys.readouterr()
    with without_rights_of_root(home):
        locked.chmod(0o500)
        for call in (
            lambda: RunFolder.claim(str(locked / "run"), "net"),
            lambda: RunFolder.claim(str(locked), "net"),
            lambda: make_folder(locked / "x"),
            lambda: require_writable(locked),
            lambda: require_writable(locked / "x" / "y"),
            lambda: files.write_json(locked / "x.json", {}),
        ):
            with pytest.raises(InputError, match=rf"^{locked}.*: cannot be .*: Permission denied$"):
                call()
        (task / "imagesTr").chmod(0)
        with pytest.raises(TaskError, match=r"BRATS_001\.nii\.gz cannot be reached: Permission"):
            open_task(task)
        (task / "imagesTr").chmod(0o700)
        (task / "imagesTr" / "BRATS_001.nii.gz").chmod(0)
        assert cli.main(programs[0]) == 1
        assert "BRATS_001.nii.gz: Permission denied" in capsys.readouterr().out
        locked.chmod(0)
        for arguments in programs[1:]:
            assert cli.main(arguments) == 2
            error = capsys.readouterr().err
            assert re.fullmatch(rf"error: {locked}/\S+: .*Permission denied.*\n", error)
