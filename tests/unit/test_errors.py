"""An unknown name is answered with the one that was meant, and a setting at the wrong place with the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from specstream import DeploymentConfig
from specstream.cli.options import check_drafter
from specstream.config import GenerationConfig, engine_config, generation_config
from specstream.engine.settings_file import read_settings
from specstream.errors import ELSEWHERE, UsageError, closest, listed, remedy
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


@pytest.mark.parametrize(
    ("whole", "given", "told"),
    [
        (True, "1e3", "1000"),
        (True, "1,000", "1000"),
        (True, "2.5k", "2500"),
        (True, "300K", "300000"),
        (True, "2M", "2000000"),
        (True, "2GB", "a whole number alone, in the unit that its name or the help says"),
        (True, "1.5", "a value that is a whole number"),
        (True, "1e-3", "a value that is a whole number"),
        (True, "8x", "a value that is a whole number"),
        (True, 1.5, "a value that is a whole number"),
        (False, "0,7", "0.7, with a point"),
        (False, "95%", "0.95"),
        (False, "30 min", "a number alone, in the unit that its name or the help says"),
        (False, "high", "a value that is a number"),
    ],
)
def test_a_number_that_is_written_as_none_is_written_out(whole, given, told):
    kind = "integer, unable to parse string as an integer" if whole else "number, unable to parse string as a number"
    assert remedy(f"Input should be a valid {kind}", given) == told


@pytest.mark.parametrize(
    ("choices", "given", "told"),
    [
        ("'none', 'int8' or 'int4'", "4bit", "did you mean 'int4'?"),
        ("'none', 'int8' or 'int4'", 8, "did you mean 'int8'?"),
        ("'auto', 'none' or 'lookup'", "ngram", "did you mean 'lookup'?"),
        ("'auto', 'none' or 'lookup'", "Lookup", "did you mean 'lookup'?"),
        ("'auto', 'none' or 'lookup'", "banana", "'lookup'"),
        ("'auto' or 'none'", ["auto"], "'none'"),
    ],
)
def test_a_value_is_answered_with_the_one_that_is_meant(choices, given, told):
    assert remedy(f"Input should be {choices}", given).endswith(told)
