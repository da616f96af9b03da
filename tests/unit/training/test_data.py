from __future__ import annotations

import json

import pytest
import torch

from specstream.errors import UsageError
from specstream.training.config import DataSection
from specstream.training.data import Example, Examples, Order, examples_of, load_examples
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def texts(record, **settings):
    """What is read of a record: the text before the first learned token, and from there."""
    examples = examples_of([(record, "here:1")], DataSection(**settings), TOKENIZER)
    return [
        (TOKENIZER.decode(each.tokens[: each.start]), TOKENIZER.decode(each.tokens[each.start :]))
        for each in (examples[index] for index in range(len(examples)))
    ]


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        ({"prompt": "one", "completion": "two"}, "<user>one<assistant>", "two<eos>"),
        ({"instruction": "add", "input": "a", "output": "b"}, "<user>add\n\na<assistant>", "b<eos>"),
        ({"question": "one", "answer": "two"}, "<user>one<assistant>", "two<eos>"),
        ({"instruction": "add", "instances": [{"input": "a", "output": "b"}]}, "<user>add\n\na<assistant>", "b<eos>"),
        (
            {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
            "<user>one<assistant>",
            "two<eos>",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "one"},
                    {"from": "gpt", "value": "two"},
                    {"from": "human", "value": "three"},
                ]
            },
            "<user>one<assistant>",
            "two<eos>",
        ),
        (
            {"prompt_token_ids": [70, 71, 72], "answer_token_ids": [73, 0], "prompt": "x", "answer": "y"},
            TOKENIZER.decode([70, 71, 72]),
            TOKENIZER.decode([73, 0]),
        ),
    ],
)
def test_answers_are_learned_and_prompts_are_not(record, prompt, answer):
    assert texts(record) == [(prompt, answer)]


def test_prompts_are_learned_where_asked_and_templates_left_out():
    ((before, after),) = texts({"prompt": "one", "completion": "two"}, prompt_loss=True, chat=False)
    assert before + after == "onetwo<eos>"
    assert len(TOKENIZER(before)["input_ids"]) == 1


def test_plain_text_is_packed():
    records = [({"text": "one two three four"}, "a"), ({"text": "five six seven eight"}, "b")]
    examples = examples_of(records, DataSection(max_length=8), TOKENIZER)
    tokens = [token for index in range(len(examples)) for token in examples[index].tokens]
    assert TOKENIZER.decode(tokens) == "one two three four<eos>five six seven eight<eos>"
    assert all(length == 8 for length in examples.lengths[:-1])


def test_long_answers_are_cut_and_long_prompts_left_out():
    words = "one two three four five six seven eight nine ten "
    assert len(texts({"prompt": "one", "completion": words * 9}, max_length=30)) == 1
    assert texts({"prompt": words * 9, "completion": "one"}, max_length=30) == []


def test_a_record_whose_answer_is_empty_is_left_out():
    assert texts({"instruction": "one", "input": "", "output": ""}) == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "one"}, "here:1 has no answer and no text; run specstream distill-data"),
        ({"prompt_token_ids": [5], "answer_token_ids": [100000]}, "has token 100000, which this tokenizer has not"),
    ],
)
def test_a_record_with_nothing_to_learn_is_refused(record, message):
    with pytest.raises(UsageError, match=message):
        texts(record)


def test_files_are_read_and_split(tmp_path):
    lines = [json.dumps({"prompt": f"one {at}", "completion": "two"}) for at in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text("one two three", encoding="utf-8")
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")]
    train, held_out = load_examples(DataSection(files=files, eval_examples=3), TOKENIZER, seed=1)
    assert (len(train), len(held_out)) == (8, 3)
    again, other = (
        load_examples(DataSection(files=files, eval_examples=3), TOKENIZER, seed=seed)[1] for seed in (1, 2)
    )
    assert again.fingerprint == held_out.fingerprint != other.fingerprint
    train, held_out = load_examples(
        DataSection(files=files[1:], eval_files=files[:1], eval_examples=4), TOKENIZER, seed=1
    )
    assert (len(train), len(held_out)) == (1, 4)
    train, _ = load_examples(DataSection(dataset_name=files[0], limit=5, eval_examples=1), TOKENIZER, seed=1)
    assert len(train) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data has no example"),
        ({"files": ["nowhere.jsonl"]}, "is no file here"),
        ({"files": ["nowhere.txt"]}, "is no file here"),
        ({"dataset_name": "data/nowhere"}, "is no file here, and not taken for a hub id"),
        ({"dataset_name": "org/nowhere.jsonl"}, "is no file here, and not taken for a hub id"),
        ({"files": ["answers.jsonl"]}, "is not finished; run its specstream distill-data again"),
        ({"files": ["few.jsonl"], "eval_examples": 1}, "leaves none to train on"),
    ],
)
def test_missing_data_is_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl.partial").touch()
    (tmp_path / "few.jsonl").write_text('{"prompt": "one", "completion": "two"}', encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_examples(DataSection(**settings), TOKENIZER, seed=0)


def test_a_batch_is_padded_on_the_right_and_learns_no_padding():
    examples = Examples([Example(tokens=(5, 6, 7), start=2), Example(tokens=(8, 9), start=1)], pad_token_id=1)
    batch = examples.batch([1, 0])
    assert batch.tokens.tolist() == [[8, 9, 1], [5, 6, 7]]
    assert batch.mask.tolist() == [[False, True, False], [False, False, True]]
    assert batch.size == 5
    assert torch.equal(next(examples.batches(2)).tokens, torch.tensor([[5, 6, 7], [8, 9, 1]]))


def test_every_epoch_has_each_example_once_in_another_order():
    lengths = [5 + at % 7 for at in range(23)]
    order = Order(lengths, 4, seed=3)
    assert order.per_epoch == 5
    epochs = [[tuple(order.indices(epoch * 5 + place)) for place in range(5)] for epoch in range(3)]
    for epoch in epochs:
        seen = [index for batch in epoch for index in batch]
        assert len(set(seen)) == len(seen) == 20
    assert epochs[0] != epochs[1] != epochs[2]
    again = Order(lengths, 4, seed=3)
    assert tuple(again.indices(12)) == epochs[2][2]  # with nothing before it
    assert Order(lengths, 4, seed=4).indices(0) != order.indices(0)


def test_examples_of_a_batch_are_of_like_length():
    lengths = [(at * 37) % 101 + 1 for at in range(100)]
    order = Order(lengths, 5, seed=0)
    spread = [max(chosen) - min(chosen) for chosen in ([lengths[i] for i in order.indices(at)] for at in range(20))]
    assert max(spread) < 10


def test_fewer_examples_than_a_batch():
    with pytest.raises(UsageError, match="per_device_batch_size is 8 and there are 3 examples"):
        Order([1, 2, 3], 8, seed=0)


def test_held_out_prompts_are_left_out_of_what_is_trained_on(tmp_path):
    spoken = " ".join(f"word{number}" for number in range(13))
    records = [
        {"prompt": "Name a colour.", "completion": "red"},
        {"prompt": "Name a river.", "completion": "Rhine"},
        {"prompt": f"Say this: {spoken}", "completion": "no"},
        {"messages": [{"role": "user", "content": "name a COLOUR"}, {"role": "assistant", "content": "blue"}]},
        {"prompt_token_ids": [70, 71], "answer_token_ids": [72]},
    ]
    data, others = tmp_path / "data.jsonl", tmp_path / "others.jsonl"
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    others.write_text("\n".join(map(json.dumps, [{"prompt": "Name a colour!"}, {"turns": ["hello", spoken]}])))
    config = DataSection(files=[str(data)], exclude=[str(others)], eval_examples=0)
    examples, _ = load_examples(config, TOKENIZER, 0)
    kept = [TOKENIZER.decode(examples[index].tokens) for index in range(len(examples))]
    assert kept[0] == "<user>Name a river.<assistant>Rhine<eos>"
    assert [examples[1].tokens, len(kept)] == [(70, 71, 72), 2]
