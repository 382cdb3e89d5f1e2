"""A file is there with all its content, or as it was before."""

import os
import subprocess
import sys

import pytest

from lightning_weights.functional.whole_files import replacing_file

KILLED = """
import os, sys
from lightning_weights.functional.whole_files import replacing_file
with replacing_file(sys.argv[1]) as part:
    part.write_text("half of the n")
    os._exit(1)
"""


def test_content_replaces_the_file_in_a_new_folder(tmp_path):
    path = tmp_path / "deep" / "folder" / "file.txt"
    for content in ("old", "new"):
        with replacing_file(str(path)) as part:
            part.write_text(content)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == content
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_halfway():
        with replacing_file(path) as part:
            part.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_the_old_file_or_of_new_files(tmp_path):
    path, other = tmp_path / "file.txt", tmp_path / "other.txt"
    other.touch()

    def write_for_the_owner_only():
        with replacing_file(path) as part:
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))

    write_for_the_owner_only()
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o640)
    write_for_the_owner_only()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 1
    assert path.read_text() == "old"
    with replacing_file(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
