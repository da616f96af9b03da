"""Mistakes of a command line: said before a model is loaded, by the command's own options, with the remedy."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import LlamaConfig, PreTrainedTokenizerFast, T5Config

from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.cli.options import Drafter
from specstream.config import DrafterName
from specstream.errors import UsageError
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.hub import load
from tests import gguf_files
from tests.gguf_files import write_gguf
from tests.tiny import tiny_model, tiny_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"

CONFIG = """\
target: {model: target}
prompts: {files: [{path: q.jsonl}]}
measure: {output_dir: run}
experiments: {one: {arms: {auto: {drafter: auto}}}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a target and prompts."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "target")
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    questions = [{"category": "a", "turns": [text]} for text in ("one two", "three four")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "b.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def no_model_is_loaded(monkeypatch):
    def resolve(name):
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(load, "resolve", resolve)


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare --target-model target --draft-model self:int8 --input-str x --num-runs 0", "--num-runs is 0; give 1"),
        ("compare --target-model target --draft-model self:int8 --input-str \udce9", "the prompt holds half a char"),
        ("generate \udce9 --model target", "the prompt holds half a character"),
        ("audit x --model target --temperature 0.7", "--temperature is 0.7; give 0"),
        ("audit x --model target --batch-size 0", "--batch-size is 0; give 1 or more"),
        ("audit x --model target --drafter router", "--drafter is 'router'; give one of auto, "),
        ("audit x --model target --output target", "--output is 'target'; give the name of a file"),
        (
            "benchmark heads --prompts q.jsonl --model target --drafter router",
            "--drafter is 'router'; give one of auto, ",
        ),
        (
            "benchmark heads --prompts q.jsonl --model target --drafter lookup --fixed 7",
            "--fixed is 7 and --drafter is",
        ),
        ("benchmark --config b.yaml --experiments ,", "--experiments is ','; name some of the file's"),
        ("profile --model target --prompts empty.txt", "prompts 'empty.txt' holds no prompt; give another file"),
        ("profile --model target --prompts q.jsonl -n 0", "-n is 0; give a value that is greater"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(here, no_model_is_loaded, capsys, command, message):
    assert run(*command.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_prompt_that_is_a_model_is_noted_with_the_commands_own_option(here, capsys):
    words = "compare --target-model target --draft-model target --num-runs 1 --N 2 --input-str target"
    assert run(*words.split()) == 0
    assert "its name is taken as the prompt; to use it: --target-model target\n" in capsys.readouterr().err


def test_what_another_command_has_no_option_for_is_not_advised(here, capsys):
    draft = tiny_model(vocab_size=200)
    draft.save_pretrained(here / "draft")
    tiny_tokenizer().save_pretrained(here / "draft")
    assert run("compare", "--target-model", "target", "--draft-model", "draft", "--input-str", "x") == 2
    assert "drafter=" not in capsys.readouterr().err
    assert run("benchmark", "heads", "--prompts", "q.jsonl", "--model", "target", "--drafter", "streams") == 2
    assert "give --streams, a folder of some" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["q.jsonl"], "'q.jsonl' is a file, its name is the prompt; to read it: --prompt-file"),
        (["smollm2-135m"], "'smollm2-135m' is a model, and its name is taken as the prompt; to use it: --model"),
        (
            ["x", "--top-p", "0.9", "--seed", "1"],
            "--top-p is 0.9 and --seed is 1, without effect at temperature 0; give --temp",
        ),
    ],
)
def test_what_is_done_otherwise_than_somebody_may_think_is_noted(here, capsys, words, noted):
    assert run("generate", *words, "--model", "target", "-n", "2") == 0
    assert f"note: {noted}" in capsys.readouterr().err
    assert run("generate", "x", "--temperature", "1", "--seed", "1", "--model", "target", "-n", "2") == 0
    assert "note:" not in capsys.readouterr().err


def test_a_variable_of_the_server_is_noted_elsewhere(here, capsys, monkeypatch):
    monkeypatch.setenv("SPECSTREAM_TEMPERATURE", "0.7")
    assert run("generate", "x", "--model", "target", "-n", "2") == 0
    assert "note: SPECSTREAM_TEMPERATURE: read by specstream serve alone; give options" in capsys.readouterr().err


def test_a_changed_setting_of_an_evaluation_is_named(here, capsys):
    (here / "e.yaml").write_text(
        "target: {model: target}\nmeasure: {output_dir: run}\ndatasets: {wikisql: {path: w.jsonl}}\n"
    )
    text = "table: 1-1\ncolumns: a, b\nQ: what is a\nA: SELECT a FROM 1-1"
    (here / "w.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert run("evaluate", "--config", "e.yaml", "--set", "speculative.drafter=lookup") == 0
    assert run("evaluate", "--config", "e.yaml", "--set", "speculative.drafter=none") == 2
    assert "was written with settings.speculative.drafter 'lookup' and now it is 'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"promt": "b"}', "'a.jsonl:1' has no prompt: its fields are promt; call one 'prompt'"),
        ("a.csv", "id;prompt\n1;one", "its fields are id;prompt (is it cut by commas?); call one 'prompt'"),
        ("a.json", '[{"prompt": "a"},]', "'a.json' is not JSON: line 1, "),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', "Extra data; a file with a record a line is called .jsonl"),
        ("a.txt", "one".encode("utf-16"), "it is UTF-16, and becomes UTF-8 with: iconv -f utf-16 -t utf-8 FILE"),
        ("a.txt", b"\x89PNG\x00\xff", "it is no text; give .txt"),
        ("a.txt", "caf\u00e9".encode("latin-1"), "iconv -f latin1 -t utf-8 FILE"),
    ],
)
def test_a_file_of_prompts_that_is_none_says_what_to_do(here, no_model_is_loaded, capsys, name, text, message):
    (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("audit", "--prompts", name, "--model", "target") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def _without(name):
    return lambda folder: (folder / name).unlink()


def _cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _renamed_type(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "lama"'))


def _pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 269060552\n"
    return lambda folder: (folder / name).write_text(text)


def _of_more_tokens(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"vocab_size": 300', '"vocab_size": 400'))


def _with_an_empty_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()


def _in_two_parts(folder):
    weights = {"model.embed_tokens.weight": "model-1-of-2.safetensors", "lm_head.weight": "model-2-of-2.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (
            _pointer("model.safetensors"),
            "model.safetensors is a pointer of git-lfs, without content: run git lfs pull in that folder",
        ),
        (
            _pointer("tokenizer.json"),
            "tokenizer.json is a pointer of git-lfs, without content: run git lfs pull in that folder",
        ),
        (_cut("tokenizer.json", 900), "the file is damaged or cut short: copy or download it again"),
        (_cut("tokenizer_config.json", 40), "the file is damaged or cut short: copy or download it again"),
        (_cut("generation_config.json", 30), "the file is damaged or cut short: copy or download it again"),
        (_of_more_tokens, "its weights have other shapes than config.json says: mend config.json, or copy both again"),
        (_with_an_empty_pickle, "the file is damaged or cut short: copy or download it again"),
        (
            _in_two_parts,
            "of its 2 files of weights model-2-of-2.safetensors is missing: copy or download what is missing",
        ),
        (_without("model.safetensors"), "its weights are missing: copy or download model.safetensors"),
        (_without("tokenizer.json"), "its tokenizer is missing: copy tokenizer.json"),
        (_cut("model.safetensors", 5000), "the file is damaged or cut short: copy or download it again"),
        (_cut("model.safetensors", 3), "the file is damaged or cut short: copy or download it again"),
        (_cut("config.json", 20), "the file is damaged or cut short: copy or download it again"),
        (_renamed_type, "transformers has no such model_type: mend config.json"),
    ],
)
def test_a_damaged_model_says_what_to_do(here, capsys, damage, remedy):
    damage(here / "target")
    assert run("generate", "x", "--model", "target") == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{remedy}\n") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target/config.json", "is a file: give the folder of a saved model, which has config.json"),
        ("./q.jsonl", "is a file: give the folder"),
        ("self", "is a draft made of its target, not a model; give self:int8 or self:int4 as the draft"),
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "; 'qwen2.5-coder-0.5b' is that model"),
    ],
)
def test_what_is_no_model_says_what_to_give(here, monkeypatch, capsys, name, message):
    from specstream.models.hub import snapshots

    def require(name):
        raise snapshots.HubUnavailable("the hub cannot be reached")

    monkeypatch.setattr(snapshots, "cached_snapshot", lambda name: None)
    monkeypatch.setattr(snapshots, "require", require)
    monkeypatch.setattr(snapshots, "fetch_snapshot", lambda name, progress: require(name))
    assert run("generate", "x", "--model", name) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notes", "q.jsonl", "smollm2", ""])
def test_the_doctor_refuses_what_is_no_model(here, capsys, name):
    (here / "notes").mkdir()
    assert run("doctor", "--no-measure", "--model", name) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["SPECSTREAM_DEBUG", "SPECSTREAM_NO_SELFTEST_CACHE"])
def test_a_switch_is_on_or_off(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "maybe")
    assert run("models", "list") == 2
    assert f"{name} is 'maybe'; give 1 or 0, or unset it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "file", "owner"),
    [
        ("generate x", "deploy.yaml", "serve"),
        ("generate x", "base.yaml", "train"),
        ("serve", "base.yaml", "train"),
        ("serve", "benchmark_smoke.yaml", "benchmark"),
        ("train", "deploy.yaml", "serve"),
        ("benchmark", "eval_full.yaml", "evaluate"),
        ("evaluate", "benchmark_smoke.yaml", "benchmark"),
        ("profile", "router_train.yaml", "router train"),
        ("router train", "router_example.yaml", "router collect"),
        ("router collect", "deploy.yaml", "serve"),
    ],
)
def test_a_file_of_another_command_is_told_by_its_keys(no_model_is_loaded, capsys, command, file, owner):
    assert run(*command.split(), "--config", str(CONFIGS / file)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f"; the file looks like one for specstream {owner}\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("generate x --model target --device cpu:1", "--device is 'cpu:1', and there is one CPU; give cpu"),
        ("export target --to VLLM --output out", "--to is 'VLLM'; give one of 'vllm'"),
        ("demo --model target --host ''", "--host is ''; give a value that is not empty, or leave it out"),
    ],
)
def test_what_a_second_stranger_met(here, capsys, words, told):
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words))
    assert end.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("num_runs", ["many", 1.5, None, 0])
def test_a_number_of_runs_that_is_none(num_runs):
    engine = SpeculativeEngine(tiny_model(), tiny_tokenizer())
    with pytest.raises(UsageError, match=f"num_runs is {num_runs!r}; give a whole number from 1 on"):
        engine.benchmark(["x"], num_runs=num_runs)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("generate x -m a -m b", "-m is given twice, 'a' and 'b'; give it once"),
        ("generate x -m a --model b", "-m is given twice, 'a' and 'b'; give it once"),
        ("generate x --chat --no-chat", "--chat is given twice; give --chat or --no-chat, once"),
        ("benchmark -c b.yaml -c b.yaml", "-c is given twice, 'b.yaml' and 'b.yaml'; give it once"),
        ("benchmark task --task a --data b --task c", "--task is given twice, 'a' and 'c'; give it once"),
        ("router evaluate --router a --data b --router c", "--router is given twice, 'a' and 'c'; give it once"),
        ("report run -o ''", "-o is ''; give a value that is not empty, or leave it out"),
        ("profile -m target --prompts q.jsonl -o ''", "-o is ''; give a value that is not empty, or leave it out"),
        ("make-draft -o ''", "-o is ''; give a value that is not empty"),
        ("profile -m ' ' --prompts q.jsonl", "-m is ' '; give a value that is not empty, or leave it out"),
        (
            "distill-data --prompts q.jsonl -o a.jsonl -m no/x --exclude target/config.json",
            "holds one dict; give a list",
        ),
        ("router evaluate --router a --data=", "--data is ''; give a value that is not empty"),
        ("benchmark -c b.yaml --resume=false", "--resume takes no value; give --resume or --no-resume alone"),
        ("evaluate -c e.yaml --resume yes", "--resume takes no value; give --resume or --no-resume alone"),
        ("doctor --no-measure no", "--no-measure takes no value; give --measure or --no-measure alone"),
        ("compare --target-model a --draft-model b --input-str one two", "--input-str has 'one': it is given once"),
        ("benchmark task --task a --data b --limit 1 --nodes 7 15", "--nodes has '7': give --nodes before each"),
        ("export a b -o c", "(b); give one MODEL_OR_HEAD a call"),
        ("generate x -m target --stop-token-ids -1", "--stop-token-ids is -1; give a value that is greater than"),
        ("models pull ./target", "'./target': a folder or a hub id needs no pull, give it as --model; the catalog"),
        ("audit x --exact", "--exact is given without a value; give one behind it"),
        ("benchmark -c b.yaml --set target.model target", "--set has 'target.model': give --set before each"),
        ("train -c t.yaml training.seed=1", "give --set training.seed=1"),
        ("benchmark -c b.yaml --set measure.warmup=1 --set measure.warmup=2", "--set measure.warmup is given twice"),
        ("make-draft --layers 1 -o q.jsonl", "-o is 'q.jsonl', which is something else that would be lost"),
        ("export target -o target", "-o is 'target', which is something else that would be lost"),
        ("profile -m target --prompts q.jsonl --drafter medusa", "give heads in a --config file, a folder of heads"),
        ("generate x -m target --heads run", "give 'run/best'"),
        ("distill-data --prompts q.jsonl -o a.csv", "-o is 'a.csv' and JSON lines are written; give a name that"),
        ("make-draft --layers 1 -o out --prompts target", "--prompts 'target' is no file; give a .txt, "),
        ("benchmark task --task wikisql --data a,b", "--data 'a,b' is no file; give one that ends in .jsonl"),
        ("serve -m target --host localhost:80", "has no address"),
        ("serve -m target --host localhost:80", "; give --host localhost and --port 80"),
        ("serve -m target --host http://127.0.0.1/", "; give --host 127.0.0.1 alone"),
        ("demo -m target --host localhost:80", "; give --host localhost and --port 80"),
        ("demo -m target -m other --heads q", "of one model, and there are 2; give one"),
    ],
)
def test_what_click_takes_or_words_badly(here, no_model_is_loaded, capsys, words, told):
    if words.startswith("demo"):
        pytest.importorskip("gradio")
    for folder in ("q", "run/best"):
        (here / folder).mkdir(parents=True)
        (here / folder / "config.json").write_text('{"kind": "streams"}')
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


def test_options_that_may_be_repeated_are(here, capsys):
    words = ("generate", "x", "-m", "target", "-n", "2", "--stop", "a", "--stop", "-m", "--stop-token-ids", "1")
    assert run(*words, "--stop-token-ids", "2") == 0


def test_a_value_that_was_set_is_not_blamed_on_a_line_of_the_file(here, no_model_is_loaded, capsys):
    (here / "e.yaml").write_text("target: {model: target}\nspeculative:\n  drafter: auto\n  gamma: 2\n")
    (here / "b.yaml").write_text("experiments:\n  one:\n    arms: {a: {}}\n    vary: batch\n    values: [1]\n")
    assert run("evaluate", "-c", "e.yaml", "--set", "speculative.gamma=0") == 2
    assert capsys.readouterr().err.startswith("error: --set: gamma is 0; give")
    assert run("evaluate", "-c", "e.yaml", "--set", "speculative.drafter=medusa") == 2
    assert capsys.readouterr().err.startswith("error: e.yaml:2, with --set: drafter is 'medusa' and there are no heads")
    assert run("evaluate", "-c", "e.yaml", "--set", "datasets.mine.limit=3") == 2
    assert "there is no data set 'mine'; give a task's YAML file, or one of cnn_dailymail, " in capsys.readouterr().err
    assert run("benchmark", "-c", "b.yaml", "--set", "experiments.one.values=[0]") == 2
    assert capsys.readouterr().err.startswith("error: --set: batch is 0; give 1 or more")
    words = ("--set", "experiments.one.vary=gamma", "--set", "experiments.one.values=[1, two]")
    assert run("benchmark", "-c", "b.yaml", *words) == 2
    assert capsys.readouterr().err.startswith("error: --set: gamma is 'two'; give")
    assert run("benchmark", "-c", "b.yaml", "--set", 'measure.output_dir=""') == 2
    assert capsys.readouterr().err.startswith("error: --set: measure.output_dir is empty; give a value")


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ({"category": "a", "turns": "one"}, "record 1 of 'q.jsonl' has turns 'one'; give a list of texts"),
        ({"category": "a", "turns": []}, "record 1 of 'q.jsonl' has turns []; give a list of texts"),
        ({"turns": ["one"]}, "record 1 of 'q.jsonl' has no 'category'; give Spec-Bench's question.jsonl"),
    ],
)
def test_a_record_of_another_form_is_told_what_it_lacks(here, no_model_is_loaded, capsys, turns, told):
    (here / "q.jsonl").write_text(json.dumps(turns) + "\n")
    assert run("benchmark", "heads", "--prompts", "q.jsonl", "--model", "target") == 2
    assert told in capsys.readouterr().err
    assert run("benchmark", "task", "--task", "wikisql", "--data", "q.jsonl", "--model", "target") == 2
    assert "; give records with question and sql, or the task that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        ("generate x -m target -n 600", "-n is 600 and the context holds 48, prompt included: texts end"),
        ("audit x -m target -n 600", "-n is 600 and the context holds 48, prompt included"),
        ("profile -m target --prompts q.jsonl -n 48 --num-samples 1", "-n is 48 and the context holds"),
        ("generate '  ' -m target -n 2", "note: the prompt is '  ', which is blank"),
        (r"generate x -m target -n 2 --stop '\n'", "note: --stop is \\n, a backslash and a letter; for a line break"),
    ],
)
def test_what_was_silent_is_noted(here, capsys, words, noted):
    tiny_model(context=48).save_pretrained(here / "target")
    capsys.readouterr()
    assert run(*shlex.split(words)) == 0
    assert noted in capsys.readouterr().err
    assert run("generate", "x", "-m", "target", "-n", "2") == 0
    error = capsys.readouterr().err
    assert "note:" not in error and "specstream:" not in error


@pytest.mark.parametrize("command", ["generate x", "audit x", "distill-data --prompts q.jsonl -o a.jsonl"])
def test_a_chat_without_a_template_is_refused(here, capsys, command):
    (here / "target" / "chat_template.jinja").unlink()
    assert run(*command.split(), "-m", "target", "-n", "2", "--chat") == 2
    assert "--chat is True and this model has no chat template; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(("draft", "told"), [("self:int3", "--draft is 'self:int3'"), ("draft", "another vocabulary")])
def test_tune_tries_nothing_before_the_draft_is_one(here, monkeypatch, capsys, draft, told):
    from specstream.evaluation import tune

    monkeypatch.setattr(tune, "search", lambda *args, **kwargs: pytest.fail("something was tried"))
    tiny_model().save_pretrained(here / "draft")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(here / "draft")
    assert run("tune", "-m", "target", "--prompts", "q.jsonl", "-o", "a.yaml", "-n", "2", "--draft", draft) == 2
    error = capsys.readouterr().err
    assert told in error and "drafter" not in error


def test_a_tokenizer_of_another_model_is_blamed_not_the_prompt(here, capsys):
    tiny_model(vocab_size=200).save_pretrained(here / "target")
    assert run("generate", "the cat sat", "-m", "target", "-n", "2") == 2
    error = capsys.readouterr().err
    assert "the tokenizer has 300 tokens and the model's vocabulary is 0 to 199: it is another model's, give" in error


@pytest.mark.parametrize("choice", ["0-1", "frist", "0,1", "5"])
def test_layers_that_there_are_not_are_said_before_the_model_is_read(here, monkeypatch, capsys, choice):
    monkeypatch.setattr(load, "_load", lambda *args: pytest.fail("it was read"))
    assert run("make-draft", "-m", "target", "--layers", "1", "-o", "out", "--layer-choice", choice) == 2
    assert f"--layer-choice is '{choice}'; give auto, search, " in capsys.readouterr().err
    assert run("make-draft", "-m", "target", "--layers", "2", "-o", "out") == 2
    assert "--layers is 2 and the target has 2; give 1 to 1" in capsys.readouterr().err
    assert run("make-draft", "-m", "target", "--layers", "1", "-o", "out", "--vocab", "301") == 2
    assert "--vocab is 301; give 300 or fewer, or leave it out for all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("-m target -m nosuch", "'nosuch' is neither a local folder nor in the hub's cache"),
        ("-m target --drafter router --router nofolder", "no router in 'nofolder'"),
        ("-m target --heads other", "give that model, or heads that were trained for this one"),
        ("-m target --draft draft", "another vocabulary"),
    ],
)
def test_the_demo_opens_no_page_for_what_it_cannot_use(here, monkeypatch, capsys, words, told):
    pytest.importorskip("gradio")
    from specstream.demo import run as page
    from specstream.heads.streams import Streams
    from specstream.heads.streams_config import StreamsConfig
    from specstream.models.hub import snapshots

    def require(name):
        raise snapshots.HubUnavailable("the hub cannot be reached")

    monkeypatch.setattr(snapshots, "require", require)
    monkeypatch.setattr(page, "listen", lambda *args: pytest.fail("the page is open"))
    Streams(tiny_model(seed=1), StreamsConfig(gamma=1, layers=1)).save(here / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tiny_model().save_pretrained(here / "draft")
    tokenizer.save_pretrained(here / "draft")
    assert run("demo", "--port", "0", *words.split()) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "export rr -o out",
        "export target --target rr -o out",
        "generate x -m rr",
        "train -c t.yaml",
        "make-draft --layers 1 -m rr -o a",
    ],
)
def test_a_folder_that_holds_no_model_is_told_by_what_it_holds(here, capsys, words):
    (here / "rr").mkdir()
    (here / "rr" / "config.json").write_text('{"kind": "router"}')
    (here / "t.yaml").write_text("recipe: streams\nmodel: {target_model: rr}\ndata: {files: [q.jsonl]}\n")
    assert run(*words.split()) == 2
    error = capsys.readouterr().err
    assert "'rr' holds" in error and "router" in error and "mend config.json" not in error


def test_a_token_to_stop_at_is_called_as_it_was_typed(here, capsys):
    assert run("generate", "x", "-m", "target", "-n", "2", "--stop-token-ids", "999") == 2
    assert "error: --stop-token-ids has the token 999; the vocabulary is 0 to 299" in capsys.readouterr().err


def test_a_run_is_not_written_among_other_files(here, capsys):
    words = ("--set", "measure.output_dir=target", "--set", "generation.max_new_tokens=2")
    assert run("benchmark", "-c", "b.yaml", *words) == 2
    assert "output_dir is 'target', which holds something else; give a new folder" in capsys.readouterr().err
    assert run("profile", "-m", "target", "--prompts", "q.jsonl", "-n", "2", "-o", "target") == 2
    assert "-o is 'target', which holds something else; give a new folder" in capsys.readouterr().err


def test_a_server_says_that_answers_end_with_the_context(here, monkeypatch, caplog):
    pytest.importorskip("uvicorn")
    from specstream.serving import web as server

    monkeypatch.setattr(server, "listen", lambda *args: None)
    assert run("serve", "-m", "target", "--port", "0", "--max-tokens", "600") == 0
    assert "max_tokens is 600 and a prompt with its answer has 512 tokens at most" in caplog.text
    caplog.clear()
    assert run("serve", "-m", "target", "--port", "0", "--max-tokens", "20") == 0
    assert "max_tokens" not in caplog.text


def test_the_doctor_leaves_the_model_out_however_none_is_written(here, capsys):
    run("doctor", "--no-measure", "--model", "None")
    assert "None" not in capsys.readouterr().out
    assert run("doctor", "--no-measure", "--model", "self:int8") == 2
    assert "not a model; give self:int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # options of a group before its command
        ("benchmark --config b.yaml heads --prompts q.jsonl", "--config is given before heads, which does not read it"),
        ("benchmark -c b.yaml task --task a --data b", "there; leave -c or task out"),
        ("benchmark --no-resume heads --prompts q.jsonl", "--no-resume is given before heads"),
        ("benchmark --json heads --prompts q.jsonl", "; give it behind heads"),
        # several values with commas, where one is taken each time
        ("generate x --stop-token-ids 2,13", "takes one value each time; give --stop-token-ids 2 --stop-token-ids 13"),
        ("benchmark task --task a --data b --nodes 7,15", "--nodes is '7,15' and takes one value each time; give"),
        ("benchmark heads --prompts q.jsonl -b 1,2", "-b is '1,2' and takes one value each time; give -b 1 -b 2"),
        ("benchmark heads --prompts q.jsonl --drafter lookup,streams", "; give --drafter lookup --drafter streams"),
        ("distill-data -o c.jsonl --prompts a,b", "; give --prompts a --prompts b"),
        # what is set elsewhere
        ("generate x --num-beams 4", "No such option: --num-beams; one beam is decoded, leave it out"),
        ("train -c t.yaml --learning_rate 1", "; give --set training.learning_rate=VALUE"),
        ("train -c t.yaml --lr 1", "; give --set training.learning_rate=VALUE"),
        ("train -c t.yaml --resume-from-checkpoint a", "; the same command goes on with a run that was stopped"),
        ("router train -c t.yaml --data a", "; give --set data.files=[FILE]"),
        ("router collect -c t.yaml --output a", "; give --set collection.output=VALUE"),
        ("benchmark -c b.yaml --output-dir a", "; give --set measure.output_dir=VALUE"),
        ("evaluate -c b.yaml --model a", "; give --set target.model=VALUE"),
        (
            "serve --tensor-parallel-size 2",
            "; what vLLM gets stands behind --: --engine vllm -- --tensor-parallel-size",
        ),
        (
            "serve -- --max-model-len 9",
            "error: -- --max-model-len 9 is for vLLM and the engine is local; give --engine",
        ),
        (
            "benchmark heads --prompts q.jsonl --heads a",
            "No such option: --heads; give --streams, --medusa, --block, --eagle3 or --dflash",
        ),
        ("benchmark b.yaml", "No such command 'b.yaml'; give --config b.yaml"),
        # a folder or a file of another kind
        ("benchmark heads --prompts q.jsonl --streams m", "--streams is 'm', which holds medusa; give --medusa m"),
        ("benchmark heads --prompts q.jsonl --medusa q", "--medusa is 'q', which holds streams; give --streams q"),
        ("benchmark task --task wikisql --data w.jsonl --shared run --heads q", "--shared is 'run' and holds no model"),
        (
            "export self:int8 -o ex",
            "'self:int8' is a draft made of its target, and vLLM makes none; give a draft model",
        ),
        ("export run -o ex", "'run' is a run of training; give 'run/best'"),
        ("export rr -o ex", "'rr' holds router, which vLLM cannot run; export Medusa heads or a draft model"),
        ("export lora -o ex", "'lora' holds an adapter, not a model; merge it into its model, and export that"),
        ("train -c q/config.json", "-c 'q/config.json' is that of streams, not of a command; give a YAML file"),
        (
            "serve --api-key-file empty.txt",
            "--api-key-file 'empty.txt' is empty; write the key into it, or leave it out",
        ),
        ("router train -c rt.yaml", "q.jsonl:1 is no line of a collection: it has no 'runs'; give"),
        # values of --set
        (
            "router train -c rt.yaml --set training.output_dir=a",
            "--set: unknown key 'output_dir' in section 'training'",
        ),
        (
            "router collect -c r.yaml --set prompts=a",
            "prompts is 'a'; give a list, such as [{file: a, domain: DOMAIN}]",
        ),
        ("router collect -c r.yaml --set prompts=[a]", "; give keys and values, such as {file: a, domain: DOMAIN}"),
        (
            "router collect -c r.yaml --set prompts.0.file=a",
            "'prompts' is a list; give all of it, --set 'prompts=[..]'",
        ),
        ("router collect -c r.yaml --set drafters.x.drafter=a", "--set: in drafters.x, drafter is 'a'; give"),
        (
            "benchmark -c b.yaml --set prompts.files=[a]",
            "prompts.files.0 is 'a'; give keys and values, such as {path: a}",
        ),
        ("benchmark -c b.yaml --set target.model=", "--set: target.model is empty; give"),
        (
            "benchmark -c b.yaml --set experiments.one.arms.auto.drafter=a",
            "in experiments.one.arms.auto, drafter is 'a'",
        ),
        # what was found late
        ("train -c t.yaml --set training.output_dir=q.jsonl/a", "training.output_dir is 'q.jsonl/a', which cannot be"),
        ("generate x --router rr", "error: --router is given and --drafter is 'auto'; give --drafter router"),
    ],
)
def test_what_a_fourth_stranger_met(here, no_model_is_loaded, capsys, words, told):
    held = {"q": {"kind": "streams"}, "m": {"model_type": "medusa"}, "rr": {"kind": "router"}, "run/best": {}}
    for folder, settings in held.items():
        (here / folder).mkdir(parents=True)
        (here / folder / "config.json").write_text(json.dumps(settings))
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text("{}")
    (here / "w.jsonl").write_text(json.dumps({"text": "table: 1-1\ncolumns: a\nQ: what\nA: SELECT a FROM 1-1"}) + "\n")
    (here / "t.yaml").write_text("recipe: streams\nmodel: {target_model: target}\ndata: {files: [q.jsonl]}\n")
    (here / "rt.yaml").write_text("data: {files: [q.jsonl]}\noutput_dir: a\n")
    drafters = "drafters: {none: {drafter: none}, x: {drafter: lookup}}\ncollection: {output: c.jsonl}\n"
    (here / "r.yaml").write_text(f"{drafters}prompts:\n  - {{file: q.jsonl, domain: chat}}\n")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["streams", "medusa"])
@pytest.mark.parametrize("command", ["generate x", "demo --port 0"])
def test_heads_of_another_model_of_the_catalog_are_refused_by_name(
    here, no_model_is_loaded, monkeypatch, capsys, command, kind
):
    if command.startswith("demo"):
        pytest.importorskip("gradio")
    base = {"base": {"name": "smollm2-135m", "fingerprint": "a"}}
    settings = {"kind": kind, **base} if kind == "streams" else {"model_type": kind, "specstream": base}
    (here / "q").mkdir()
    (here / "q" / "config.json").write_text(json.dumps(settings))
    assert run(*command.split(), "-m", "qwen2.5-coder-0.5b", "--heads", "q") == 2
    told = "the heads in 'q' belong to smollm2-135m and the model is qwen2.5-coder-0.5b; give that model, or heads"
    assert told in capsys.readouterr().err


def test_a_variable_that_is_none_is_told_by_what_follows_the_prefix(monkeypatch, capsys):
    monkeypatch.setenv("SPECSTREAM_MODEL", "target")
    assert run("serve") == 2
    assert capsys.readouterr().err.endswith("; did you mean 'SPECSTREAM_MODEL_NAME'?\n")


@pytest.mark.parametrize(
    "command",
    [
        "generate x -m target --draft draft",
        "chat -m target --draft draft",
        "audit x -m target --draft draft",
        "compare --target-model target --draft-model draft --input-str x",
        "serve -m target --draft draft --port 0",
        "tune -m target --prompts q.jsonl -o a.yaml --draft draft",
        "benchmark heads -m target --prompts q.jsonl --draft draft",
        "router collect -c r.yaml --set target.model=target --set drafters.d.draft=draft",
    ],
)
def test_vocabularies_are_compared_before_the_model_is_loaded(here, monkeypatch, capsys, command):
    if command.startswith("serve"):
        pytest.importorskip("fastapi")
    monkeypatch.setattr(load, "_load", lambda *args: pytest.fail("it was read"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tiny_model().save_pretrained(here / "draft")
    tokenizer.save_pretrained(here / "draft")
    collect = {"drafters": {"none": {"drafter": "none"}, "d": {"drafter": "draft_model"}}}
    collect |= {"prompts": [{"file": "q.jsonl", "domain": "a"}], "collection": {"output": "c.jsonl"}}
    (here / "r.yaml").write_text(json.dumps(collect))
    assert run(*command.split()) == 2
    assert "the draft draft has another vocabulary (301 tokens) than target (300 tokens); " in capsys.readouterr().err


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_no_tokenizer_is_made_to_see_that_two_files_name_other_tokens(here, monkeypatch, capsys, form):
    monkeypatch.setattr("specstream.models.hub.vocabulary.tokenizer_in", lambda folder: pytest.fail("it was made"))
    target, draft = ("target", "draft") if form == "folder" else ("target.gguf", "draft.gguf")
    if form == "gguf":
        write_gguf(here / target)
        monkeypatch.setattr(gguf_files, "TOKENS", [*gguf_files.TOKENS[1:], gguf_files.TOKENS[0]])
        write_gguf(here / draft)
    else:
        tiny_model().save_pretrained(here / draft)
        tiny_tokenizer().save_pretrained(here / draft)
        settings = json.loads((here / draft / "tokenizer.json").read_text())
        known = settings["model"]["vocab"]
        known["a"], known["b"] = known["b"], known["a"]
        (here / draft / "tokenizer.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert run("generate", "x", "-m", target, "--draft", draft) == 2
    assert f"the draft {draft} has another vocabulary (" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["gguf", "unigram", "none"])
def test_tokenizers_whose_files_do_not_tell_are_compared_when_the_draft_is_loaded(here, capsys, form):
    """A GGUF file beside a folder, a list in place of a vocabulary, and no tokenizer."""
    tiny_model().save_pretrained(here / "draft")
    if form == "gguf":
        write_gguf(here / "draft.gguf")
    elif form == "unigram":
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(Unigram([("a", 0.0)], unk_id=0))).save_pretrained("draft")
    capsys.readouterr()
    assert run("generate", "x", "-m", "target", "--draft", "draft.gguf" if form == "gguf" else "draft") == 2
    told = "its tokenizer is missing" if form == "none" else "has another vocabulary ("
    assert told in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_refused_once_and_by_us(here, capsys, caplog):
    tokenizer, long = tiny_tokenizer(), "one two three " * 60
    tokenizer.model_max_length = 48
    tiny_model(context=48).save_pretrained(here / "target")
    tokenizer.save_pretrained(here / "target")
    said, logger = list[str](), logging.getLogger("transformers.tokenization_utils_base")
    handler = logging.StreamHandler()
    handler.emit = lambda record: said.append(record.getMessage())
    caplog.set_level(logging.WARNING, logger.name)  # whatever other tests made of transformers' verbosity
    logger.addHandler(handler)
    try:
        assert run("generate", long, "-m", "target") == 2
        assert not said
        load.tokenizer_in("target")(long)
        assert len(said) == 1  # whoever asks transformers itself is told
    finally:
        logger.removeHandler(handler)
    found = re.search(
        r"error: the prompt has \d+ tokens and the model's context holds 48; shorten it", capsys.readouterr().err
    )
    assert found


def test_fewer_steps_than_a_run_has_are_not_called_reached(here, monkeypatch, capsys):
    from specstream.training import loop
    from specstream.training import run as training

    outcome = loop.Outcome(progress=loop.Progress(step=2), finished=True)
    monkeypatch.setattr(training, "train", lambda settings: outcome)
    (here / "t.yaml").write_text("recipe: streams\ntraining: {num_train_steps: 1}\n")
    assert run("train", "-c", "t.yaml") == 0
    assert "finished: 2 steps, more than the 1 asked for, " in capsys.readouterr().out


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "specstream", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("specstream ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # dashes of word processors
        ("generate x \u2013-max-tokens 5", "'\u2013-max-tokens' begins with a long dash; give --max-tokens"),
        ("generate x -\u2013max-tokens=5", "'-\u2013max-tokens=5' begins with a long dash; give --max-tokens"),
        ("generate \u2014n", "'\u2014n' begins with a long dash; give -n, with the dash of the keyboard"),
        ("generate x \u2013n5", "'\u2013n5' begins with a long dash; give -n"),
        ("benchmark \u2013c b.yaml", "'\u2013c' begins with a long dash; give -c"),
        ("\u2013-version", "'\u2013-version' begins with a long dash; give --version"),
        # a drafter for a model
        ("generate x --draft lookup", "'lookup' is a drafter, not a model; give a model here, or --drafter lookup\n"),
        ("generate x --draft [ngram]", "'[ngram]' is a drafter, not a model; give a model here, or --drafter lookup\n"),
        ("demo -m streams", "'streams' is a drafter, not a model; give a model here, or --drafter streams\n"),
        (
            "compare --target-model target --draft-model lookup --input-str x",
            "give a model here; generate and benchmark heads have --drafter",
        ),
        ("tune -m target --prompts q.jsonl -o a.yaml --draft none", "; generate and benchmark heads have --drafter"),
        ("benchmark heads --prompts q.jsonl -m target --draft medusa", "give a model here, or --drafter medusa\n"),
        ("demo --draft lookup", "'lookup' is a drafter, not a model"),
        ("train -c t.yaml --set model.target_model=lookup", "'lookup' is a drafter, not a model"),
        # one file's name for another format, a folder's for a file
        ("audit x -o x.csv", "-o is 'x.csv' and JSON is written; give a name that ends in .json"),
        ("benchmark heads --prompts q.jsonl -o x.csv", "-o is 'x.csv' and JSON is written; give a name that ends in"),
        ("benchmark task --task wikisql --data a --output x.txt", "--output is 'x.txt' and JSON is written"),
        ("router evaluate --router a --data b -o x.yaml", "-o is 'x.yaml' and JSON is written"),
        ("make-draft --layers 1 -o x.gguf", "-o is 'x.gguf' and a folder is written; give a name without .gguf"),
        ("export target -o x.safetensors", "-o is 'x.safetensors' and a folder is written"),
        ("profile -m target --prompts q.jsonl -o x.json", "-o is 'x.json' and a folder is written"),
        ("report run -o x.html", "-o is 'x.html' and a folder is written"),
        (
            "benchmark -c b.yaml --set measure.output_dir=x.json",
            "measure.output_dir is 'x.json' and a folder is written",
        ),
        ("train -c t.yaml --set training.output_dir=x.pt", "training.output_dir is 'x.pt' and a folder is written"),
        ("audit x -o -", "-o is '-', and nothing is written to the standard output; give a name, or --json to print"),
        # values that are none
        ("audit x -o --json", "-o is given without a value: '--json' is an option; give one before it"),
        ("generate x -m=target", "-m is '=target'; give -m target, with a space"),
        ("generate x -t nan", "-t is nan; give a value that is a finite number"),
        ("generate x --router-state a", "give --drafter router, or leave --router-state out"),
        ("demo -m https://huggingface.co/a/b/tree/main", "is an address; give the hub id in it, 'a/b'"),
        ("generate --prompt-file empty.txt", "--prompt-file 'empty.txt' is empty; give another file, or a prompt"),
        ("generate --prompt-file latin.txt", "it is not UTF-8, and becomes so with: iconv -f latin1"),
        ("benchmark heads --prompts q.jsonl --streams q --pruning 2", "--pruning is 2.0; give a value that is less"),
        ("benchmark task --task wikisq --data q.jsonl", "--task 'wikisq' is no task; give a YAML file, or one of"),
        ("benchmark task --task q.jsonl --data wikisql", "--task 'q.jsonl' is a file, not a task; give a YAML file"),
        ("benchmark task --task wikisql --data w.jsonl --shared none", "--shared is 'none', which is no folder"),
        ("benchmark task --task wikisql --data w.jsonl --heads target", "'target' holds 'llama'; give a folder of"),
        ("serve --api-key-file b.yaml", "--api-key-file 'b.yaml' has white space or a character that no header holds"),
        ("make-draft --layers 1 -o out --texts empty.jsonl", "--texts 'empty.jsonl' is empty; give another file"),
        # settings of files
        ("benchmark -c b.yaml --set prompts.files.0.path=a", "give all of it, --set 'prompts.files=[..]'"),
        ("benchmark -c b.yaml --set target.dtype=fp16", "error: --set: target.dtype is 'fp16'; give auto, "),
        ("evaluate -c e.yaml --set target.device=gpu", "error: --set: target.device is 'gpu', which is not"),
        ("router collect -c r.yaml --set target.dtype=fp16", "error: --set: target.dtype is 'fp16'; give auto, "),
        ("train -c t.yaml --set model.dtype=fp16", "model.dtype is 'fp16'; give auto, "),
        ("train -c t.yaml --set model.device=gpu", "model.device is 'gpu', which is not available here"),
        ("train -c t.yaml --set data.files=[empty.jsonl]", "file 'empty.jsonl' holds no example; give another"),
        ("train -c t.yaml --set lr=1", "did you mean 'training.learning_rate'?"),
        ("benchmark -c b.yaml --set generation.max_tokens=4", "--set: unknown setting 'generation.max_tokens'; known"),
        ("benchmark -c b.yaml --experiments two", "there is no experiment 'two' in b.yaml; give one of: one"),
        (
            "router collect -c r.yaml --set 'prompts=[{file: q.jsonl, domain: a, skip: 9}]'",
            "skip is 9 and 'q.jsonl' has 2",
        ),
        # options and commands that there are not
        ("benchmark --task wikisql --data w.jsonl", "No such option: --task; give it behind task"),
        ("benchmark -c b.yaml --task wikisql", "; give --set 'prompts.files=[{path: PATH, task: TASK}]'"),
        ("benchmark -c b.yaml --num-runs 3", "; give --set measure.repeats=VALUE"),
        ("benchmark -c b.yaml -o a", "; give --set measure.output_dir=VALUE"),
        ("benchmark heads --task wikisql --prompts q.jsonl", "No such option: --task; give specstream benchmark task"),
        ("train -c t.yaml --model target", "; give --set model.target_model=VALUE"),
        ("tune --drafter lookup", "No such option: --drafter; all that are at hand are tried, leave it out"),
        ("generate x --ctx-size 9", "No such option: --ctx-size; the context is the model's own, leave it out"),
        ("generate x -o a.txt", "No such option: -o; the text goes to the standard output"),
        ("compare --prompts q.jsonl", "No such option: --prompts; give --input-str TEXT, or --input-str - < FILE"),
        ("serve --temperature 0.5", "; give temperature in a --config file, or SPECSTREAM_TEMPERATURE"),
        ("serve -n 5", "No such option: -n; give --max-tokens"),
        ("--model target generate x", "No such option: --model; give it behind generate"),
        ("train t.yaml", "Missing option '--config' / '-c'; give --config t.yaml"),
        ("export target out", "Missing option '--output' / '-o'; give --output out"),
        ("tune -m target 'one two' -o a.yaml", "Missing option '--prompts'; give --prompts 'one two'"),
        ("doctor target", "; give --model target"),
        ("models list target", "Got unexpected extra argument(s) (target); leave it out"),
        ("router", "Missing command; give one of collect, train, evaluate"),
        ("models mv a", "No such command 'mv'; give one of list, pull"),
        ("pull a", "No such command 'pull'. Did you mean 'models pull'?"),
        ("version", "No such command 'version'; give --version"),
        # a file of a folder, and a folder of another kind
        ("report run/run.json", "'run/run.json' is a file of a run; give its folder, 'run'"),
        ("router evaluate --router q/config.json --data a", "no router in 'q/config.json' (it is a file); give 'q'"),
    ],
)
def test_what_a_sixth_stranger_met(here, no_model_is_loaded, monkeypatch, capsys, words, told):
    if words.startswith("demo"):
        pytest.importorskip("gradio")
    from specstream.models.hub import snapshots

    monkeypatch.setattr(snapshots, "require", lambda name: pytest.fail(f"the hub was asked for {name}"))
    (here / "q").mkdir()
    (here / "q" / "config.json").write_text('{"kind": "streams"}')
    (here / "run").mkdir()
    (here / "run" / "run.json").write_text("{}")
    (here / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (here / "empty.jsonl").touch()
    (here / "w.jsonl").write_text(json.dumps({"text": "table: 1-1\ncolumns: a\nQ: what\nA: SELECT a FROM 1-1"}) + "\n")
    (here / "t.yaml").write_text("recipe: streams\nmodel: {target_model: target}\ndata: {files: [q.jsonl]}\n")
    (here / "e.yaml").write_text("target: {model: target}\ndatasets: {wikisql: {path: w.jsonl}}\n")
    drafters = "drafters: {none: {drafter: none}, x: {drafter: lookup}}\ncollection: {output: c.jsonl}\n"
    (here / "r.yaml").write_text(f"{drafters}prompts:\n  - {{file: q.jsonl, domain: chat}}\n")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "words",
    ["generate -", "audit -", "compare --target-model target --draft-model target --num-runs 1 --input-str -"],
)
def test_a_dash_for_a_prompt_is_the_standard_input(here, monkeypatch, capsys, words):
    asked = []
    monkeypatch.setattr(SpeculativeEngine, "__init__", lambda self, *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr("specstream.cli.options.check_text", lambda text, *rest: asked.append(text) or 1 / 0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one two\n")))
    model = [] if words.startswith("compare") else ["-m", "target"]
    assert run(*words.split(), *model) == 1
    assert asked == ["one two"]


@pytest.mark.parametrize(
    "words",
    [
        "audit x -m target -n 2 --output=~/a/x.json",
        "audit x -m target -n 2 -o ~/a/x.json",
        "train -c b.yaml --set data.files=[~/a/x.json]",
        "benchmark -c home.yaml",
        "generate --prompt-file=~/a/x.json -m target",
    ],
)
def test_a_users_folder_is_found_wherever_a_path_begins_with_it(here, no_model_is_loaded, monkeypatch, capsys, words):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home.yaml").write_text("prompts: {files: [{path: ~/a/x.json}]}\nexperiments: {one: {}}\n")
    (here / "b.yaml").write_text("recipe: streams\ndata: {files: []}\n")
    assert run(*words.split()) == 2
    assert str(here / "home" / "a" / "x.json") in capsys.readouterr().err
    assert not (here / "~").exists()


def test_a_prompt_that_begins_like_a_users_folder_stays_as_it_is(here, monkeypatch, capsys):
    from specstream.cli import options

    asked = []
    monkeypatch.setattr(options, "check_text", lambda text, read_by: asked.append(text) or 1 / 0)
    for words in (["~/x"], ["--prompt=~/x"], ["--prompt", "~/x"], ["-p", "~/x"]):
        run("generate", *words)
    assert asked == ["~/x"] * 4


@pytest.mark.parametrize("option", ["--heads", "--streams"])
def test_heads_of_a_model_of_another_size_are_refused_before_it_is_loaded(here, no_model_is_loaded, capsys, option):
    Streams(tiny_model(), StreamsConfig(gamma=1, layers=1)).save(here / "small")
    (here / "large").mkdir()
    (here / "large" / "config.json").write_text('{"model_type": "llama", "hidden_size": 576}')
    verb = ("generate", "x") if option == "--heads" else ("benchmark", "heads", "--prompts", "q.jsonl")
    assert run(*verb, "-m", "large", option, "small") == 2
    told = "belong to llama (hidden size 48) and the model is large (576); give that model, or heads that were trained"
    assert told in capsys.readouterr().err


def test_heads_in_place_of_a_model_are_told_with_their_base(here, capsys):
    bases = (
        {"kind": "streams", "base": {"name": "gpt2"}},
        {"model_type": "medusa", "specstream": {"base": {"name": "gpt2"}}},
    )
    for settings in bases:
        (here / "heads").mkdir(exist_ok=True)
        (here / "heads" / "config.json").write_text(json.dumps(settings))
        assert run("generate", "x", "-m", "heads") == 2
        assert "and no model; give its base, gpt2, and 'heads' as heads" in capsys.readouterr().err


def test_options_of_heads_without_heads_are_refused(here, capsys):
    for option, value, lacking in (("--fixed", "5", "heads"), ("--pruning", "0.1", "streams")):
        assert run("benchmark", "heads", "--prompts", "q.jsonl", "-m", "target", option, value) == 2
        assert f"{option} is {value} and there are no {lacking} for this model; give" in capsys.readouterr().err


def test_a_run_without_a_sample_takes_other_settings(here, monkeypatch, capsys):
    from specstream.evaluation.benchmark.folder import RunFolder

    first = {"experiments": {"one": {}}, "target": {"model": "a"}}
    RunFolder(here / "run").begin(first, {}, {})
    assert RunFolder(here / "run").begin({**first, "target": {"model": "b"}}, {}, {}) == 1
    sample = {"kind": "sample", "experiment": "one", "value": None, "arm": "plain", "arm_value": None}
    folder = RunFolder(here / "run")
    folder.append({**sample, "item": 0, "repeat": 0})
    with pytest.raises(UsageError, match=r"holds a run with target\.model 'b' and now it is 'a'"):
        RunFolder(here / "run").begin(first, {}, {})


def test_the_demo_checks_its_settings_before_it_imports_a_page(here, monkeypatch, capsys):
    from specstream.models.hub import snapshots

    def unreachable(name):
        raise snapshots.HubUnavailable("the hub cannot be reached")

    monkeypatch.setattr("specstream.environment.require", lambda *names: pytest.fail("the page was asked for"))
    monkeypatch.setattr(snapshots, "require", unreachable)
    assert run("demo", "--port", "0", "-m", "target", "-m", "nowhere") == 2
    assert "'nowhere' is neither a local folder nor in the hub's cache" in capsys.readouterr().err
    assert run("demo", "-n", "0") == 2
    assert "-n is 0; give a value that is greater than or equal to 1" in capsys.readouterr().err


@pytest.fixture
def seventh(here, monkeypatch):
    """The folder with files of the seventh stranger's, without a hub."""
    from specstream.models.hub import snapshots

    monkeypatch.setattr(snapshots, "require", lambda name: pytest.fail(f"the hub was asked for {name}"))
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    (here / "one.txt").write_text("one two\nthree four\n")
    (here / "t.yaml").write_text("recipe: streams\nmodel: {target_model: target}\ndata: {files: [q.jsonl]}\n")
    drafters = "drafters: {none: {drafter: none}, x: {drafter: lookup}}\ncollection: {output: c.jsonl}\n"
    (here / "r.yaml").write_text(f"{drafters}prompts:\n  - {{file: q.jsonl, domain: chat}}\n")
    return here


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # a folder's name for a file
        ("distill-data --prompts q.jsonl -o new/", "-o is 'new/', which is the name of a folder; give that of a file"),
        ("audit x -m target -o new/", "-o is 'new/', which is the name of a folder; give that of a file"),
        ("benchmark heads --prompts q.jsonl -m target --output new/", "--output is 'new/', which is the name of a"),
        ("benchmark task --task wikisql --data q.jsonl -o new/", "-o is 'new/', which is the name of a folder"),
        ("router evaluate --router a --data b -o new/", "-o is 'new/', which is the name of a folder"),
        ("router collect -c r.yaml --set collection.output=new/", "collection.output is 'new/', which is the name of"),
        ("generate x -m target --drafter router --router-state new/", "--router-state is 'new/', which is the name of"),
        # what led nowhere
        ("audit --prompt x", "No such option: --prompt; give the prompt alone, in quotes, or a file of some as --prom"),
        ("audit -p x", "No such option: -p; give the prompt alone, in quotes, or a file of some as --prompts"),
        (
            "train -c t.yaml --set training.num_train_epochs=1",
            "'num_train_steps', and epochs are not counted: steps = ",
        ),
        (
            "train -c t.yaml --num-train-epochs 1",
            "; give --set training.num_train_steps=VALUE, and epochs are not coun",
        ),
        ("generate x -ngl 99 -n 4", "No such option: -ngl; give --device cuda to use the GPU"),
        ("generate x -m target -ngl 99", "No such option: -ngl; give --device cuda to use the GPU"),
        (
            "serve -m target --engine vllm --quantization int8",
            "--quantization is 'int8', which is not vLLM's; leave it out, or give --engine local; vLLM's own",
        ),
        (
            "generate x -m target --draft-quantization int8",
            "--draft-quantization is 'int8' and there is no --draft; leave it out\n",
        ),
        # without a remedy
        ("compare --target-model a --draft-model b --input-str x --output a.json", "; give --json > FILE (see"),
        ("compare -o a.json", "; give --json > FILE (see"),
        ("doctor --json --output a.json", "; give --json > FILE (see"),
        (
            "benchmark heads --prompts q.jsonl --quantization int8",
            "; generate, compare, audit and serve have it, benchm",
        ),
        ("distill-data --prompts q.jsonl -o a.jsonl --quantization int8", "; generate, compare, audit and serve have"),
        (
            "doctor --quantization int8",
            "; generate, compare, audit and serve have it, benchmark has --set target.quanti",
        ),
        ("tune -m a --quantization int8", "; generate, compare, audit and serve have it, benchmark has --set target"),
        ("demo -m a --quantization int8", "; generate, compare, audit and serve have it, benchmark has --set target"),
        ("doctor --fix", "; nothing is changed, what is to be mended is printed with its remedy, leave it out"),
        ("doctor --device cuda", "; the processor and every GPU are looked at, leave it out"),
        ("doctor --gpu", "; the processor and every GPU are looked at, leave it out"),
        (
            "models pull",
            "Missing argument 'NAME'; give one of qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, smollm2-135m (see",
        ),
        ("models pull smollm2-135m --force", "; what is here is kept, delete the folder that pull prints to fetch it"),
        ("models pull --name smollm2-135m", "; give the name alone, models pull NAME"),
        ("models list --format json", "; give --json (see"),
        ("models list --all", "; all are listed, leave it out"),
        ("compare --batch-size 4", "; one prompt is decoded, benchmark heads has --batch-size"),
        (
            "benchmark heads --num-runs 3",
            "; every prompt is answered once by each drafter, --per-category sets how many",
        ),
    ],
)
def test_what_a_seventh_stranger_met(seventh, no_model_is_loaded, monkeypatch, capsys, words, told):
    if words.startswith("demo"):
        pytest.importorskip("gradio")
    before = sorted(seventh.rglob("*"))
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert sorted(seventh.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        ("generate --prompt-file q.jsonl", "'q.jsonl' holds 2 records and is read as one text; to answer each: specst"),
        (
            "audit x --batch-size 4",
            "--batch-size is 4 and there is 1 prompt: nothing is decoded side by side; give --p",
        ),
        (
            "audit x -b 4",
            "-b is 4 and there is 1 prompt: nothing is decoded side by side; give --prompts, a file of mo",
        ),
        ("generate target", "'target' is a model, and its name is taken as the prompt; to use it: --model target"),
        ("audit target", "'target' is a model, and its name is taken as the prompt; to use it: --model target"),
    ],
)
def test_what_a_seventh_stranger_was_not_told(here, capsys, words, noted):
    assert run(*words.split(), "-m", "target", "-n", "2") == 0
    assert f"note: {noted}" in capsys.readouterr().err
    assert run("generate", "--prompt-file", "b.yaml", "-m", "target", "-n", "2") == 0
    assert run("audit", "--prompts", "q.jsonl", "-b", "2", "-m", "target", "-n", "2") == 0
    assert "note:" not in capsys.readouterr().err


def test_a_draft_of_another_vocabulary_is_not_advised_in_a_circle(here, capsys):
    tiny_model(vocab_size=200).save_pretrained(here / "draft")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(here / "draft")
    assert run("generate", "x", "-m", "target", "-d", "draft") == 2
    assert capsys.readouterr().err.endswith("; give a draft of the same tokenizer, or leave -d out\n")
    assert run("compare", "--target-model", "target", "--draft-model", "draft", "--input-str", "x") == 2
    assert capsys.readouterr().err.endswith("; give a draft of the same tokenizer\n")


def test_blanks_around_the_sign_of_a_setting_are_left_out(here):
    from specstream.training.config import read_config

    (here / "t.yaml").write_text("recipe: streams\ndata: {files: [q.jsonl]}\n")
    assert read_config("t.yaml", ["training.num_train_steps = 4"]).training.num_train_steps == 4
    with pytest.raises(UsageError, match=r"--set training\.seed is given twice"):
        read_config("t.yaml", ["training.seed=1", "training.seed =2"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("targte", "'targte' is no folder here, no catalog name and not in the hub's cache; did you mean 'target'? "),
        ("gpt2", "if the hub has it, this fetches it: specstream generate 'The sea is' --model gpt2"),
        ("smollm2-135m", "smollm2-135m is not here; to fetch it: specstream models pull smollm2-135m"),
    ],
)
def test_the_doctor_says_how_a_model_is_fetched(here, monkeypatch, capsys, name, told):
    from specstream.models.hub import snapshots

    monkeypatch.setenv("SPECSTREAM_MODELS", str(here / "none"))
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda name: None)
    run("doctor", "-m", name, "--no-measure", "--json")
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(told in each for each in notes), notes


def test_a_summary_names_the_option_that_measures_a_baseline(here, monkeypatch, capsys):
    from specstream.engine import generation

    monkeypatch.setattr(generation, "MOST_GAIN", 0.0)
    assert run("generate", "x", "-m", "target", "-n", "24") == 0
    error = capsys.readouterr().err
    assert "; --measure-baseline measures some" in error and "measure_baseline" not in error


def test_a_text_to_train_on_is_noted_to_be_one(seventh, capsys):
    assert run("train", "-c", "t.yaml", "--set", "data.files=[one.txt]") == 2
    told = "note: 'one.txt' is a .txt, one text here, in blocks of 512 tokens; a .jsonl has an example a line\n"
    assert capsys.readouterr().err.startswith(told)


def test_what_is_set_in_a_servers_file_is_refused_by_its_name(seventh, capsys):
    (seventh / "s.yaml").write_text("engine: vllm\nmodel_path: target\nquantization: int4\n")
    assert run("serve", "-c", "s.yaml") == 2
    assert (
        "error: quantization is 'int4', which is not vLLM's; leave it out, or give --engine local; "
        in capsys.readouterr().err
    )


def test_an_adapter_in_place_of_a_model_is_told_with_its_base(seventh, capsys):
    for name, settings, base in (
        ("adapter", '{"base_model_name_or_path": "gpt2"}', " of 'gpt2'"),
        ("adapter/", "{", ""),
    ):
        (seventh / "adapter" / "adapter_config.json").write_text(settings)
        assert run("generate", "x", "-m", name) == 2
        told = f"error: '{name}' is a LoRA adapter{base}, not a model: merge it into its base model, with merge_and_"
        assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # no remedy
        ("-V", "No such option: -V; give --version"),
        ("'Explain tides.'", "No such command 'Explain tides.'; give specstream generate 'Explain tides.'"),
        ("report run --html", "No such option: --html; leave it out; the options are --output (see specstream report"),
        ("models list --cached", "No such option: --cached; leave it out; the options are --json (see"),
        ("router evaluate --config a", "No such option: --config; leave it out; the options are --router, --data, "),
        ("doctor smollm2-135m", "unexpected extra argument(s) (smollm2-135m); give --model smollm2-135m"),
        # one dash
        ("generate x -m target -max-tokens 5", "No such option: -max-tokens; give two dashes before max-tokens"),
        ("generate x -m target -temperature=1", "No such option: -temperature; give two dashes before temperature"),
        ("audit x -model target", "No such option: -model; give two dashes before model"),
        ("tune -prompts q.jsonl -o a.yaml", "No such option: -prompts; give two dashes before prompts"),
        # what another library says, or what is meant for somebody else
        ("generate x -m target --heads notes", "no heads in 'notes' (config.json: No such file or directory); give"),
        ("router evaluate --router notes --data q.jsonl", "no router in 'notes' (config.json: No such file or directo"),
        ("benchmark task --task bad.yaml --data q.jsonl", "--task 'bad.yaml' is not YAML: line 2, 'b: {': expected"),
        ("serve -m target --host nowhere.invalid", "is 'nowhere.invalid', which has no address ("),
        (
            "make-draft --target target --layers 1 -o out --texts empty.txt",
            "no example in 'empty.txt'; give another fi",
        ),
        ("profile -m target --temperature 1", "; give --config FILE and --set generation.temperature=VALUE"),
        # the place of what is wrong, and what makes it
        ("train -c d.yaml", "model.draft_model: there is no folder 'runs/draft', and it is not taken for a hub id"),
        ("train -c d.yaml", "; specstream make-draft makes a draft"),
        ("train -c d.yaml --set model.draft_model=target", "data 'gone.jsonl' is no file here; give one, or write ans"),
        ("router collect -c c.yaml --set drafters.none.drafter=x", "drafters.none is the measure of all; give drafter"),
    ],
)
def test_what_an_eighth_stranger_met(here, capsys, words, told):
    (here / "notes").mkdir()
    (here / "bad.yaml").write_text("a: [1]\nb: {")
    (here / "d.yaml").write_text(
        "recipe: draft\nmodel: {target_model: target, draft_model: runs/draft}\ndata: {files: [gone.jsonl]}\n"
    )
    drafters = "drafters: {none: {drafter: none}, x: {drafter: lookup}}\ncollection: {output: c.jsonl}\n"
    (here / "c.yaml").write_text(f"{drafters}prompts: [{{file: q.jsonl, domain: chat}}]\n")
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert "[Errno" not in error


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (
            "generate gone.txt",
            "'gone.txt' is no file here, and is taken as the prompt; to read a file: --prompt-file FI",
        ),
        (
            "audit gone.jsonl",
            "'gone.jsonl' is no file here, and is taken as the prompt; to read a file: --prompts FILE",
        ),
        ("generate x --drafter none -K 4", "-K is 4, without effect as --drafter is 'none'; leave -K out"),
        ("generate x -t 0 --min-p 0.1 --json", "--min-p is 0.1, without effect at temperature 0; give -t 0.7"),
        ("generate x --acceptance-threshold 0.3", "--acceptance-threshold is 0.3, without effect at temperature 0"),
    ],
)
def test_what_an_eighth_stranger_was_not_told(here, capsys, words, noted):
    assert run(*words.split(), "-m", "target", "-n", "2") == 0
    assert f"note: {noted}" in capsys.readouterr().err
    assert run("generate", "see x.txt", "-m", "target", "-n", "2", "--top-p", "1", "--top-k", "0") == 0
    assert "note:" not in capsys.readouterr().err


def test_a_checkpoint_of_no_causal_model_is_called_by_its_class(here, capsys):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(here / "bert")
    tiny_tokenizer().save_pretrained(here / "bert")
    capsys.readouterr()
    assert run("generate", "x", "-m", "bert") == 2
    assert "-m 'bert', saved as BertModel, lacks the weights of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # a memory that nothing could be written into
        ("generate x -m target --memory q.jsonl/x.mem", "--memory is 'q.jsonl/x.mem', where 'q.jsonl' is no folder; g"),
        ("serve -m target --memory q.jsonl/x.mem", "--memory is 'q.jsonl/x.mem', where 'q.jsonl' is no folder; give a"),
        (
            "generate x -m target --memory /dev/null",
            "--memory is '/dev/null', which is a device or a pipe; give the na",
        ),
        (
            "quantize target --output s3://a/b",
            "--output is 's3://a/b', which is an address; give a place on this machine",
        ),
        (
            "make-draft --target target --layers 1 --output s3://a/b",
            "--output is 's3:/a/b', which is an address; give a",
        ),
        (
            "audit x -m target --output s3://a/b.json",
            "--output is 's3://a/b.json', which is an address; give a place on ",
        ),
        (
            "generate x -m target --memory s3://a/b",
            "--memory is 's3:/a/b', which is an address; give a place on this ma",
        ),
        (
            "generate x -m target --memory q.jsonl",
            "--memory is 'q.jsonl', which cannot be used: it is damaged, or no mem",
        ),
        (
            "chat -m target --memory q.jsonl",
            "--memory is 'q.jsonl', which cannot be used: it is damaged, or no memory; g",
        ),
        ("generate x -m target --memory notes", "--memory is 'notes', which is a folder; give the name of a file"),
        # a word in place of a file
        ("generate x -m target --memory False", "--memory is 'False', a word and no file; give the name of one (in Py"),
        ("generate x -m target --no-memory", "--no-memory; an answer is kept only where --memory names a file, lea"),
        # what another library says
        (
            "generate x -m target --memory q.jsonl",
            "cannot be used: it is damaged, or no memory; give a new name",
        ),
        # what makes it
        ("generate x -m target -d self:int8 --memory a", "--drafter is 'auto' with a draft, which makes no use of it;"),
        # options of other commands
        ("quantize target -o out --quantization int8", "No such option: --quantization; give --bits int8 or --bits in"),
        ("quantize --model target -o out", "No such option: --model; give the model alone, quantize MODEL"),
        ("quantize target -o out --force", "No such option: --force; what is there is kept, give a new folder, leave "),
        (
            "quantize target -o out --group-size 64",
            "No such option: --group-size; groups have 32 weights, leave it out",
        ),
        # a reason, and the value as it was given
        ("quantize target -o q.jsonl/out", "-o is 'q.jsonl/out', where a file is in place of a folder; give a folder "),
    ],
)
def test_what_a_ninth_stranger_met(here, monkeypatch, capsys, words, told):
    (here / "notes").mkdir()
    if "damaged" not in told:  # which the tokenizer is needed for
        monkeypatch.setattr(load, "resolve", lambda name: pytest.fail(f"{name} was asked for"))
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # a folder that the default model, or another of the catalog, would be taken from afterwards
        ("quantize target -o smollm2-135m", "-o is 'smollm2-135m', which is the name of a model of the catalog; give"),
        ("quantize target -o ./smollm2-135m", "which is the name of a model of the catalog; give another"),
        ("make-head target --prompts q.jsonl -o smollm2-135m", "which is the name of a model of the catalog; give"),
        ("make-draft --target target --layers 1 -o smollm2-135m", "which is the name of a model of the catalog; give"),
        ("export target -o smollm2-135m", "-o is 'smollm2-135m', which is the name of a model of the catalog; give an"),
        # after the target was loaded
        ("generate x -m target -d self:int9", "-d is 'self:int9'; the target drafts for itself as self:int8 or self"),
        ("tune --prompts q.jsonl -m target -d self:4bit -o a.yaml", "-d is 'self:4bit'; the target drafts for its"),
        (
            "compare --target-model target --draft-model self:int9 --input-str x",
            "--draft-model is 'self:int9'; the target drafts for itself as self:int8 or self:int4",
        ),
        # what is in its place
        ("export few -o out", "is 'few', a compressed-tensors checkpoint, which is not exported; give the model that"),
        ("export tiny.gguf -o out", "is 'tiny.gguf', a GGUF file, which is not exported; give the model's folder"),
        ("generate x -m target --heads q.jsonl", "no heads in 'q.jsonl' (it is a file); give a folder that training"),
        (
            "benchmark heads --prompts missing.jsonl -m target",
            "No such file or directory; give Spec-Bench's question.jso",
        ),
        # memory that no machine has
        ("chat -m target --prefix-cache-gb 9999999", "--prefix-cache-gb is 9999999 and this machine has "),
        ("serve -m target --port 0 --prefix-cache-gb 9999999", "--prefix-cache-gb is 9999999 and this machine has "),
        ("chat Hello", "unexpected extra argument(s) (Hello); give it to specstream generate, or when chat asks"),
    ],
)
def test_what_a_tenth_stranger_met(here, no_model_is_loaded, capsys, words, told):
    (here / "few").mkdir()
    (here / "few" / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    write_gguf(here / "tiny.gguf")
    (here / "owned.yaml").write_text("models: null\nexperiments: {}\n")
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not (here / "smollm2-135m").exists()


def test_the_demo_looks_for_its_port_before_it_imports_a_page(monkeypatch, capsys):
    monkeypatch.setattr("specstream.environment.require", lambda *names: None)
    monkeypatch.setitem(sys.modules, "specstream.demo.offered", None)
    assert run("demo", "--host", "203.0.113.1") == 2
    assert "error: cannot listen on 203.0.113.1:7860" in capsys.readouterr().err


def test_a_memory_is_noted_where_nothing_is_copied_from_it(here, capsys):
    words = ("generate", "x", "-m", "target", "-n", "2", "--memory", "a.mem")
    assert run(*words, "-t", "1", "--seed", "1") == 0
    assert "note: --memory is 'a.mem', and above temperature 0 no draft is copied from it" in capsys.readouterr().err
    assert run(*words) == 0
    assert "note:" not in capsys.readouterr().err


def test_every_drafter_is_in_the_help():
    told = Drafter.__metadata__[0].help
    assert [name for name in get_args(DrafterName) if name not in told] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # a comma for the point
        ("generate x -m target -t 0,7", "-t is '0,7'; give 0.7, with a point"),
        (
            "benchmark -c b.yaml --set generation.temperature=0,7",
            "generation.temperature is '0,7'; give 0.7, with a po",
        ),
        ("generate x -m target -n 1,000", "-n is '1,000'; give 1000"),
        # what holds something else
        ("generate x -m adapter", "'adapter' is a LoRA adapter, not a model: merge"),
        ("generate x -m target --heads adapter", "no heads in 'adapter' (it holds a LoRA adapter); give a folder that"),
        (
            "evaluate -c e.yaml --set measure.output_dir=runs/run",
            "output_dir is 'runs/run', which holds a run of specstream benchmark",
        ),
        ("report runs", "'runs' holds no run; give one of those in it: runs/run"),
        ("report target", "'target' holds a model, or heads of one; give a folder that specstream benchmark wrote"),
        ("export target -o ex --target t5", "t5 cannot be a target: t5 is an encoder-decoder"),
        ("make-draft -m t5 --layers 1 -o ex", "t5 cannot be a target: t5 is an encoder-decoder"),
        (
            "make-draft -m one --layers 1 -o ex",
            "layers is 1 and the target has 1, of which no fewer can be taken; give",
        ),
        (
            "export pointed -o ex",
            "'pointed' cannot be loaded: model.safetensors is a pointer of git-lfs, without content",
        ),
        ("serve -m target --lora-modules tiny=", "--lora-modules is 'tiny=', which has no path; give NAME=PATH"),
        # where it is instead
        (
            "benchmark -c b.yaml --experiments one two",
            "--experiments has 'one'; give --experiments one,two, with commas",
        ),
        ("chat -m target --prompt x", "No such option: --prompt; give specstream generate for one answer"),
        ("doctor model.gguf", "give --model model.gguf"),
        ("make-head --model target", "No such option: --model; give the model alone, make-head MODEL"),
        ("quantize target -o q8 --dtype int8", "No such option: --dtype; give --bits int8 or --bits int4"),
        ("evaluate -c e.yaml --output_path x", "No such option: --output_path; give --set measure.output_dir=VALUE"),
        ("models pull a -o b", "No such option: -o; SPECSTREAM_MODELS names the folder, leave it out"),
        ("benchmark-haeds --prompts q.jsonl", "No such command 'benchmark-haeds'. Did you mean 'benchmark heads'?"),
        ("help generate", "No such command 'help'; give generate --help"),
    ],
)
def test_what_a_twelfth_stranger_met(here, capsys, words, told):
    for name in ("adapter", "runs/run"):
        (here / name).mkdir(parents=True)
    (here / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    (here / "runs" / "run" / "run.json").write_text("{}")
    (here / "e.yaml").write_text("target: {model: target}\ndatasets: {wikisql: {path: q.jsonl}}\n")
    (here / "model.gguf").write_bytes(b"GGUF")
    for name, settings in (("t5", T5Config(num_layers=1)), ("one", LlamaConfig(num_hidden_layers=1))):
        settings.save_pretrained(here / name)
    shutil.copytree(here / "target", here / "pointed")
    _pointer("model.safetensors")(here / "pointed")
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not (here / "ex").exists()


def test_a_template_that_is_damaged_is_blamed_not_the_messages(here, capsys):
    (here / "target" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    assert run("generate", "x", "-m", "target", "-n", "2") == 2
    error = capsys.readouterr().err
    assert "the model's chat template is damaged (line 1: " in error and "; mend chat_template.jinja" in error
    assert run("generate", "x", "-m", "target", "-n", "2", "--no-chat") == 0


def test_a_draft_that_is_the_target_is_noted(here, capsys):
    assert run("generate", "x", "-m", "target", "-n", "2", "--draft", "target") == 0
    assert "note: --draft is 'target', the target itself, and a draft of it costs" in capsys.readouterr().err
    tiny_model(noise=0.02).save_pretrained(here / "draft")
    tiny_tokenizer().save_pretrained(here / "draft")
    assert run("generate", "x", "-m", "target", "-n", "2", "--draft", "draft") == 0
    assert run("generate", "x", "-m", "target", "-n", "2", "--draft", "self:int8") == 0
    assert "the target itself" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # what llama.cpp, Ollama and vLLM call it, or write it
        ("serve -m target -c 4096", "-c is '4096', which is no name of a YAML file; give one; the context's limit is"),
        ("generate x -m target -c 4096", "-c is '4096', which is no name of a YAML file; give one; the context is the"),
        ("serve -m target -ngl 99", "No such option: -ngl; give --device cuda to use the GPU"),
        ("generate x -m target --speculative-config x", "; give --draft MODEL, or --drafter lookup"),
        (
            "serve -m target --enable-lora",
            "; nothing has to be switched on, leave it out; what vLLM gets stands behind",
        ),
        (
            "generate x -m target --revision main",
            "; the hub's newest revision is taken, for another one give the folder",
        ),
        ("generate x -m hf.co/org/name", "'hf.co/org/name' is an address; give the hub id in it, 'org/name'"),
        ("generate x -m org/name:Q4_K_M", "; a hub id has no tag: 'org/name'"),
        (r"generate x -m '.\target'", "; did you mean './target'?"),
        ("models rm target", "No such command 'rm'; delete the folder that specstream models pull NAME prints"),
        ("models show target", "No such command 'show'; give specstream doctor --model NAME"),
        ("generate x -m target --threads 8", "No such option: --threads; set OMP_NUM_THREADS in the environment"),
        ("serve -m nothere=runs/none", "there is no folder 'runs/none'"),
        # where it is instead
        ("report run --json", "No such option: --json; the figures are in each run's summary.json"),
        ("demo --share", "No such option: --share; no link is published, --host 0.0.0.0 opens the page"),
        ("demo --server-port 80", "No such option: --server-port; did you mean --port?"),
        ("profile 'one two' -m target", "(one two); give prompts in a file, --prompts FILE"),
        (
            "benchmark heads --prompts p.jsonl -m target",
            'or lines such as {"category": "mine", "turns": ["The sea is"]}',
        ),
        # the folder of a run, whose best checkpoint is meant
        ("generate x -m run", "'run' is a folder without config.json: give 'run/best'"),
        ("generate x -m whole", "'whole' is a folder without config.json: give 'whole/best/model'"),
        ("serve -m target --lora-modules sql=run", "cannot be read (No such file or directory); give 'run/best'"),
        (
            "generate x -m target --draft runs/a/best",
            "there is no folder 'runs/a/best', and it is not taken for a hub id",
        ),
    ],
)
def test_what_a_thirteenth_stranger_met(here, capsys, words, told):
    for name, file in (("run/best", "adapter_config.json"), ("whole/best/model", "config.json")):
        (here / name).mkdir(parents=True)
        (here / name / file).write_text("{}")
    (here / "p.jsonl").write_text('{"prompt": "one two"}\n')
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error


def test_a_draft_that_cannot_be_is_refused_before_the_server_says_that_it_loads(here, caplog):
    caplog.set_level(logging.INFO)
    assert run("serve", "-m", "target", "--port", "0", "--drafter", "none", "--draft", "target") == 2
    assert "loading" not in caplog.text


def test_answers_to_other_files_are_named_by_the_file_not_by_its_digest(here, capsys):
    (here / "p.txt").write_text("one two\n")
    (here / "r.txt").write_text("three four\n")
    words = ("distill-data", "-m", "target", "-o", "answers.jsonl", "-n", "2", "--prompts")
    assert run(*words, "p.txt") == 0
    assert run(*words, "r.txt") == 2
    assert "holds answers with prompts.p.txt, which is not given now; give another -o" in capsys.readouterr().err
    (here / "p.txt").write_text("three four\n")
    assert run(*words, "p.txt") == 2
    assert "holds answers with another content of prompts.p.txt; give" in capsys.readouterr().err


def test_prompts_that_a_limit_leaves_out_are_counted_unless_the_limit_was_typed(here, capsys):
    (here / "q.jsonl").write_text('{"category": "a", "turns": ["one"]}\n' * 21)
    (here / "b.yaml").write_text(CONFIG.replace("q.jsonl}]", "q.jsonl}], per_category: 2"))
    words = ("benchmark", "-c", "b.yaml", "--set", "generation.max_new_tokens=2", "--set", "measure.repeats=1")
    assert run(*words) == 0
    assert "specstream: prompts.per_category is 2: 2 of 21 prompts are asked" in capsys.readouterr().err
    assert run(*words, "--set", "prompts.per_category=1", "--set", "measure.output_dir=other") == 0
    assert "are asked" not in capsys.readouterr().err
    words = ("benchmark", "heads", "--prompts", "q.jsonl", "-m", "target", "-n", "2", "--drafter", "lookup")
    assert run(*words) == 0
    assert "specstream: --per-category is 20: 20 of 21 prompts are asked" in capsys.readouterr().err
    assert run(*words, "--per-category", "1") == 0
    assert "are asked" not in capsys.readouterr().err


def test_a_temperature_that_leaves_nothing_of_the_model_is_noted(here, capsys):
    assert run("generate", "x", "-m", "target", "-n", "2", "-t", "8") == 0
    assert "note: -t is 8, where tokens are drawn almost at random; 1 is the model's own" in capsys.readouterr().err
    assert run("generate", "x", "-m", "target", "-n", "2", "-t", "2") == 0
    assert "at random" not in capsys.readouterr().err


def test_answers_that_cannot_be_as_long_as_asked_for_are_announced(here, capsys):
    tiny_model(context=16).save_pretrained(here / "target")
    (here / "p.txt").write_text("one\n")
    assert run("distill-data", "--prompts", "p.txt", "-m", "target", "-o", "a.jsonl", "-n", "99", "--no-chat") == 0
    assert "specstream: -n is 99 and the context holds 16, prompt included: texts end there" in capsys.readouterr().err


def test_a_context_beyond_the_models_is_blamed_not_the_prompt(here, capsys):
    (here / "long.txt").write_text("one two three four\n" * 500)
    words = ("--context", "100", "--context", "600", "--document", "long.txt", "-m", "target", "-n", "2")
    assert run("benchmark", "heads", "--prompts", "q.jsonl", *words) == 2
    told = "--context is 600 tokens and the model's context holds 512; give a smaller one"
    assert told in capsys.readouterr().err


@pytest.fixture
def fourteenth(here):
    """The folder with what other commands wrote."""
    Streams(tiny_model(), StreamsConfig(gamma=1, layers=1)).save(here / "heads")
    for mark in ("trained/log.jsonl", "judged/wikisql/answers.jsonl", "run/run.json"):
        (here / mark).parent.mkdir(parents=True)
        (here / mark).touch()
    (here / "rt.yaml").write_text("target: {model: target}\ndata: {files: [c.jsonl]}\nfit: {folds: 2}\n")
    (here / "t.yaml").write_text("recipe: streams\nmodel: {target_model: target}\ndata: {files: [q.jsonl]}\n")
    return here


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # a number that is written as none, or with a unit
        ("generate x -m target -n 1e3", "-n is '1e3'; give 1000"),
        ("make-head target --prompts q.jsonl -o h --tokens 300k", "--tokens is '300k'; give 300000"),
        (
            "make-head target --prompts q.jsonl -o h --hours 30min",
            "--hours is '30min'; give a number alone, in the unit",
        ),
        ("router train -c rt.yaml --set data.held_out=25%", "data.held_out is '25%'; give 0.25"),
        ("generate x -m target --top-p 90%", "--top-p is '90%'; give 0.9 (see"),
        ("serve -m target --port 8000x", "--port is '8000x'; give a value that is a whole number"),
        ("generate x -m target -n 1.5", "-n is '1.5'; give a value that is a whole number"),
        ("chat -m target --save chat.json", "No such option: --save; give /save FILE in the conversation"),
        # another tool's name of a value
        ("generate x -m target --dtype fp32", "give auto, float32, bfloat16, float16; did you mean 'float32'?"),
        ("generate x -m target --dtype int8", "bfloat16, float16, or an engine's --quantization int8"),
        ("tune -m target --prompts q.jsonl -o best.yaml --dtype int8", "give auto, float32, bfloat16, float16\n"),
        ("quantize target -o q8 --bits 8", "give one of 'int8', 'int4'; did you mean 'int8'?"),
        ("make-head target --prompts q.jsonl -o h --kind eagle", "did you mean 'eagle3'?"),
        ("demo -m target --drafter ngram", "did you mean 'lookup'?"),
        ("serve -m target --quantization 4bit", "give a value that is 'none', 'int8' or 'int4'; did you mean 'int4'?"),
        ("train -c t.yaml --set data.files=q.jsonl", "give a value that is a list, such as [q.jsonl]"),
        # a short option
        ("compare -m target --draft-model self:int8 --input-str x", "No such option: -m; did you mean --target-model?"),
        ("distill-data -p q.jsonl -o a.jsonl -m target", "No such option: -p; did you mean --prompts?"),
        ("audit x -m target --num-prompts 4", "all prompts of the file are decoded, give a file of fewer"),
        # what another command wrote
        ("report trained", "'trained' holds a run of specstream train, whose figures are in log.csv; give"),
        ("report judged", "'judged' holds answers of specstream evaluate, whose figures are in results.json of each"),
        ("generate x -m run", "'run' is a folder without config.json that holds a run of specstream benchmark: give"),
        ("generate x -m target --heads run", "no heads in 'run' (it holds a run of specstream benchmark)"),
        (
            "tune -m target --prompts q.jsonl -o best.yaml --draft heads",
            "'heads' holds 'streams' and no model; give its base",
        ),
        ("benchmark task --task b.yaml --data q.jsonl -m target", "the file looks like one for specstream benchmark"),
        ("serve -m target --draft heads", "'heads' holds 'streams' and no model; give its base"),
        # advice of what the command has not
        ("export draft --target target -o out", "give a draft of the same tokenizer\n"),
        ("router collect -c rt.yaml", "known are collection, drafters, prompts, target; the file looks like one for"),
        ("''", "No such command ''; give one of generate, chat,"),
        # said before the page is imported
        ("demo -m target --heads target", "'target' holds 'llama'; give a folder of streams,"),
        ("demo -m target --router nosuch", "no router in 'nosuch'"),
    ],
)
def test_what_a_fourteenth_stranger_met(fourteenth, monkeypatch, capsys, words, told):
    monkeypatch.setitem(sys.modules, "gradio", None)
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    tiny_model().save_pretrained(fourteenth / "draft")
    other.save_pretrained(fourteenth / "draft")
    capsys.readouterr()
    assert run(*shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1, error


def test_answers_to_fewer_examples_are_named_by_their_number(here, capsys):
    (here / "e.yaml").write_text("target: {model: target}\nmeasure: {output_dir: judged}\n")
    shutil.copy(CONFIGS.parent / "examples" / "wikisql.jsonl", here / "w.jsonl")
    words = ("evaluate", "-c", "e.yaml", "--dataset", "wikisql", "--data", "w.jsonl")
    assert run(*words, "--limit", "2") == 0
    capsys.readouterr()
    assert run(*words, "--limit", "3") == 2
    assert "was written with data.examples 2 and now it is 3; give --no-resume" in capsys.readouterr().err
    assert run("evaluate", "-c", "e.yaml", "--set", "measure.output_dir=target") == 2
    assert "measure.output_dir is 'target', which holds a model, or heads of one; give" in capsys.readouterr().err


def test_a_comparison_of_a_model_with_itself_is_noted(here, capsys):
    words = ("--target-model", "target", "--input-str", "one two", "--num-runs", "1", "-n", "2")
    assert run("compare", *words, "--draft-model", "target") == 0
    assert "note: --draft-model is 'target', the target itself, and a draft of it costs" in capsys.readouterr().err
    assert run("compare", *words, "--draft-model", "self:int8") == 0
    assert "itself" not in capsys.readouterr().err


PRINTED = {
    "generate": "generate x -m target -n 2",
    "compare": "compare --target-model target --draft-model self:int8 --input-str x --num-runs 1 -n 2",
    "audit": "audit x -m target -n 2",
    "doctor": "doctor --no-measure -m target",
    "models list": "models list",
    "benchmark": "benchmark -c b.yaml --set generation.max_new_tokens=2 --set measure.repeats=1",
    "benchmark heads": "benchmark heads --prompts q.jsonl -m target -n 2 --drafter lookup",
    "distill-data": "distill-data --prompts q.jsonl -o a.jsonl -m target -n 2",
    "make-draft": "make-draft --layers 1 --target target -o d",
    "quantize": "quantize target -o q",
    "export": "export target -o e",
    "profile": "profile -m target --prompts q.jsonl -n 2 --num-samples 1 -o p",
}
"""Calls of commands that are quick with a tiny model."""


@pytest.mark.parametrize("command", PRINTED)
def test_the_page_of_json_has_the_keys_that_are_printed(here, capsys, command):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", page, re.MULTILINE)
    while (plain := re.sub(r"\([^()]*\)", "", row)) != row:  # what stands in brackets is inside, or an address
        row = plain
    run(*shlex.split(PRINTED[command]), "--json")
    assert set(re.findall(r"`(\w+)`", row)) == set(json.loads(capsys.readouterr().out))
