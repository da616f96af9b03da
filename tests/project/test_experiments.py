"""Records of experiments: every file has the whole head, and the index is made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import experiments
from tools.experiments import FIELDS, FOLDER, index, read, read_all

FILES = sorted(file for file in FOLDER.glob("*.md") if file.name != "index.md")
HEAD = {
    "Date": "2026-11-28",
    "Commit": "abc1234",
    "Machine": "a machine",
    "Prediction": "not recorded",
    "Figure": "1.5",
    "Verdict": "Met. As predicted",
    "Command": "`make bench`",
}


def record(folder: Path, name: str, **changes: str | None) -> Path:
    """A record with some fields changed, or left out where they are None."""
    rows = "".join(f"| {key} | {value} |\n" for key, value in {**HEAD, **changes}.items() if value is not None)
    file = folder / name
    file.write_text(f"# A title\n\n| | |\n|---|---|\n{rows}\nText.\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem[:4])
def test_a_record_has_the_whole_head(file: Path) -> None:
    assert tuple(read(file).head) == FIELDS


def test_the_index_is_up_to_date() -> None:
    assert len(FILES) >= 65
    assert (FOLDER / "index.md").read_text(encoding="utf-8") == index(read_all(FOLDER))


def test_the_index_begins_with_the_newest(tmp_path: Path) -> None:
    record(tmp_path, "0001-first.md")
    record(tmp_path, "0002-second.md", Verdict="Missed. By 3 %")
    lines = index(read_all(tmp_path)).splitlines()
    assert lines[-2:] == [
        "| 0002 | [A title](0002-second.md) | 2026-11-28 | Missed. By 3 % |",
        "| 0001 | [A title](0001-first.md) | 2026-11-28 | Met. As predicted |",
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_missing_is_said_with_the_file(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=r"0001-first\.md: begin with '# Title' and a table of Date"):
        read(record(tmp_path, "0001-first.md", **{field: None}))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("first.md", {}, r"first\.md: name it NNNN-title\.md"),
        ("0001-first.md", {"Date": "28 November"}, "'28 November' is no date; write it as 2026-11-28"),
        ("0001-first.md", {"Verdict": "Good"}, "'Good': begin with one of Confirmed, Refuted"),
    ],
)
def test_a_head_of_another_form_is_one_line(tmp_path: Path, name: str, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(record(tmp_path, name, **changes))


def test_numbers_follow_each_other_and_the_dates(tmp_path: Path) -> None:
    record(tmp_path, "0001-first.md")
    record(tmp_path, "0003-third.md")
    with pytest.raises(ValueError, match="the next number is 0002"):
        read_all(tmp_path)
    (tmp_path / "0003-third.md").unlink()
    record(tmp_path, "0002-second.md", Date="2026-11-27")
    with pytest.raises(ValueError, match="number records in order of time"):
        read_all(tmp_path)


def test_the_command_writes_the_index_and_checks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    record(tmp_path, "0001-first.md")
    assert experiments.main(["--check"]) == 1
    assert "run python -m tools.experiments" in capsys.readouterr().err
    assert experiments.main([]) == 0 and experiments.main(["--check"]) == 0
    record(tmp_path, "0002-second.md")
    assert experiments.main(["--check"]) == 1
    record(tmp_path, "0002-second.md", Machine=None)
    assert experiments.main([]) == 1
    assert "0002-second.md" in capsys.readouterr().err
