from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from specstream.demo.offered import OfferedModels, Question
from specstream.errors import UsageError
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "one two three one two three one two"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("models")
    for name, model in {"target": tiny_model(), "draft": tiny_model(noise=0.02)}.items():
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return str(root / "target"), str(root / "draft")


@pytest.fixture(scope="module")
def offered(folders: tuple[str, str]) -> Iterator[OfferedModels]:
    offered = OfferedModels(folders, folders[1], drafter="mixed", gamma=3, runtime="eager")
    yield offered
    offered.close()


def ask(offered: OfferedModels, **changes: Any) -> Any:
    values = {"prompt": TEXT, "model": offered.models[0], "drafter": "mixed", "max_new_tokens": 24}
    (*_, race) = offered.race(Question(**{**values, **changes}), 0.0)
    return race


def test_drafters_are_those_that_the_model_has(offered: OfferedModels, folders: tuple[str, str]) -> None:
    assert offered.load(folders[0]) == ["auto", "draft_model", "mixed"]
    alone = OfferedModels([folders[0]], runtime="eager")
    assert alone.load(folders[0]) == ["auto", "lookup", "recycling", "lookahead"]
    assert alone.drafter == "auto"
    alone.close()


def test_a_depth_that_nothing_reaches_is_said(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    alone = OfferedModels([folders[0]], drafter="lookahead", gamma=9, runtime="eager")
    ask(alone, drafter="lookahead")
    alone.close()
    assert "specstream: lookahead: gamma is 9 and lookahead's window of 4" in capsys.readouterr().err


@pytest.mark.parametrize("drafter", ["auto", "draft_model", "mixed"])
@pytest.mark.parametrize("always", [False, True])
def test_a_race_is_equal_with_every_drafter(offered: OfferedModels, drafter: str, always: bool) -> None:
    race = ask(offered, drafter=drafter, always=always)
    assert race.equal
    assert len(race.plain.row.emitted) > 1
    if always:
        assert race.speculative.row.stats.drafted > 0


def test_another_model_takes_the_place_of_the_first(offered: OfferedModels, folders: tuple[str, str]) -> None:
    first = ask(offered)
    other = ask(offered, model=folders[1], always=True)
    assert other.equal
    assert other.plain.row.emitted != first.plain.row.emitted
    assert ask(offered).plain.row.emitted == first.plain.row.emitted


def test_samples_repeat_with_their_seed(offered: OfferedModels) -> None:
    once, again = (ask(offered, temperature=1.0, seed=5) for _ in range(2))
    assert once.speculative.row.emitted == again.speculative.row.emitted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " \n"}, "is empty"),
        ({"prompt": None}, "prompt is None; give a text"),
        ({"always": "yes"}, "always is 'yes'; give true or false"),
        ({"prompt": "a " * 600}, "shorten it"),
        ({"model": "other"}, "model is 'other', which is not offered; give one of"),
        ({"drafter": "medusa"}, "drafter is 'medusa'; "),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused(offered: OfferedModels, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(offered, **changes)
    assert ask(offered).equal, "and the next question is answered"


def test_a_race_that_is_given_up_leaves_nothing_behind(offered: OfferedModels) -> None:
    values = {"prompt": TEXT, "model": offered.models[0], "drafter": "mixed", "max_new_tokens": 100}
    next(offered.race(Question(**values), 0.0))  # type: ignore[arg-type]
    assert ask(offered).equal


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        ([], {}, "there is no model"),
        (["a"], {"drafter": "draft_model"}, "there is no draft_model"),
        (["a"], {"gamma": 0}, "gamma is 0"),
        (["a"], {"heads": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_offered_is_refused_before_anything_is_loaded(
    models: list[str], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        OfferedModels(models, **settings)
