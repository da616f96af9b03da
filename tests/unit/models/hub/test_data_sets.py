"""A hub that is out of reach is asked once; what is kept of it is still read."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from specstream.models.hub.data_sets import load_dataset


@pytest.fixture
def datasets():
    """In place of the package: it tells whether it was offline, as it then asks nobody."""
    config = SimpleNamespace(HF_HUB_OFFLINE=False)
    return SimpleNamespace(config=config, load_dataset=lambda name, *args, **settings: config.HF_HUB_OFFLINE)


def _answer(monkeypatch, error=None):
    asked = []

    def dataset_info(self, name, timeout):
        asked.append(name)
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return asked


def test_a_hub_that_is_out_of_reach_is_not_asked_again(monkeypatch, datasets):
    asked = _answer(monkeypatch, OSError("no route"))
    assert load_dataset(datasets, "org/a", split="test") is True
    assert (asked, datasets.config.HF_HUB_OFFLINE) == (["org/a"], False)


def test_a_hub_that_answers_is_asked_by_the_package(monkeypatch, datasets, tmp_path):
    missing = errors.RepositoryNotFoundError("none", response=httpx.Response(404, request=httpx.Request("GET", "x:y")))
    for error in (None, missing):
        _answer(monkeypatch, error)
        assert load_dataset(datasets, "org/a") is False
    asked = _answer(monkeypatch, OSError("no route"))
    assert load_dataset(datasets, str(tmp_path)) is False
    datasets.config.HF_HUB_OFFLINE = True
    assert load_dataset(datasets, "org/a") is True
    assert asked == []
