"""Streams, Medusa, block and EAGLE-3 heads through the whole of training, on a tiny target that counts."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from specstream.drafters.eagle import EagleDrafter
from specstream.errors import SpecStreamError, UsageError
from specstream.heads.block import BlockHead
from specstream.heads.eagle import EagleHead
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.training.config import train_config
from specstream.training.data import load_examples
from specstream.training.live_evaluation import Live
from specstream.training.recipes import block as block_recipe
from specstream.training.recipes import streams as recipe
from specstream.training.run import train
from tests.published_heads import write_eagle
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.training.short_run import rows, short

pytestmark = pytest.mark.usefixtures("one_thread")

SECTIONS = {
    "streams": {
        "gamma": 2,
        "layers": 1,
        "rank": 4,
        "vocabulary": 120,
        "soften": 0.5,
        "live_prompts": 2,
        "live_tokens": 8,
    },
    "medusa": {"num_heads": 2, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
    "block": {"gamma": 2, "layers": 1, "chain_rank": 8, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
    "eagle3": {"gamma": 2, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a target and its own greedy answers."""
    root = tmp_path_factory.mktemp("made")
    model = tiny_model()
    model.save_pretrained(root / "target")
    tiny_tokenizer().save_pretrained(root / "target")
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
    def build(recipe, section=None, model=None, **training):
        return train_config(
            {
                "recipe": recipe,
                "model": {
                    "target_model": str(made / "target"),
                    "dtype": "float32",
                    "device": "cpu",
                    "states_dir": str(tmp_path / "states"),
                    **(model or {}),
                },
                "data": {"files": [str(made / "answers.jsonl")], "eval_examples": 6, "max_length": 64},
                recipe: {**SECTIONS[recipe], **(section or {})},
                **short(tmp_path / "run", **training),
            }
        )

    return build


def weights(folder):
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("start", ["identity", "linear"])
def test_streams_learn_and_say_what_they_are(start, config, made, tmp_path):
    settings = config("streams", {"start": start}, num_train_steps=40)
    outcome = train(settings, quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name in ("loss/stream_1", "loss/stream_2"):
        assert all(name in row for row in log if "loss" in row)
    evaluations = [row for row in log if "eval/accepted_length" in row]
    assert [row["step"] for row in evaluations] == [0, 8, 16, 24, 32, 40]
    assert all(0 <= row["eval/top1_2"] <= row["eval/top4_2"] <= 1 for row in evaluations)
    assert all(1 <= row["eval/live_accepted_length"] <= 3 for row in evaluations)

    model = tiny_model()
    streams = Streams.from_pretrained(tmp_path / "run" / "best", model)
    assert streams.config.start == start
    assert len(streams.vocabulary) == 120
    assert streams.details["data"]["examples"] == 34
    assert streams.details["recipe"]["streams"]["start"] == start
    assert streams.details["figures"]["accepted_length"] == pytest.approx(outcome.progress.best)
    assert len(streams.details["rates"]) == 2


def test_medusa_heads_learn_from_the_same_states(config, tmp_path):
    train(config("streams", num_train_steps=1, output_dir=str(tmp_path / "other")), quiet=True)
    kept = len(list((tmp_path / "states").iterdir()))
    outcome = train(config("medusa", num_train_steps=40), quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all("loss/head_2" in row for row in log if "loss" in row)
    heads = MedusaHeads.from_pretrained(tmp_path / "run" / "best", tiny_model())
    assert heads.record["data"]["examples"] == 34
    assert len(heads.rates) == 2
    assert kept == 2 * 11, "of the first, which is looked at for its size, of one batch and of those held out"
    assert len(list((tmp_path / "states").iterdir())) == 40 + 11, "what heads see, of the others too"


def test_a_block_head_learns_what_the_target_says(config, tmp_path):
    outcome = train(config("block", {"anchors": 8}, num_train_steps=40), quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    head = BlockHead.from_pretrained(tmp_path / "run" / "best", tiny_model())
    assert (head.details["data"]["examples"], len(head.vocabulary), len(head.details["rates"])) == (34, 120, 2)
    assert len(list((tmp_path / "states").iterdir())) == 40, "the target reads each example once"


@pytest.mark.parametrize("recipe_name", SECTIONS)
@pytest.mark.parametrize("states", [True, False], ids=["kept", "computed"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(recipe_name, states, config, tmp_path):
    model = {} if states else {"states_dir": None}
    section = {"streams": {"start": "linear"}, "block": {"anchors": 4}}.get(recipe_name, {})
    whole = config(recipe_name, section, model, output_dir=str(tmp_path / "whole"))
    train(whole, quiet=True)
    for _ in range(8):
        outcome = train(config(recipe_name, section, model, max_seconds=1e-9), quiet=True)
    assert outcome.finished
    expected, got = (weights(next((tmp_path / name / "checkpoints").glob("*8"))) for name in ("whole", "run"))
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("recipe_name", SECTIONS)
def test_room_for_a_part_of_the_states_changes_no_bit(recipe_name, config, tmp_path):
    for name, model in (("whole", {}), ("run", {"states_dir": str(tmp_path / "some"), "states_gb": 3e-5})):
        train(config(recipe_name, None, model, output_dir=str(tmp_path / name)), quiet=True)
    assert 0 < sum(each.stat().st_size for each in (tmp_path / "some").iterdir()) <= 30_000
    whole, some = (weights(tmp_path / name / "best") for name in ("whole", "run"))
    assert all(torch.equal(tensor, some[name]) for name, tensor in whole.items())


def test_an_eagle_head_learns_what_the_target_says(config, tmp_path):
    outcome = train(config("eagle3", num_train_steps=40), quiet=True)
    assert outcome.finished
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    evaluated = [row for row in log if "eval/top1_2" in row]
    for name in ("loss/accepted_1", "loss/accepted_2"):
        accepted = [row[name] for row in log if name in row]
        assert sum(accepted[-5:]) > 1.1 * sum(accepted[:5])
    assert all(1 <= row["eval/live_accepted_length"] <= 3 for row in evaluated)
    head = EagleHead.from_pretrained(tmp_path / "run" / "best", tiny_model())
    assert (head.details["data"]["examples"], len(head.vocabulary), head.taps, head.gamma) == (34, 120, (0, 1), 2)
    assert EagleDrafter(head).learned.rates == [each[:8] for each in head.details["rates"]]
    assert len(list((tmp_path / "states").iterdir())) == 40, "the target reads each example once"


@pytest.mark.parametrize("layout", ["ours", "speculators", "authors"])
def test_an_eagle_head_goes_on_from_another_whoever_trained_it(layout, config, tmp_path):
    folder = tmp_path / "first" / "checkpoints" / "step-00000002"
    if layout == "ours":
        train(config("eagle3", num_train_steps=2, output_dir=str(tmp_path / "first")), quiet=True)
    else:
        write_eagle(folder, tiny_model(), layout, drafted=range(0, 99, 3), embeddings=True)
    second = config("eagle3", {"start_from": str(folder), "gamma": 7}, num_train_steps=1, learning_rate=1e-9)
    train(second, quiet=True)
    before, after = (
        EagleHead.from_pretrained(each, tiny_model())
        for each in (folder, tmp_path / "run" / "checkpoints" / "step-00000001")
    )
    assert (after.gamma, after.taps) == (before.gamma, before.taps)
    assert torch.equal(after.vocabulary, before.vocabulary)
    own = dict(before.named_parameters())
    for name, tensor in after.named_parameters():
        torch.testing.assert_close(tensor.float(), own.pop(name).float(), rtol=1e-2, atol=1e-3)
    assert not own


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"taps": [0, 2]}, r"^eagle3.taps is \[0, 2\] and the model has layers 0 to 1; give some, each once$"),
        ({"taps": [1, 1]}, r"^eagle3.taps is \[1, 1\] and the model has layers 0 to 1; give some, each once$"),
        ({"vocabulary": 301}, r"^eagle3.vocabulary is 301 and the model has 300 tokens; give fewer, or null$"),
    ],
)
def test_an_eagle_head_of_what_the_target_lacks_is_refused(section, message, config):
    with pytest.raises(UsageError, match=message):
        train(config("eagle3", section), quiet=True)


@pytest.fixture
def streams_folder(config, tmp_path):
    """Of streams with a linear start and a token-to-token map, from the target's top layer on."""
    learned = {"start": "linear", "chain_rank": 4}
    train(config("streams", learned, num_train_steps=2, output_dir=str(tmp_path / "streams")), quiet=True)
    return tmp_path / "streams" / "checkpoints" / "step-00000002"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_block_head_takes_what_streams_learned(layers, config, streams_folder):
    """The linear start only where streams begin in the same layer as the head's own copies."""
    section = {"start_from": str(streams_folder), "gamma": 3, "layers": layers, "vocabulary": None}
    head = block_recipe.prepare(config("block", section), "cpu")[0]._head
    streams = Streams.from_pretrained(streams_folder, tiny_model())
    assert torch.equal(head.vocabulary, streams.vocabulary)
    tokens = torch.randn(5, 2, 48)
    final = torch.randn(5, 3, 48)
    torch.testing.assert_close(head.chain(final, tokens), streams.chain(final, tokens))
    assert head.config.chain_rank == 8
    assert torch.equal(head.from_state, streams.from_state) == (layers == 1)
    if layers == 1:
        assert torch.equal(head.embeddings[:2], streams.embeddings)
        assert torch.equal(head.scales[2], streams.scales[1])
    assert all(each.requires_grad for each in head.parameters())


def test_a_block_head_goes_on_from_another(config, tmp_path):
    train(config("block", num_train_steps=2), quiet=True)
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    head = block_recipe.prepare(config("block", {"start_from": str(folder), "gamma": 4}), "cpu")[0]._head
    assert head.gamma == 2, "its own"
    own = dict(head.named_parameters())
    kept = {name: tensor for name, tensor in weights(folder).items() if name in own}
    assert kept.keys() == own.keys()
    assert all(torch.equal(own[name], tensor.float()) for name, tensor in kept.items())
    assert all(each.requires_grad for each in own.values())


def test_a_block_head_takes_nothing_of_others(config, tmp_path):
    train(config("medusa", num_train_steps=1), quiet=True)
    with pytest.raises(SpecStreamError, match="holds 'medusa'; give a folder with 'streams'"):
        block_recipe.prepare(config("block", {"start_from": str(tmp_path / "run" / "best")}), "cpu")
    with pytest.raises(UsageError, match=r"^block.start_from is .shipped.: none come with the package"):
        train(config("block", {"start_from": "shipped"}, output_dir=str(tmp_path / "other")), quiet=True)


def test_a_run_may_go_on_from_other_streams_with_other_data(config, made, tmp_path):
    train(config("streams", {"start": "linear"}), quiet=True)
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    settings = config("streams", {"start_from": str(folder)}, num_train_steps=1, learning_rate=1e-9)
    values = settings.model_dump(exclude_unset=True)
    values["training"]["output_dir"] = str(tmp_path / "second")
    values["data"]["limit"] = 30
    train(train_config(values), quiet=True)
    (second,) = (tmp_path / "second" / "checkpoints").iterdir()
    before, after = weights(folder), weights(second)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-3)


def test_going_on_keeps_the_streams_there_are_unless_more_are_asked_for(config, made, tmp_path):
    train(config("streams", {"gamma": 2}), quiet=True)
    folder = str(tmp_path / "run" / "checkpoints" / "step-00000008")
    for section, expected in (({}, 2), ({"gamma": 3}, 3)):
        values = config("streams", section).model_dump(exclude_unset=True)
        values["streams"].pop("gamma", None)
        values["streams"] |= {"start_from": folder, **section}
        streams = recipe.prepare(train_config(values), "cpu")[0]._streams
        assert streams.gamma == len(streams.embeddings) == expected


@pytest.fixture
def early_exit(config, tmp_path):
    """A configuration that trains an exit alone on top of streams, and their folder."""
    train(config("streams", num_train_steps=1, output_dir=str(tmp_path / "streams")), quiet=True)
    folder = tmp_path / "streams" / "best"

    def build(section=None, model=None, **training):
        values = config("streams", None, model, **training).model_dump(exclude_unset=True)
        alone = {"train": "early_exit", "start_from": str(folder), "pruning_rank": 2, "live_tokens": 8}
        return train_config({**values, "streams": {**alone, "soften": 0.5, "live_prompts": 2, **(section or {})}})

    return build, folder


def test_an_early_exit_learns_and_its_streams_stay(early_exit, tmp_path):
    build, folder = early_exit
    outcome = train(build({"pruning_rank": 32}, num_train_steps=40, learning_rate=0.03), quiet=True)
    log = rows(tmp_path / "run")
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    evaluations = [row for row in log if "eval/early_loss" in row]
    assert [row["step"] for row in evaluations] == [0, 8, 16, 24, 32, 40]
    assert outcome.progress.best == min(row["eval/early_loss"] for row in evaluations)
    assert all(row["eval/kept_0.2"] <= row["eval/kept_0.1"] <= row["eval/kept_0.05"] for row in evaluations)
    before, after = weights(folder), weights(tmp_path / "run" / "best")
    assert set(after) - set(before) == {"early_exit.down", "early_exit.up"}
    last = weights(next((tmp_path / "run" / "checkpoints").glob("*40")))
    assert all(torch.equal(tensor, each[name]) for name, tensor in before.items() for each in (after, last))
    assert last["early_exit.up"].any()

    streams, was = (Streams.from_pretrained(each, tiny_model()) for each in (tmp_path / "run" / "best", folder))
    assert streams.config.pruning_rank == 32
    assert {name: streams.details[name] for name in was.details} == was.details, "what streams were trained on"
    assert streams.details["early_exit"]["figures"]["early_loss"] == pytest.approx(outcome.progress.best)
    assert streams.details["early_exit"]["data"]["examples"] == 34


def test_an_early_exit_that_was_stopped_ends_in_the_same_bits(early_exit, tmp_path):
    build, _ = early_exit
    train(build(output_dir=str(tmp_path / "whole")), quiet=True)
    for _ in range(8):
        outcome = train(build(max_seconds=1e-9), quiet=True)
    assert outcome.finished
    expected, got = (weights(next((tmp_path / name / "checkpoints").glob("*8"))) for name in ("whole", "run"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_an_exit_is_added_to_streams_that_lack_it_and_shipped_ones_have_to_fit(early_exit):
    build, folder = early_exit
    values = build().model_dump(exclude_unset=True)
    values["streams"] = {"start_from": str(folder), "pruning_rank": 3}
    trainee, _ = recipe.prepare(train_config(values), "cpu")
    assert trainee._streams.config.pruning_rank == 3
    assert sum(1 for _ in trainee.parameters()) == len(list(trainee._streams.parameters()))
    with pytest.raises(UsageError, match=r"is .shipped.: none come with the package for .*; give a folder"):
        recipe.prepare(build({"start_from": "shipped"}), "cpu")


def test_a_linear_start_is_close_to_the_states_to_come(config, made, tmp_path):
    """Closer than the states there are, which the identity starts with."""
    settings = config("streams", {"start": "linear", "fit_examples": 30})
    trainee, tokenizer = recipe.prepare(settings, "cpu")
    streams, states = trainee._streams, trainee._states
    _, held_out = load_examples(settings.data, tokenizer, 0)
    errors = torch.zeros(2)
    for index in range(len(held_out)):
        tokens = torch.tensor(held_out[index].tokens)
        with torch.no_grad():
            main = states.first(tokens)
            start = streams.start_of(main[1:-1], tokens[2:])[:, 0]
        errors += torch.stack([(start - main[2:]).square().sum(), (main[1:-1] - main[2:]).square().sum()])
    assert errors[0] < 0.7 * errors[1]


def test_live_decoding_of_a_drafter_that_is_always_right(made):
    from specstream.drafters.draft_model import DraftModelDrafter
    from specstream.models.target.hf import HuggingFaceTarget

    model, tokenizer = tiny_model(), tiny_tokenizer()
    drafter = DraftModelDrafter(HuggingFaceTarget(model, exact=False), gamma=3, branches=1, vocab_size=300)
    figures = Live(model, tokenizer, 2, 12).figures(drafter, 3, [[5, 6, 7], [8, 9], [10, 11]])
    assert 3 <= figures["live_accepted_length"] <= 4
    assert Live(model, tokenizer, 0, 12).figures(drafter, 3, [[5]]) == {}
