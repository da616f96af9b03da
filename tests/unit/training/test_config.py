from __future__ import annotations

import pytest

from specstream.environment import LEVELS
from specstream.errors import UsageError
from specstream.training import config as configs
from specstream.training.config import ModelSection, read_config, train_config

TEXT = """
recipe: lora
model: {target_model: smollm2-135m}
data:
  domain: code
  files: [a.jsonl]
training:
  num_train_steps: 50
  learning_rate: 5e-4
lora: {r: 8}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_file_is_read_and_overridden(file):
    config = read_config(file, ["training.num_train_steps=7", "data.files=[b.jsonl, c.jsonl]", "data.chat=false"])
    assert (config.recipe, config.lora.r, config.data.domain) == ("lora", 8, "code")
    assert config.training.learning_rate == 5e-4  # which YAML takes for a text
    assert config.training.num_train_steps == 7
    assert config.data.files == ["b.jsonl", "c.jsonl"]
    assert config.data.chat is False
    assert config.training.gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", r"unknown setting 'training.lerning_rate'; known are .*learning_rate"),
        ("speed=1", r"unknown setting 'speed'; known are block, data, .*training"),
        ("training.num_train_steps=0", r"training.num_train_steps is 0; give a value that is greater than or equal"),
        ("training.mixed_precision=int4", r"training.mixed_precision is 'int4'; give .*'bf16'"),
        ("recipe=magic", "recipe is 'magic'"),
        ("model.states_gb=2", "model.states_gb is 2 and model.states_dir is missing; give a folder"),
        ("training.num_train_steps", "--set is 'training.num_train_steps'; give key=value"),
        ("recipe.x=1", "'recipe' is no section"),
        ("data.files=[", "--set data.files is no YAML"),
    ],
)
def test_a_wrong_setting_names_the_value_and_the_remedy(file, override, message):
    with pytest.raises(UsageError, match=message):
        read_config(file, [override])


def test_a_section_of_another_recipe_is_refused(file):
    with pytest.raises(UsageError, match="section 'lora' is given and recipe is 'medusa'"):
        read_config(file, ["recipe=medusa"])


def test_the_shared_recipe_has_two_sections_and_one_can_be_left_out(file):
    sections = ["streams={gamma: 3}"]
    config = read_config(file, ["recipe=shared", *sections])
    assert (config.streams.gamma, config.streams.weight, config.lora.r, config.lora.merge) == (3, 0.1, 8, False)
    with pytest.raises(UsageError, match="section 'streams' is given and recipe is 'lora'"):
        read_config(file, sections)
    assert read_config(file, ["streams=null"]).recipe == "lora"


EXIT = {"train": "early_exit", "start_from": "shipped", "pruning_rank": 8}


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("shared", {}, "streams.train is 'early_exit' and recipe is 'shared'; give recipe: streams"),
        ("streams", {"start_from": None}, "streams.start_from is missing; give 'shipped' or a folder"),
        ("streams", {"pruning_rank": 0}, "streams.pruning_rank is 0; give a rank, such as 8"),
        ("streams", {"gamma": 3}, "streams.gamma is given; leave it out"),
    ],
)
def test_an_early_exit_alone_needs_streams_that_stay(recipe, changes, message):
    assert train_config({"recipe": "streams", "streams": EXIT}).streams.start_from == "shipped"
    with pytest.raises(UsageError, match=message):
        train_config({"recipe": recipe, "streams": {**EXIT, **changes}})


def test_a_task_that_is_not_there_is_refused_with_the_configuration(file):
    assert read_config(file, ["data.task=wikisql"]).data.task == "wikisql"
    with pytest.raises(UsageError, match="task 'chess' is no task"):
        read_config(file, ["data.task=chess"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "holds one list; give keys and values"), ("model: {}", "recipe is missing")],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_config(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", [".inf", ".nan"])
@pytest.mark.parametrize("name", ["training.learning_rate", "lora.alpha"])
def test_a_number_is_finite(file, name, value):
    with pytest.raises(UsageError, match=f"{name} is {value[1:]}; give a value that is"):
        read_config(file, [f"{name}={value}"])


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_training_computes_no_dtype_that_a_library_would_emulate(level, monkeypatch):
    """Whatever our own kernels compute there: training does not run them."""
    monkeypatch.setattr(configs, "level", lambda: level)
    assert ModelSection().dtype_on("cpu") == ("auto" if level.bf16 else "float32")
    assert ModelSection().dtype_on("cuda:0") == "auto"
    assert ModelSection(dtype="bfloat16").dtype_on("cpu") == "bfloat16"
