"""Errors name the options of the command line, as they were typed, in every command."""

from __future__ import annotations

import json
import shlex

import pytest
import typer

from specstream.cli import build_app, main
from specstream.cli.typed import in_typed_words, with_typed_hint


@pytest.fixture(scope="module")
def root():
    return typer.main.get_command(build_app())


@pytest.mark.parametrize(
    ("line", "message", "shown"),
    [
        (
            "generate x --drafter medusa",
            "drafter is 'medusa' and there are no heads; give heads=, a folder",
            "--drafter is 'medusa' and there are no heads; give --heads, a folder",
        ),
        (
            "generate x --drafter lookup -d y",
            "drafter is 'lookup' and there is a draft_model; give drafter='draft_model' or no draft_model",
            "--drafter is 'lookup' and there is a -d; give --drafter draft_model or no -d",
        ),
        (
            "generate x",
            "drafter is 'draft_model' and there is no draft_model; give one",
            "--drafter is 'draft_model' and there is no --draft; give one",
        ),
        ("compare --draft-model y", "there is a draft_model; give one", "there is a --draft-model; give one"),
        ("generate x", "the model is on cpu", "the model is on cpu"),
        ("generate x --model 'y'", "the model is 'y'", "the model is 'y'"),
        ("generate x --N 0", "max_new_tokens is 0; give more", "--N is 0; give more"),
        ("generate x --max-tokens=0", "max_new_tokens is 0; give more", "--max-tokens is 0; give more"),
        ("generate x -n0", "max_new_tokens is 0; give more", "-n is 0; give more"),
        ("generate x", "max_new_tokens is 0; give more", "--max-new-tokens is 0; give more"),
        ("generate x -K 0", "gamma is 0; give more", "-K is 0; give more"),
        ("generate x --K 0", "max_speculation_depth is 0; give more", "--K is 0; give more"),
        ("generate x --K 0", "max_speculation_depth is 0; give less gamma", "--K is 0; give less gamma"),
        ("serve --max-rows 0", "max_rows is 0; give more", "--max-rows is 0; give more"),
        ("serve -m ''", "model_name is ''; give one", "-m is ''; give one"),
        ("serve -m a --served-model-name ''", "model_name is ''; give one", "--served-model-name is ''; give one"),
        ("serve -c a.yaml", "max_rows is 0; give more", "max_rows is 0; give more"),
        ("serve -c a.yaml", "drafter is 'medusa'; give heads=", "drafter is 'medusa'; give --heads"),
        ("generate x -c a.yaml -K 3", "a.yaml:3: gamma is 0; give more", "a.yaml:3: gamma is 0; give more"),
        ("train -c a.yaml --set x=1", "--set: training.resume is 1", "--set: training.resume is 1"),
        ("train -c a.yaml", "config 'a.yaml' cannot be read", "-c 'a.yaml' cannot be read"),
        ("train -c a.yaml", "config 'b.yaml' cannot be read", "config 'b.yaml' cannot be read"),
        ("router collect -c a.yaml", "config 'a.yaml' cannot be read", "-c 'a.yaml' cannot be read"),
        ("profile -n 0", "generation.max_new_tokens is 0; give more", "-n is 0; give more"),
        ("profile -c a.yaml -n 3", "--config and --max-new-tokens were given", "-c and -n were given"),
        ("generate -- --N 0", "max_new_tokens is 0", "--max-new-tokens is 0"),
        ("generate x --router a", "router is given; give drafter='router'", "--router is given; give --drafter router"),
        ("report a", "model_type is 'x'; give another", "model_type is 'x'; give another"),
        ("nothing", "drafter is 'x'", "drafter is 'x'"),
    ],
)
def test_arguments_of_python_become_options(root, line, message, shown):
    assert in_typed_words(message, root, shlex.split(line)) == shown


def test_what_the_environment_says_is_no_option(root, monkeypatch):
    monkeypatch.setenv("SPECSTREAM_MAX_ROWS", "0")
    assert in_typed_words("max_rows is '0'; give more", root, ["serve"]) == "max_rows is '0'; give more"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("generate x --N y", "--N"),
        ("generate x --N=y", "--N"),
        ("compare --target-model a --draft-model b --input-str c --K y", "--K"),
        ("tune --prompts a --output b --num-runs 0", "--num-runs"),
    ],
)
def test_the_parser_names_what_was_typed(root, line, shown, capsys):
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert f"error: {shown} is '" in error


def test_a_hint_of_what_was_not_typed_stays(root):
    assert with_typed_hint("Missing option '--config' / '-c'.", root, ["train"]) == "Missing option '--config' / '-c'."


SAID = [
    ("audit x -t 0.5", "-t is 0.5; give 0"),
    ("audit x --max-tokens 0", "--max-tokens is 0; give"),
    ("audit x -b 0", "-b is 0; give 1 or more"),
    ("generate x --top-k -1", "--top-k is -1; give"),
    ("generate x -K 0", "-K is 0; give"),
    ("demo --N 0", "--N is 0; give"),
    ("demo --K 0", "--K is 0; give"),
    ("demo --drafter router", "--drafter is 'router' and there is none; give --router, the folder"),
    ("compare --target-model a --draft-model b --input-str c --N 0", "--N is 0; give"),
    ("distill-data --prompts q.jsonl -o a --max-tokens 0", "--max-tokens is 0; give"),
    ("distill-data --prompts q.jsonl -o a --drafter streams", "--drafter is 'streams'; give none or lookup"),
    ("distill-data --prompts nope -o a", "--prompts 'nope' is no file"),
    ("tune --prompts q.jsonl -o a.txt", "-o is 'a.txt'; give the name of a .yaml file"),
    ("tune --prompts q.jsonl -o a.yaml --N 0", "--N is 0; give"),
    ("benchmark heads --prompts q.jsonl -n 0", "-n is 0; give"),
    ("profile --prompts q.jsonl --N 0", "--N is 0; give"),
    ("benchmark task --task nope --data q.jsonl", "--task 'nope' is no task"),
    ("serve --K 0", "--K is 0; give"),
    ("serve --max-context 1", "--max-context is 1; give"),
    ("serve --drafter nope", "--drafter is 'nope'; give"),
    ("serve --host ''", "--host is ''; give"),
    ("benchmark -c nope.yaml", "-c 'nope.yaml' cannot be read"),
    ("evaluate --config nope.yaml", "--config 'nope.yaml' cannot be read"),
    ("train -c nope.yaml", "-c 'nope.yaml' cannot be read"),
    ("router collect -c nope.yaml", "-c 'nope.yaml' cannot be read"),
    ("router train --config nope.yaml", "--config 'nope.yaml' cannot be read"),
]


@pytest.mark.parametrize(("line", "shown"), SAID, ids=[line for line, _ in SAID])
def test_every_command_says_it_so(line, shown, capsys, tmp_path, monkeypatch):
    pytest.importorskip("gradio") if line.startswith("demo") else None
    monkeypatch.chdir(tmp_path)
    questions = [{"category": "a", "turns": [text]} for text in ("one two", "three four")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {shown}"), error
