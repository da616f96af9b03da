"""A base that is trained together with its streams: a new model, and streams that belong to it and to no other."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from specstream import SpeculativeEngine
from specstream.errors import HeadMismatchError, UsageError
from specstream.heads.streams import Streams
from specstream.training.config import train_config
from specstream.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.training.short_run import rows, short

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "name[7], food[9]\nText:\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base and a task's file."""
    root = tmp_path_factory.mktemp("made")
    tiny_model().save_pretrained(root / "target")
    tiny_tokenizer().save_pretrained(root / "target")
    rows = [f'"name[{at}], food[{at % 5}]",the cat {at} sat on the mat with the dog {at % 5}' for at in range(40)]
    (root / "e2e.csv").write_text("\n".join(["mr,ref", *rows]) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def config(made, tmp_path):
    def build(recipe="shared", model=None, **training):
        values = {
            "recipe": recipe,
            "model": {"target_model": str(made / "target"), "dtype": "float32", "device": "cpu", **(model or {})},
            "data": {"task": "e2e-nlg", "files": [str(made / "e2e.csv")], "eval_examples": 6, "max_length": 64},
            "streams": {"gamma": 2, "layers": 1, "rank": 4, "start": "linear", "vocabulary": 200}
            if recipe == "shared"
            else None,
            "lora": {"r": 4, "merge": True},
            **short(tmp_path / "run", **training),
        }
        return train_config(values)

    return build


def test_base_and_streams_learn_and_are_bound_to_each_other(config, made, tmp_path):
    outcome = train(config(num_train_steps=48), quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    first, last = (row for row in log if row["step"] in (0, 48) and "eval/loss" in row)
    assert last["eval/next_loss"] < 0.8 * first["eval/next_loss"]
    assert last["eval/loss"] - last["eval/next_loss"] < 0.8 * (first["eval/loss"] - first["eval/next_loss"])
    assert last["eval/accepted_length"] > first["eval/accepted_length"]
    assert outcome.progress.best == last["eval/loss"]

    best = tmp_path / "run" / "best"
    model = AutoModelForCausalLM.from_pretrained(best / "model")
    assert model.dtype == torch.bfloat16
    streams = Streams.from_pretrained(best / "streams", model)
    assert streams.config.mode == "shared"
    assert streams.details["figures"]["accepted_length"] == last["eval/accepted_length"]
    assert json.loads((best / "streams" / "config.json").read_text())["base_parameters"] == model.num_parameters()
    with pytest.raises(HeadMismatchError, match="tuned in run"):
        Streams.from_pretrained(best / "streams", tiny_model())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_streams_are_lossless_over_the_new_model(config, tmp_path, dtype):
    train(config(num_train_steps=32), quiet=True)
    best = tmp_path / "run" / "best"
    settings = {"dtype": dtype, "max_new_tokens": 40, "ignore_eos": True}
    plain = SpeculativeEngine(str(best / "model"), drafter="none", **settings).generate(PROMPT)
    drafted = SpeculativeEngine(str(best / "model"), heads=str(best / "streams"), adaptive=False, **settings).generate(
        PROMPT
    )
    assert drafted.token_ids == plain.token_ids
    assert drafted.drafter == "streams"
    assert drafted.acceptance_rate > 0
    own = tiny_model().to(getattr(torch, dtype))
    base = SpeculativeEngine(own, tiny_tokenizer(), drafter="none", **settings).generate(PROMPT)
    assert base.token_ids != plain.token_ids, "it is another model"


def test_a_run_that_was_stopped_ends_in_the_same_bits(config, tmp_path):
    train(config(output_dir=str(tmp_path / "whole")), quiet=True)
    for _ in range(8):
        outcome = train(config(max_seconds=1e-9), quiet=True)
    assert outcome.finished
    for part in ("model/model.safetensors", "streams/heads.safetensors"):
        expected, got = (
            load_file(tmp_path / name / "checkpoints" / "step-00000008" / part) for name in ("whole", "run")
        )
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_the_same_fine_tuning_without_streams_writes_a_model_too(config, tmp_path):
    train(config("lora", num_train_steps=32), quiet=True)
    best = tmp_path / "run" / "best"
    assert (best / "adapter_model.safetensors").exists()
    tuned = SpeculativeEngine(str(best / "model"), drafter="none", max_new_tokens=8)
    assert tuned.generate(PROMPT).token_ids != tuned_free_tokens()


def tuned_free_tokens():
    engine = SpeculativeEngine(tiny_model().bfloat16(), tiny_tokenizer(), drafter="none", max_new_tokens=8)
    return engine.generate(PROMPT).token_ids


@pytest.mark.parametrize("recipe", ["shared", "lora"])
def test_both_begin_with_the_same_adapter(config, recipe):
    """So that a comparison of the two compares what streams change, and not chance."""
    from importlib import import_module

    from specstream.training.run import RECIPES

    trainee, _ = import_module(RECIPES[recipe]).prepare(config(recipe), "cpu")
    first = next(iter(trainee.parameters()))
    torch.manual_seed(0)
    expected, _ = import_module(RECIPES["lora"]).prepare(config("lora"), "cpu")
    assert torch.equal(first, next(iter(expected.parameters())))


@pytest.mark.parametrize(
    ("name", "value"),
    [("model.states_dir", "states"), ("streams.start_from", "other"), ("streams.soften", 0.5)],
)
def test_what_needs_a_frozen_base_is_refused(config, name, value):
    values = config().model_dump(exclude_unset=True)
    section, _, key = name.partition(".")
    values[section][key] = value
    with pytest.raises(UsageError, match=f"{name} is .* and recipe 'shared' trains the base too; leave it out"):
        train(train_config(values), quiet=True)
