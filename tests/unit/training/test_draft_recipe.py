"""Drafts through the whole of training, on a tiny target: by text and by distillation, of all tokens and of some."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from specstream.errors import UsageError, VocabularyMismatchError
from specstream.models.hub.vocabulary import cut_head, write_part
from specstream.training.config import train_config
from specstream.training.data import Example, Examples
from specstream.training.distillation import Teacher
from specstream.training.recipes.draft import TrainedDraft, prepare
from specstream.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.training.short_run import rows, short

pytestmark = pytest.mark.usefixtures("one_thread")

PART = torch.arange(0, 300, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a target, its own answers, and drafts: a noisy copy, and one that says every second token."""
    root = tmp_path_factory.mktemp("made")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for name in ("target", "draft", "part"):
        (model if name == "target" else tiny_model(noise=0.12)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    write_part(root / "part", PART)
    chance = torch.Generator().manual_seed(1)
    lines = []
    for _ in range(40):
        prompt = torch.randint(2, 300, (1, 5), generator=chance)
        answer = model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 5:]
        lines.append(json.dumps({"prompt_token_ids": prompt[0].tolist(), "answer_token_ids": answer.tolist()}))
    (root / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def config(made, tmp_path):
    def build(draft="draft", distillation=None, section=None, model=None, **training):
        return train_config(
            {
                "recipe": "draft",
                "model": {
                    "target_model": str(made / "target"),
                    "draft_model": str(made / draft),
                    "dtype": "float32",
                    "device": "cpu",
                    "states_dir": str(tmp_path / "states"),
                    **(model or {}),
                },
                "data": {
                    "files": [str(made / "answers.jsonl")],
                    # A random target has nothing to generalise: what is seen is what can be learned.
                    "eval_files": [str(made / "answers.jsonl")],
                    "eval_examples": 12,
                    "max_length": 64,
                },
                "draft": {"live_prompts": 2, "live_tokens": 8, **(section or {})},
                "distillation": {"enabled": True, "top_k": 16, **(distillation or {})},
                **short(tmp_path / "run", **training),
            }
        )

    return build


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "tv"])
def test_distillation_raises_the_acceptance(loss, config, made, tmp_path):
    outcome = train(config(distillation={"loss": loss}, num_train_steps=32), quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    held_out = [row for row in log if "eval/acceptance" in row]
    assert [row["step"] for row in held_out] == [0, 8, 16, 24, 32]
    assert held_out[-1]["eval/acceptance"] > held_out[0]["eval/acceptance"] + 0.03
    assert held_out[-1]["eval/agreement"] > held_out[0]["eval/agreement"]
    assert all(1 <= row["eval/live_accepted_length"] <= 5 for row in held_out)
    assert all({f"loss/{loss}", "loss/cross_entropy"} <= row.keys() for row in log if "loss" in row)
    best = tmp_path / "run" / "best"
    assert not torch.equal(
        weights(best)["model.layers.0.mlp.up_proj.weight"], weights(made / "draft")["model.layers.0.mlp.up_proj.weight"]
    )
    card = (best / "README.md").read_text()
    assert "base_model: draft" in card
    assert "| acceptance |" in card
    assert "answers.jsonl" in card


def test_text_alone_is_learned_too(config, tmp_path):
    train(config(distillation={"enabled": False}, section={"goal": "agreement"}, num_train_steps=32), quiet=True)
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    figures = json.loads((tmp_path / "run" / "best" / "training_record.json").read_text())["progress"]
    assert figures["best"] == max(row["eval/agreement"] for row in log if "eval/agreement" in row)


@pytest.mark.parametrize("train_what", ["layers", "all"])
def test_a_draft_of_a_part_keeps_its_folder_plain(train_what, config, made, tmp_path):
    outcome = train(config("part", section={"train": train_what}), quiet=True)
    assert outcome.finished
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    before, after = weights(made / "part"), weights(folder)
    assert after["lm_head.weight"].shape == (300, 48)
    others = torch.ones(300, dtype=torch.bool).index_fill(0, PART, False)
    assert torch.equal(after["lm_head.weight"][others], before["lm_head.weight"][others])
    same = torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert same == (train_what == "layers")
    assert json.loads((folder / "draft_vocabulary.json").read_text())["target_ids"] == PART.tolist()
    again = train(
        config(section={"train": train_what}, model={"draft_model": str(folder)}, output_dir=str(tmp_path / "next"))
    )
    assert again.finished


@pytest.mark.parametrize("states", [True, False], ids=["kept", "computed"])
@pytest.mark.parametrize("draft", ["draft", "part"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(draft, states, config, tmp_path):
    model = {} if states else {"states_dir": None}
    train(config(draft, model=model, output_dir=str(tmp_path / "whole")), quiet=True)
    for _ in range(8):
        outcome = train(config(draft, model=model, max_seconds=1e-9), quiet=True)
    assert outcome.finished
    states_ = [
        torch.load(tmp_path / run / "checkpoints" / "step-00000008" / "training_state.pt")["parameters"]
        for run in ("whole", "run")
    ]
    assert all(torch.equal(*pair) for pair in zip(*states_, strict=True))


class TestWhatTheTeacherSays:
    EXAMPLES = Examples([Example(tokens=(5, 9, 7, 30, 2, 8), start=2), Example(tokens=(4, 4, 11), start=1)])

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_is_the_targets_distribution(self, temperature, tmp_path):
        model, batch = tiny_model(), self.EXAMPLES.batch([0, 1])
        said = Teacher(model, top_k=20, temperature=temperature).says(batch)
        with torch.no_grad():
            logits = torch.cat(
                [
                    model(torch.tensor([[5, 9, 7, 30, 2, 8]])).logits[0, 1:-1],
                    model(torch.tensor([[4, 4, 11]])).logits[0, :-1],
                ]
            )
        top = logits.softmax(-1).topk(20)
        assert torch.equal(said.tokens, top.indices)
        torch.testing.assert_close(said.probabilities, top.values, rtol=1e-4, atol=1e-6)
        softened = (logits / temperature).softmax(-1)
        torch.testing.assert_close(said.softened, softened.gather(1, top.indices), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(said.rest, 1 - said.softened.sum(-1), rtol=1e-3, atol=1e-5)

    def test_is_computed_once_where_it_is_kept(self, tmp_path, monkeypatch):
        batch = self.EXAMPLES.batch([0, 1])
        first = Teacher(tiny_model(), top_k=20, folder=str(tmp_path)).says(batch)
        monkeypatch.setattr(Teacher, "_read", None)
        again = Teacher(tiny_model(), top_k=20, folder=str(tmp_path)).says(batch)
        assert torch.equal(first.tokens, again.tokens)
        assert torch.equal(first.softened, again.softened)
        with pytest.raises(TypeError):
            Teacher(tiny_model(), top_k=20, temperature=2.0, folder=str(tmp_path)).says(batch)


def test_logits_are_those_of_the_positions_before_what_is_predicted(made):
    draft, batch = TrainedDraft(str(made / "part"), "all", "cpu"), TestWhatTheTeacherSays.EXAMPLES.batch([0, 1])
    whole = tiny_model(noise=0.12)
    with torch.no_grad():
        expected = torch.cat(
            [
                whole(torch.tensor([[5, 9, 7, 30, 2, 8]])).logits[0, 1:-1],
                whole(torch.tensor([[4, 4, 11]])).logits[0, :-1],
            ]
        )
        torch.testing.assert_close(draft.logits(batch), expected[:, PART], rtol=1e-4, atol=1e-5)
    assert draft.rows(torch.tensor([4, 5])).tolist() == [2, -1]
    assert draft.tokens(torch.tensor([2, 0])).tolist() == [4, 0]


def test_another_tokenizer_and_no_draft_are_refused(config, made, tmp_path):
    with pytest.raises(UsageError, match=r"model\.draft_model is missing"):
        prepare(config(model={"draft_model": None}), "cpu")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["strange"])
    tiny_model(vocab_size=310).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(VocabularyMismatchError, match="another tokenizer"):
        prepare(config(model={"draft_model": str(tmp_path / "other")}), "cpu")


def test_a_cut_head_is_the_rows_of_the_whole():
    model = tiny_model()
    whole = cut_head(model, PART)
    assert torch.equal(model.get_output_embeddings().weight, whole.weight[PART])
    with pytest.raises(UsageError, match="token 400 and the head has 150 rows"):
        cut_head(model, torch.tensor([1, 400]))
