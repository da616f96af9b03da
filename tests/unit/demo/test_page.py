from __future__ import annotations

from pathlib import Path

import pytest

from specstream.demo.page import name_of, seed_of
from specstream.errors import UsageError


@pytest.mark.parametrize(("typed", "seed"), [("", None), ("  ", None), ("0", 0), (" 42 ", 42), ("9" * 18, 10**18 - 1)])
def test_a_seed_is_a_number_or_nothing(typed: str, seed: int | None) -> None:
    assert seed_of(typed) == seed


@pytest.mark.parametrize("typed", ["-1", "1.5", "seven", "²", "٣", "1" * 19, "9" * 5000])
def test_what_is_no_seed_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="give a whole number of 0 or more"):
        seed_of(typed)


@pytest.mark.parametrize("given", [None, 5, ["1"]])
def test_a_program_that_sends_no_text_is_told(given: object) -> None:
    with pytest.raises(UsageError, match=r"seed is .*; give a text of digits, or an empty one"):
        seed_of(given)  # type: ignore[arg-type]


def test_a_folder_is_called_by_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert name_of(str(tmp_path / "mine")) == name_of(str(tmp_path / "mine") + "/") == "mine"
    assert name_of("owner/name") == "owner/name"
