from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from specstream.errors import UsageError
from specstream.evaluation.tasks.task import (
    examples_of,
    program_of,
    read_examples,
    read_task,
    task_names,
    training_records,
)
from specstream.evaluation.tasks.task import (
    load_examples as load_data,
)
from specstream.training.config import DataSection
from specstream.training.data import load_examples
from tests.tiny import tiny_tokenizer

OWN = """
format: jsonl
prompt: "{question}\\nA:\\n"
references: [answer, other]
metrics: [exact_match]
"""

NAMES = [
    "cnn_dailymail",
    "dialogsum",
    "e2e-nlg",
    "gsm8k",
    "humaneval",
    "mgsm",
    "mt-bench",
    "spec-bench",
    "spider",
    "translation",
    "wikisql",
    "xsum",
]


@pytest.fixture
def own(tmp_path):
    """A function that writes a task, with more lines, and gives its path."""

    def write(more=""):
        path = tmp_path / "own.yaml"
        path.write_text(OWN + more, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def data(tmp_path):
    def write(*records, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
        return path

    return write


def test_every_task_of_the_package_can_be_read():
    assert task_names() == NAMES
    assert all(read_task(name).description for name in task_names())


def test_wikisql_stands_in_one_text(data):
    text = "table: 1-2\ncolumns: A, B\nQ: what is A?\nA: SELECT A FROM 1-2"
    (example,) = read_examples(read_task("wikisql"), data({"text": text}))
    assert example.prompt == "table: 1-2\ncolumns: A, B\nQ: what is A?\nA:\n"
    assert example.references == ("SELECT A FROM 1-2",)


def test_dialogsum_has_one_summary_or_three(data):
    records = [
        {"dialogue": "#Person1#: {Hi}", "summary": "one"},
        {"dialogue": "Bye", "summary1": "a", "summary2": "b", "summary3": "c"},
    ]
    first, second = read_examples(read_task("dialogsum"), data(*records))
    assert first.prompt == "#Person1#: {Hi}\nSummary:\n"
    assert (first.references, second.references) == (("one",), ("a", "b", "c"))


def test_rows_of_one_prompt_are_one_example_with_all_references(tmp_path):
    path = tmp_path / "e2e.csv"
    path.write_text('mr,ref\n"name[A], food[B]",first\n"name[C]",second\n"name[A], food[B]",third\n', encoding="utf-8")
    task = read_task("e2e-nlg")
    first, second = read_examples(task, path)
    assert (first.prompt, first.references) == ("name[A], food[B]\nText:\n", ("first", "third"))
    assert second.where == f"{path}:2"
    answers = [record["answer"] for record, _ in training_records(task, path)]
    assert answers == ["first", "third", "second"], "to train on, every reference is an example"


def test_a_new_task_is_one_file(own, data):
    (example,) = read_examples(read_task(own()), data({"question": "x", "other": "y"}))
    assert (example.prompt, example.references) == ("x\nA:\n", ("y",))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("metrik: [bleu]\n", r"own.yaml': unknown key 'metrik'; known are aliases, .*chat, .*metrics"),
        ("parse: {field: a, patern: b}\n", r"own.yaml': (pattern|parse.pattern|unknown key 'parse.patern')"),
        ("parse: {field: a, pattern: '('}\n", "parse.pattern is '\\('; give a regular expression"),
        ("parse: {field: a, pattern: 'b'}\n", "parse.pattern is 'b'; give a regular expression with named groups"),
        ("max_new_tokens: 0\n", "max_new_tokens is 0; give"),
        ("dataset: {name: a, splt: b}\n", r"unknown key 'dataset.splt'; known are config, name"),
        ("program: '{answer}'\ncategory_metrics: {a: ['pass@1']}\n", "give a program with {answer_of_the_model} in it"),
        ("categories: [a]\n", "something is missing; give category, the field"),
        ("stop: [\n", "is not YAML"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(own, more, message):
    with pytest.raises(UsageError, match=message):
        read_task(own(more))


@pytest.mark.parametrize("prompt", ["no field", "{0}", "{a.b}", "{"])
def test_a_prompt_names_fields(tmp_path, prompt):
    path = tmp_path / "bad.yaml"
    path.write_text(OWN.replace("{question}\\nA:\\n", prompt), encoding="utf-8")
    with pytest.raises(UsageError, match=r"bad.yaml': prompt is .*give a text with \{field\} in it"):
        read_task(str(path))


def test_an_unknown_task_names_those_there_are():
    with pytest.raises(UsageError, match=r"task 'chess' is no task; give .*cnn_dailymail, dialogsum, .*, xsum"):
        read_task("chess")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "a"}, "data.jsonl:1 has no 'answer or other': its fields are question"),
        ({"answer": "a"}, "data.jsonl:1 has no 'question': its fields are answer"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_line(own, data, record, message):
    with pytest.raises(UsageError, match=message):
        read_examples(read_task(own()), data(record))


def test_files_that_do_not_fit_are_refused(own, data):
    with pytest.raises(UsageError, match=r"data.json' does not end in .jsonl"):
        read_examples(read_task(own()), data({"question": "a"}, name="data.json"))
    with pytest.raises(UsageError, match="'text' is 'no answer', which is not"):
        read_examples(read_task("wikisql"), data({"text": "no answer"}))
    with pytest.raises(UsageError, match="holds no record"):
        read_examples(read_task(own()), data())


def test_training_reads_files_as_the_task_says(own, data):
    """Without the chat template, which the same tokenizer has, as evaluation puts the prompts."""
    records = [{"question": f"one two {at}", "answer": "three"} for at in range(4)]
    path, tokenizer = str(data(*records)), tiny_tokenizer()
    section = DataSection(task=own(), files=[path], eval_examples=1)
    examples, held_out = load_examples(section, tokenizer, 0)
    assert (len(examples), len(held_out)) == (3, 1)
    example = load_examples(section.model_copy(update={"eval_examples": 0}), tokenizer, 0)[0][0]
    assert tokenizer.decode(example.tokens) == "one two 0\nA:\nthree<eos>"
    assert tokenizer.decode(example.tokens[example.start :]) == "three<eos>"
    chat = section.model_copy(update={"task": own("chat: true\n"), "eval_examples": 0})
    assert tokenizer.decode(load_examples(chat, tokenizer, 0)[0][0].tokens).startswith("<user>one two 0")


def test_prompts_to_judge_by_are_kept_out_of_training(own, data):
    train = data(*({"question": f"one two {at}", "answer": "three"} for at in range(4)))
    judged = data({"question": "One two 2", "answer": "four"}, name="test.jsonl")
    section = DataSection(task=own(), files=[str(train)], exclude=[str(judged)], eval_examples=0)
    assert len(load_examples(section, tiny_tokenizer(), 0)[0]) == 3


# One record of each task, as its own files have it and as another edition does.
EDITIONS = {
    "cnn_dailymail": [
        {"article": "News.\n", "highlights": "Short."},
        {"prompt": "Summarise the article:\n\nNews.\n", "completion": "Short.<|endoftext|>"},
        {"prompt": "In 2 or 3 sentences, what are the points?\n\nArticle: News.", "completion": "Short."},
    ],
    "xsum": [
        {"document": "News.", "summary": "Short."},
        {"prompt": "Summarize: News.\n", "completion": "Short.<|endoftext|>"},
        {"prompt": "News.\n\n===\n\nWrite a summary of the text above :\n", "completion": "Short.<|endoftext|>"},
    ],
    "translation": [
        {"translation": {"de": "Ja", "en": "Yes"}},
        {"category": "translation", "turns": ["Translate German to English: Ja"], "reference": ["Yes"]},
    ],
    "e2e-nlg": [{"mr": "name[A]", "ref": "A."}, {"meaning_representation": "name[A]", "human_reference": "A."}],
    "mt-bench": [
        {"category": "math", "turns": ["one", "two"], "reference": ["1", "2"]},
        {"category": "math", "prompt": ["one", "two"]},
    ],
}


@pytest.mark.parametrize("name", EDITIONS)
def test_editions_of_one_data_set_are_read_alike(name):
    task = read_task(name)
    read = [examples_of(task, [(record, "here:1")], "here") for record in EDITIONS[name]]
    said = [(each.prompt, each.later, each.references[:1]) for (each,) in read]
    assert all(each == said[0] for each in said)
    assert "News" in read[0][0].prompt or name not in ("xsum", "cnn_dailymail")


def test_a_conversation_has_later_turns_and_the_references_of_its_first():
    records = [
        {"category": "math", "turns": ["one", "two"], "reference": ["1", "2"]},
        {"category": "rag", "turns": ["three"], "reference": [["a", "b"]]},
        {"category": "qa", "turns": ["four"]},
    ]
    first, second, third = examples_of(read_task("spec-bench"), [(each, "here") for each in records], "here")
    assert (first.prompt, first.later, first.references, first.category) == ("one", ("two",), ("1",), "math")
    assert (second.references, third.references) == (("a", "b"), ())


def test_categories_that_a_task_leaves_out_are_left_out():
    records = [({"category": "qa", "turns": ["a"]}, "here:1"), ({"category": "stem", "turns": ["b"]}, "here:2")]
    german = ({"category": "translation", "turns": ["Translate German to English: Ja"], "reference": ["Yes"]}, "here:3")
    assert len(examples_of(read_task("translation"), [*records, german], "here")) == 1, "others are not even parsed"
    (only,) = examples_of(read_task("mt-bench"), records, "here")
    assert only.where == "here:2"
    with pytest.raises(UsageError, match="'here' holds no record of the category writing or"):
        examples_of(read_task("mt-bench"), records[:1], "here")


def test_a_number_is_a_reference_even_if_it_is_zero():
    (example,) = examples_of(read_task("mgsm"), [({"question": "q", "answer_number": 0}, "here")], "here")
    assert example.references == ("0",)


def test_a_program_is_put_together_around_the_answer():
    record = {
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert {1: 2}[candidate()] == 2\n",
        "entry_point": "one",
    }
    task = read_task("humaneval")
    (example,) = examples_of(task, [(record, "here")], "here")
    assert example.prompt == "def one():\n"
    program = program_of(task, example, "    return 1")
    assert program.startswith("def one():\n    return 1\n")
    assert program.endswith("check(one)\n")
    with pytest.raises(UsageError, match="here has no 'test'"):
        examples_of(task, [({**record, "test": None} | {"entry_point": "one"}, "here")], "here")


def test_data_comes_from_the_hub_where_no_file_is_given(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return [{"question": "q", "answer": "so #### 7"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (example,) = load_data("gsm8k", read_task("gsm8k"))
    assert asked == [("openai/gsm8k", "main", "test", None)]
    assert (example.references, example.where) == (("so #### 7",), "openai/gsm8k:1")
    with pytest.raises(UsageError, match=r"task 'spider' names no data set of the hub; give a .jsonl file"):
        load_data("spider", read_task("spider"))
    with pytest.raises(UsageError, match=r"data 'nowhere.jsonl' of the task 'gsm8k' is no file"):
        load_data("gsm8k", read_task("gsm8k"), "nowhere.jsonl")


def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UsageError, match=r"'openai/gsm8k' of the task 'gsm8k' cannot be loaded: no route; give a file"):
        load_data("gsm8k", read_task("gsm8k"))
