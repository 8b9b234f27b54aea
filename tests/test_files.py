"""Files that are written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from minibrain import files
from minibrain.errors import InputError
from minibrain.files import replacing


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
    with pytest.raises(InputError, match="cannot be written"):
        files.Lock(tmp_path / ".lock")
