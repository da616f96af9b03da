"""A command that writes files never replaces what it did not write: its own input, or a folder of other things."""

from __future__ import annotations

import json

import pytest

from specstream.cli import main
from specstream.cli.records import check_output, write_record
from specstream.cli.tune import _check_output, _file
from specstream.models.hub import load
from tests.tiny import tiny_model, tiny_tokenizer

ARGUMENTS = {"num_prompts": 2, "prompts": "q.jsonl", "max_new_tokens": 4, "model": "target", "dtype": "auto"}
ARGUMENTS |= {"device": "auto"}
PROVENANCE = dict.fromkeys(("cpu", "accelerator", "dtype", "specstream", "torch", "transformers", "threads"), "x")
VERDICT = {"verdict": "plain decoding is fastest"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a target, prompts, a collection and somebody's notes; no model may be loaded in it."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "target")
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("one", "two", "three")))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    drafters = "drafters: {none: {drafter: none}, lookup: {drafter: lookup}}\n"
    prompts = "prompts: [{file: q.jsonl, domain: chat}]\n"
    (tmp_path / "collect.yaml").write_text(f"target: {{model: target}}\n{drafters}{prompts}")
    (tmp_path / "train.yaml").write_text("target: {model: target}\ndata: {files: [q.jsonl]}\noutput_dir: notes\n")

    def resolve(name):
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(load, "resolve", resolve)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("distill-data --prompts q.jsonl --model target --output q.jsonl", "--output is 'q.jsonl'"),
        ("distill-data --prompts q.jsonl --model target --output notes", "--output is 'notes'"),
        ("distill-data --prompts q.jsonl --model target --output q.jsonl/a.jsonl", "--output is 'q.jsonl/a.jsonl'"),
        ("router collect --config collect.yaml --set collection.output=q.jsonl", "collection.output is 'q.jsonl'"),
        ("router collect --config collect.yaml --set collection.output=notes", "collection.output is 'notes'"),
        ("router train --config train.yaml", "output_dir is"),
        ("router train --config train.yaml --set output_dir=q.jsonl", "output_dir is"),
        ("router train --config train.yaml --set output_dir=q.jsonl/router", "output_dir is"),
        ("make-draft --target target --layers 1 --output notes", "--output is"),
        ("make-draft --target target --layers 1 --output .", "--output is"),
        ("make-draft --target target --layers 1 --output q.jsonl", "--output is"),
        ("export target --target target --output notes", "--output is"),
        ("audit --prompts q.jsonl --model target -o q.jsonl", "-o is 'q.jsonl'"),
        ("audit x --model target --output notes/thesis.txt", "--output is 'notes/thesis.txt'"),
        ("benchmark heads --prompts q.jsonl --model target -o q.jsonl", "-o is 'q.jsonl'"),
        ("benchmark task --task wikisql --data q.jsonl --model target -o q.jsonl", "-o is 'q.jsonl'"),
        ("router evaluate --router notes --data q.jsonl -o q.jsonl", "-o is 'q.jsonl'"),
        ("tune --prompts q.jsonl --model target -o collect.yaml", "-o is 'collect.yaml'"),
    ],
)
def test_a_place_that_holds_something_else_is_refused_before_a_model_is_loaded(here, capsys, command, setting):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    assert error.startswith(f"error: {setting}") and "; give " in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_file_that_the_command_wrote_itself_may_be_replaced(here):
    write_record("record.json", {"arguments": {}})
    check_output("record.json")
    (here / "tuned.yaml").write_text(
        _file({"arguments": ARGUMENTS, "provenance": PROVENANCE, "settings": {}} | VERDICT)
    )
    _check_output("tuned.yaml")
    (here / "new.json").touch()  # as mktemp does
    check_output("new.json")
