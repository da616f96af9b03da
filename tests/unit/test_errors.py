"""An unknown name is answered with the one that was meant, and a setting at the wrong place with the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from specstream import DeploymentConfig
from specstream.cli.options import check_drafter
from specstream.config import GenerationConfig, engine_config, generation_config
from specstream.engine.settings_file import read_settings
from specstream.errors import ELSEWHERE, UsageError, closest, listed
from specstream.training.config import train_config


def test_the_closest_name_is_suggested_and_no_strange_one():
    known = ["max_new_tokens", "temperature", "gamma"]
    assert closest("max_new_token", known) == "max_new_tokens"
    assert closest("Gamma", known) == "gamma"
    assert closest("banana", known) is None
    assert listed("temprature", known) == "gamma, max_new_tokens, temperature; did you mean 'temperature'?"
    assert listed("banana", known) == "gamma, max_new_tokens, temperature"


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: engine_config({"gama": 4}), "gamma"),
        (lambda: generation_config(GenerationConfig(), {"temprature": 1}), "temperature"),
        (lambda: DeploymentConfig(max_row=4), "max_rows"),
        (lambda: train_config({"recipe": "streams", "trainig": {}}), "training"),
        (lambda: check_drafter("lokup"), "lookup"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_one_that_is_meant(call, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        call()


def test_a_misspelt_key_of_a_file(tmp_path):
    (tmp_path / "engine.yaml").write_text("model: gpt2\ndraftr: lookup\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"engine.yaml:2: unknown setting 'draftr'.*did you mean 'drafter'"):
        read_settings(tmp_path / "engine.yaml")


@pytest.mark.parametrize("name", ["drafter", "gamma", "device"])
def test_a_setting_of_the_engine_in_a_call_is_said_where_it_belongs(name):
    with pytest.raises(UsageError, match=f"^{name} is a setting of the engine; give it to SpeculativeEngine$"):
        generation_config(GenerationConfig(), {name: "auto"})


@pytest.mark.parametrize("settings", [{"port": "x"}, {"gama": 1}, {"max_rows": 0}, {"api_key": ""}])
def test_a_wrong_deployment_is_one_line(settings):
    with pytest.raises(UsageError) as error:
        DeploymentConfig(**settings)
    assert "\n" not in str(error.value) and "pydantic" not in str(error.value)


def test_a_path_is_taken_where_a_folder_is_named():
    assert engine_config({"heads": Path("a/b")}).heads == "a/b"


@pytest.mark.parametrize(
    ("name", "ours"),
    [("assistant_model", "draft_model"), ("draft", "draft_model"), ("num_assistant_tokens", "gamma"), ("K", "gamma")],
)
def test_what_others_call_a_setting_of_the_engine(name, ours):
    with pytest.raises(UsageError, match=f"did you mean '{ours}'"):
        engine_config({name: 4})


@pytest.mark.parametrize(("name", "ours"), [("do_sample", "temperature"), ("max_length", "max_new_tokens")])
def test_what_others_call_a_setting_of_a_generation(name, ours):
    with pytest.raises(UsageError, match=f"did you mean '{ours}'"):
        generation_config(GenerationConfig(), {name: 4})


def test_every_name_of_others_stands_for_another_one():
    assert all(name not in ours for name, ours in ELSEWHERE.items())
