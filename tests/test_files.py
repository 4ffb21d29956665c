"""Files that are whole or not there, and disks that are full."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from eyegraft.errors import PartError, RunError
from eyegraft.files import copy_whole, disk_errors, file_sha256, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "neu 한글\r\n\n")
    assert path.read_bytes() == "neu 한글\r\n\n".encode()
    write_atomically(path, b"\x00\xff", durable=False)
    assert path.read_bytes() == b"\x00\xff"
    write_atomically(path, (f"{number}\n" for number in range(3)))
    assert path.read_bytes() == b"0\n1\n2\n"
    write_atomically(path, b"\x00\xff", durable=False)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "half")
    assert path.read_bytes() == b"\x00\xff"
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, (str(1 / number) for number in (2, 1, 0)))
    assert path.read_bytes() == b"\x00\xff"
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    texts = [str(number) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / "a", text), kwargs={"durable": False}) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in texts
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 300_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 300_000).hexdigest()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_what_is_safe(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError, match="no room to write") as caught, disk_errors(tmp_path):
        raise OSError(number, "full")
    assert "last whole checkpoint" in caught.value.fix
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(PartError), disk_errors(tmp_path):
        raise PartError(f"told already (os error {number})")


def test_writing_to_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"no room to write .*a\.json"):
        write_atomically(tmp_path / "a.json", "text")
    assert not list(tmp_path.iterdir())


def test_a_copy_is_made_whole_and_a_whole_one_is_left(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "new" / "b"
    source.write_bytes(b"abc")
    copy_whole(source, target)
    before = target.stat().st_mtime_ns
    copy_whole(source, target)
    assert target.stat().st_mtime_ns == before
    target.write_bytes(b"ab?")  # of the same size
    copy_whole(source, target)
    assert target.read_bytes() == b"abc"
    assert [item.name for item in target.parent.iterdir()] == ["b"]
