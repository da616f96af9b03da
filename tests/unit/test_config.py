from __future__ import annotations

import pytest

from specstream.config import EngineConfig, GenerationConfig, engine_config, generation_config
from specstream.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gamma": -1}, ["gamma is -1", "greater than or equal to 1"]),
        ({"temperature": -0.5}, ["temperature is -0.5", "greater than or equal to 0"]),
        ({"top_p": -1.0}, ["top_p is -1.0", "greater than 0"]),
        ({"top_p": 1.5}, ["top_p is 1.5", "less than or equal to 1"]),
        ({"max_new_tokens": 0}, ["max_new_tokens is 0"]),
        ({"acceptance_threshold": 2.0}, ["acceptance_threshold is 2.0"]),
        ({"drafter": "magic"}, ["drafter is 'magic'", "'lookup'"]),
        ({"gama": 4}, ["unknown setting 'gama'", "gamma"]),
    ],
)
def test_a_bad_setting_is_one_line_with_the_value_and_the_remedy(settings, words):
    with pytest.raises(UsageError) as caught:
        engine_config(settings)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["generation", "generation_config"])
def test_settings_of_a_generation_are_given_by_name(name):
    whole = GenerationConfig(max_new_tokens=5)
    for call in (lambda: engine_config({name: whole}), lambda: generation_config(GenerationConfig(), {name: whole})):
        with pytest.raises(UsageError, match=rf"^{name} is GenerationConfig.*; give its settings by name") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_not_given_keeps_all_tokens_as_the_class_says():
    assert "all tokens are kept" in (GenerationConfig.__doc__ or "")
    assert (GenerationConfig().top_k, GenerationConfig().top_p, GenerationConfig().temperature) == (0, 1.0, 0.0)


def test_torch_dtype_is_dtype():
    assert engine_config({"torch_dtype": "float32"}).dtype == "float32"


def test_sampling_settings_become_defaults():
    config = engine_config({"temperature": 0.7, "gamma": 3})
    assert (config.gamma, config.generation.temperature) == (3, 0.7)


def test_one_call_overrides_the_defaults_and_leaves_them():
    defaults = GenerationConfig(temperature=0.7, max_new_tokens=5)
    changed = generation_config(defaults, {"temperature": 0.0})
    assert (changed.temperature, changed.max_new_tokens, defaults.temperature) == (0.0, 5, 0.7)
    with pytest.raises(UsageError, match="gamma is a setting of the engine"):
        generation_config(defaults, {"gamma": 3})  # how far to speculate is the engine's


def test_defaults_are_lossless_and_greedy():
    config = EngineConfig()
    assert config.acceptance_threshold is None
    assert config.generation.sampling().greedy
