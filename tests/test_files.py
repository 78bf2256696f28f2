"""Files appear whole or not at all, and what dead processes left behind goes."""

import os
import subprocess
import sys
import time

import pytest

from mask2former import files
from mask2former.files import remove_leftovers, replacing, write_bytes, write_text


@pytest.mark.parametrize(
    "write", [lambda path: write_bytes(path, b"a\n\xc3\xa9"), lambda path: write_text(path, "a\né")]
)
def test_written_files_hold_the_content_alone(tmp_path, write):
    path = tmp_path / "new" / "folder" / "file.txt"
    write(path)
    write(path)
    assert path.read_bytes() == b"a\n\xc3\xa9"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "w.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_dead_processes_go(tmp_path):
    code = """
import os, sys
from mask2former.files import replacing
with replacing(sys.argv[1], suffix=sys.argv[2]) as temporary:
    temporary.write_bytes(b"half")
    os._exit(9)
"""
    path = tmp_path / "model.0.pth"
    subprocess.run([sys.executable, "-c", code, str(path), ""], check=False)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "below" / "a.mp4"), ".mp4"], check=False)
    leftover, below = sorted(tmp_path.rglob(".*.tmp*"), key=lambda file: len(file.parts))
    assert leftover.name.startswith(".model.0.pth.")
    assert below.suffix == ".mp4"
    elsewhere = [tmp_path / f".{age}.pth.other_host-1.tmp" for age in ("young", "old")]
    for file in (*elsewhere, tmp_path / ".mine.tmp", tmp_path / "notes.host-1.tmp"):
        file.touch()
    os.utime(elsewhere[1], (time.time() - 2 * 24 * 3600,) * 2)
    with replacing(path) as running:
        running.write_bytes(b"whole")
        remove_leftovers(tmp_path)
        assert running.exists()
        assert not leftover.exists()
        assert not below.exists()
    below.parent.rmdir()
    remove_leftovers(tmp_path / "absent")
    left = {".young.pth.other_host-1.tmp", ".mine.tmp", "notes.host-1.tmp", "model.0.pth"}
    assert {file.name for file in tmp_path.iterdir()} == left


def test_leftovers_of_another_users_living_process_stay(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError

    file = tmp_path / f".a.{files._HOST}-1.tmp"
    file.touch()
    monkeypatch.setattr(os, "kill", refuse)
    remove_leftovers(tmp_path)
    assert file.exists()
