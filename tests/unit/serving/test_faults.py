from __future__ import annotations

import json
import pickle

import pytest

from specstream.engine.text import encode
from specstream.errors import MissingPackageError, UsageError
from specstream.serving.faults import FieldError, fault

SECRET = "xyzzy plugh"


def test_a_library_s_error_is_its_kind_and_its_place_without_its_words() -> None:
    with pytest.raises(ValueError, match=SECRET) as caught:
        raise ValueError(SECRET)
    line = fault(caught.value)
    assert line.startswith("ValueError in ")
    assert "test_faults.py:" in line
    with pytest.raises(json.JSONDecodeError) as caught_too:
        json.loads(SECRET)
    assert "decoder.py:" in fault(caught_too.value)
    for error in (caught, caught_too):
        assert SECRET not in fault(error.value)
        assert len(fault(error.value).splitlines()) == 1


def test_it_says_which_of_our_lines_led_there() -> None:
    class Broken:
        def __call__(self, prompt: str) -> dict[str, list[int]]:
            raise KeyError(prompt)

    with pytest.raises(KeyError) as caught:
        encode(Broken(), SECRET)
    line = fault(caught.value)
    assert "test_faults.py:" in line
    assert "from " in line
    assert "specstream/engine/text.py:" in line
    assert SECRET not in line


def test_our_own_words_are_told_unless_they_quote_a_value() -> None:
    assert "pip install" in fault(MissingPackageError("run: pip install a"))
    assert SECRET not in fault(UsageError(f"the prompt {SECRET!r} is empty"))


def test_an_error_of_a_field_goes_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(FieldError("port is 0; give another", "port")))
    assert (str(again), again.param) == ("port is 0; give another", "port")
