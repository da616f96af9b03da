"""What is written under a temporary name first, and what is never replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from specstream.errors import UsageError
from specstream.files.atomic import check_new, read_lines, whole, write_json, write_whole


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _link(folder: Path) -> Path:
    (folder / "link").symlink_to(_fifo(folder))
    return folder / "link"


@pytest.mark.parametrize("made", [_fifo, _link, lambda folder: Path("/dev/null")])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: check_new(path, "--output", lambda _: True),
        lambda path: write_whole(path, "text"),
        lambda path: write_json(path, {}),
    ],
)
def test_a_device_or_a_pipe_is_refused_and_stays_one(tmp_path, monkeypatch, made, write):
    monkeypatch.setattr(os, "replace", lambda *of: pytest.fail(f"replaced {of[1]}"))  # this may run as root
    path = made(tmp_path)
    with pytest.raises(UsageError, match=r"is a device or a pipe; give the name of a file"):
        write(path)
    assert not stat.S_ISREG(path.stat().st_mode)


def test_what_cannot_be_written_is_called_by_the_name_that_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "no" / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "no" / "a.txt")


def test_what_fails_half_way_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "record.json"
    write_whole(path, "before")
    with pytest.raises(RuntimeError, match="half way"), whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError("half way")
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == "before"


def test_lines_are_read_up_to_what_a_killed_process_left(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"text": "a\u2028b"}\n\n[1]\n{"text": "c', encoding="utf-8")
    assert read_lines(path) == [{"text": "a\u2028b"}]
    path.write_bytes('{"text": "a"}\n{"text": "\u2028'.encode()[:-1])  # within a character
    assert read_lines(path) == [{"text": "a"}]
    path.write_bytes(b'{"text": "\xff"}\n')  # nobody was killed there
    with pytest.raises(UnicodeDecodeError):
        read_lines(path)
