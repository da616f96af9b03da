from __future__ import annotations

import copy
import sys
import warnings

import pytest
import torch

from specstream import LoRAAdapter, SpeculativeEngine
from specstream.errors import MissingPackageError, UsageError
from tests.lossless import families
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("peft")

CONFIG = {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj", "o_proj"]}
TEXTS = ["one two three four five six seven eight nine ten", "the cat sat on the mat and the dog sat on the cat"]


def adapter(seed: int = 0, **settings) -> LoRAAdapter:
    torch.manual_seed(seed)
    return LoRAAdapter(base_model=tiny_model(), lora_config={**CONFIG, **settings}, tokenizer=tiny_tokenizer())


def logits(model) -> torch.Tensor:
    return model(torch.tensor([[5, 9, 70, 80]])).logits.detach()


@pytest.fixture(scope="module")
def trained() -> LoRAAdapter:
    made = adapter()
    made.train(TEXTS, epochs=8, learning_rate=0.02, max_length=32)
    return made


def test_warnings_are_filtered_while_peft_is_called_and_no_longer():
    before = list(warnings.filters)
    LoRAAdapter(tiny_model(), {"r": 2})
    assert list(warnings.filters) == before


def test_a_warm_up_beyond_the_last_step_is_announced(capsys):
    LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer()).train(TEXTS, epochs=1, warmup_steps=500)
    assert "warmup_steps is 500 and num_train_steps is " in capsys.readouterr().err
    LoRAAdapter(tiny_model(), {"r": 2}, tiny_tokenizer()).train(TEXTS, epochs=1)
    assert "warmup_steps" not in capsys.readouterr().err


def test_a_fresh_adapter_changes_nothing():
    assert torch.equal(logits(adapter().get_adapted_model()), logits(tiny_model()))


@pytest.mark.parametrize(
    "data",
    [
        TEXTS,
        [{"prompt": "one two", "completion": "three four"}, {"prompt": "the cat", "completion": "sat on the mat"}],
        [{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three four"}]}] * 2,
        [[70, 71, 72, 73, 74, 75], [90, 91, 92, 93]],
    ],
    ids=["texts", "completions", "chats", "token ids"],
)
def test_the_loss_falls_and_the_base_stays(data):
    made, base = adapter(), tiny_model()
    log = made.train(data, epochs=12, batch_size=2, learning_rate=0.02)
    assert log[-1]["loss"] < log[0]["loss"]
    assert (log[0]["epoch"], log[-1]["epoch"]) == (1, 12)
    own = {name.replace(".base_layer", ""): each for name, each in made.get_adapted_model().named_parameters()}
    assert all(torch.equal(own[name], each) for name, each in base.named_parameters())
    assert not torch.equal(logits(made.get_adapted_model()), logits(base))


def test_training_repeats_with_its_seed():
    made = [adapter(), adapter(), adapter()]
    for each, seed in zip(made, (1, 1, 2), strict=True):
        each.train(TEXTS, epochs=2, batch_size=1, seed=seed, learning_rate=0.02)
    first, again, other = (logits(each.get_adapted_model()) for each in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_are_saved_and_loaded(trained, tmp_path):
    trained.save_weights(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    fresh = adapter(seed=9)
    fresh.load_weights(tmp_path / "adapter")
    assert torch.equal(logits(fresh.get_adapted_model()), logits(trained.get_adapted_model()))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_the_folder_is_one_that_peft_reads(trained, tmp_path):
    from peft import PeftModel

    trained.save_weights(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    assert torch.equal(logits(theirs), logits(trained.get_adapted_model()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"r": 8}, "have r 4 and this adapter has 8"), ({"target_modules": ["q_proj"]}, "have target_modules")],
)
def test_weights_of_another_shape_are_refused(trained, tmp_path, settings, message):
    trained.save_weights(tmp_path)
    with pytest.raises(UsageError, match=message):
        adapter(**settings).load_weights(tmp_path)
    with pytest.raises(UsageError, match="holds no LoRA weights"):
        adapter().load_weights(tmp_path / "nothing")


def test_parameters_are_counted():
    stats = adapter().get_parameter_stats()
    # Two layers: q and o are 48 x 48, v is 24 x 48.
    assert stats["trainable"] == 2 * 4 * ((48 + 48) * 2 + 24 + 48)
    assert stats["total"] == stats["trainable"] + sum(each.numel() for each in tiny_model().parameters())
    assert stats["percent"] == pytest.approx(100 * stats["trainable"] / stats["total"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [False, True])
def test_the_adapted_model_is_a_lossless_target(trained, merge, dtype, tmp_path):
    """Its speculative output is its own greedy output, token for token, and not the base's."""
    trained.save_weights(tmp_path)
    base = tiny_model().to(dtype)
    made = LoRAAdapter(base, CONFIG)
    made.load_weights(tmp_path)
    model = made.get_adapted_model(merge=merge)
    outputs = {}
    for drafter in ("none", "lookup"):
        engine = SpeculativeEngine(model, tiny_tokenizer(), drafter=drafter, adaptive=False)
        results = [engine.generate(text, max_new_tokens=40, ignore_eos=True) for text in (*TEXTS, "one two one two")]
        outputs[drafter] = [result["token_ids"] for result in results]
        assert {result["exact"] for result in results} == {"bits"}
    assert outputs["lookup"] == outputs["none"]
    base = SpeculativeEngine(tiny_model().to(dtype), tiny_tokenizer(), drafter="none")
    assert base.generate(TEXTS[0], max_new_tokens=40, ignore_eos=True)["token_ids"] != outputs["none"][0]
    if dtype == torch.float32:
        ids = tiny_tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
        own = model.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
        assert own.tolist() == outputs["none"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "unknown setting 'lora_config.rank'; known are alpha, dropout, r, target_modules"),
        ({"r": 0}, "lora_config.r is 0"),
        (
            {"target_modules": ["q_proj", "w_proj"]},
            "target_modules has 'w_proj', which this model has not; give some of down_proj, gate_proj, k_proj, o_proj",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        LoRAAdapter(tiny_model(), settings)


def test_peft_names_are_taken():
    made = LoRAAdapter(tiny_model(), {"r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ("q_proj",)})
    assert made.config == {"r": 2, "alpha": 4.0, "dropout": 0.2, "target_modules": ["q_proj"]}


def test_wrong_training_data_is_refused():
    with pytest.raises(UsageError, match="training_data is empty"):
        adapter().train([])
    with pytest.raises(UsageError, match="epochs is 0"):
        adapter().train(TEXTS, epochs=0)
    with pytest.raises(UsageError, match="unknown setting 'speed'"):
        adapter().train(TEXTS, speed=3)
    with pytest.raises(UsageError, match="give LoRAAdapter tokenizer="):
        LoRAAdapter(tiny_model(), CONFIG).train(TEXTS)


def test_without_peft_the_error_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install '.\[train\]'"):
        LoRAAdapter(tiny_model(), CONFIG)


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("llama", ["q_proj", "v_proj", "o_proj"]),
        ("gpt2", ["c_attn", "attn.c_proj"]),
        ("bloom", ["query_key_value", "dense"]),
        ("opt", ["q_proj", "v_proj", "out_proj"]),
        ("phi", ["q_proj", "v_proj", "dense"]),
        ("gpt_neox", ["query_key_value", "dense"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_each_family_has_modules_of_its_own_that_learn(family, modules, tmp_path):
    torch.manual_seed(0)
    made = LoRAAdapter(copy.deepcopy(families.build(family)), {"r": 2})
    assert made.config["target_modules"] == modules
    before = logits(made.get_adapted_model())
    made.train([[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 11]], epochs=4, learning_rate=0.05)
    after = logits(made.get_adapted_model())
    assert not torch.allclose(before, after)
    merged = made.get_adapted_model(merge=True)
    torch.testing.assert_close(logits(merged), after, rtol=1e-3, atol=1e-4)
    made.save_weights(tmp_path)
    again = LoRAAdapter(copy.deepcopy(families.build(family)), {"r": 2})
    again.load_weights(tmp_path)
    assert torch.equal(logits(again.get_adapted_model()), after)


@pytest.mark.parametrize(
    ("family", "remedy"), [("gpt2", "c_attn, c_fc, c_proj"), ("opt", "fc1, fc2, k_proj, out_proj")]
)
def test_a_module_of_another_family_is_refused_with_those_that_would_do(family, remedy):
    with pytest.raises(UsageError, match=f"'o_proj', which this model has not; give some of {remedy}"):
        LoRAAdapter(copy.deepcopy(families.build(family)), {"target_modules": ["o_proj"]})


def test_a_name_is_no_base_model():
    with pytest.raises(UsageError, match="no transformers model"):
        LoRAAdapter("gpt2")


@pytest.mark.parametrize("data", ["one two three", {"text": "one"}])
def test_one_text_is_no_training_data(data):
    with pytest.raises(UsageError, match="training_data is one"):
        adapter().train(data)
