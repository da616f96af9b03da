"""`specstream make-head` as people type it, and a run that is killed in each of its stages."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from specstream.cli import main
from specstream.heads.folder import kind_of
from specstream.training import make_head
from specstream.training.answers import AnswerFile
from specstream.training.loop import Loop
from specstream.training.make_head import HeadRun, HeadSettings
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


class Killed(BaseException):
    """What ends a process without a word: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def here(tmp_path_factory, tmp_path, monkeypatch):
    """A folder with a target and prompts; tests in decoding are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_head, "TEST_PROMPTS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny_model().save_pretrained("target")
    tiny_tokenizer().save_pretrained("target")
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{one} {two}"}) + "\n" for one in WORDS for two in WORDS)
    )
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    def command(words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(words.split())
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


GIVEN = "make-head target --prompts q.jsonl --dtype float32 --device cpu -n 10"


@pytest.mark.parametrize("kind", ["streams", "medusa", "block", "eagle3"])
def test_a_model_gets_a_head_that_decodes(run, here, kind):
    code, out, err = run(f"{GIVEN} --kind {kind} --output head")
    assert code == 0, err
    assert "answers: 49, about" in err and "hidden states: " in err and "training: 16 steps of 8 answers" in err
    assert f"head: {kind} for target, " in out
    assert out.count("2 of 2 outputs equal to plain decoding's") == 3
    assert out.splitlines()[-1] == 'specstream generate "Explain tides." --model target --heads head'
    assert kind_of("head") == kind
    made = json.loads((here / "head" / "make_head.json").read_text())["result"]
    assert made["figures"]["accepted_length"] >= 1
    card = (here / "head" / "README.md").read_text()
    assert f"From 49 of the model's own greedy answers ({made['answer_tokens']} tokens) to q.jsonl." in card
    assert f"| {kind}, 7 nodes always | {made['test']['sides'][2]['mean_accepted_length']:.2f} |" in card
    assert "Licence of the base, target: not stated with it" in card
    assert not (here / "head" / "states").exists(), "what only training reads"
    code, out, _ = run(f"generate one --model target --heads head --drafter {kind} -n 5 --dtype float32 --json")
    assert (code, json.loads(out)["drafter"]) == (0, kind)
    assert run(f"{GIVEN} --kind {kind} --output head --json")[1].startswith('{"output": "head", "kind": ')


def settings(**more):
    return HeadSettings(
        model="target", kind="block", prompts=("q.jsonl",), max_new_tokens=10, dtype="float32", tokens=400, **more
    )


def make(folder, **more):
    return HeadRun(folder, settings(), device="cpu", quiet=True, **more).run()


def once(monkeypatch, owner, name, after):
    """Let a call of a function end the process, after so many that succeed."""
    original, calls = getattr(owner, name), []

    def dies(*args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dies)


def test_a_run_that_was_killed_in_each_stage_ends_in_the_same_bits(monkeypatch, here):
    make("whole")
    places = [
        (make_head, "train", 0),
        (AnswerFile, "append", 2),  # the sample's, and one batch of three
        (Loop, "_advance", 7),
        (make_head, "measure_drafters", 0),
        (shutil, "copyfile", 1),
    ]
    for owner, name, after in places:
        with monkeypatch.context() as patch:
            once(patch, owner, name, after)
            with pytest.raises(Killed):
                make("cut", disk_gb=1e-5)
        if name == "append":
            partial = here / "cut" / "answers.jsonl.partial"
            assert len(partial.read_text().splitlines()) == 16
            partial.write_text(partial.read_text() + '{"prompt": "hal')
        assert not (here / "cut" / "config.json").exists(), "no reader takes it for whole"
    make("cut", disk_gb=1e-5)
    whole, cut = (load_file(here / name / "heads.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert (here / "whole" / "answers.jsonl").read_text() == (here / "cut" / "answers.jsonl").read_text()


def test_ctrl_c_leaves_a_folder_to_go_on_with(run, here, monkeypatch):
    advance = Loop._advance

    def interrupted(loop):
        advance(loop)
        if loop.config.num_train_steps > make_head.SAMPLE_STEPS and loop.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_advance", interrupted)
        code, _, err = run(f"{GIVEN} --output head --kind medusa --tokens 400")
    assert code == 130
    line = err.split("to go on: specstream ")[1].splitlines()[0]
    assert line == (
        "make-head target --prompts q.jsonl --output head --kind medusa --tokens 400 --max-new-tokens 10 "
        "--dtype float32 --device cpu"
    )
    assert err.splitlines()[-1] == "interrupted"
    code, _, err = run(line)
    assert code == 0, err
    assert "going on from step 2" in err
    assert "a sample" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("target --prompts nope.jsonl -o head", "--prompts 'nope.jsonl' is no file"),
        ("nope --prompts q.jsonl -o head", "model 'nope' is neither a local folder nor"),
        ("target --prompts q.jsonl -o q.jsonl", "-o is 'q.jsonl', which is something else that would be lost"),
        ("target --prompts q.jsonl -o target", "-o is 'target', which is something else that would be lost"),
        ("target --prompts q.jsonl -o head --disk 1e9", "--disk is 1e+09 and "),
        ("target --prompts q.jsonl -o head --hours 0", "--hours is 0; give a number above 0"),
        (
            "target --prompts q.jsonl -o head --kind draft",
            "--kind is 'draft'; give one of 'block', 'streams', 'medusa', 'eagle3'",
        ),
        (
            "target --prompts few.jsonl -o head",
            "--prompts is 'few.jsonl', which holds 1 and a head needs 24; give more",
        ),
        ("target --prompts q.jsonl -o head --device cuda:9", "device is 'cuda:9'"),
    ],
)
def test_a_wrong_call_is_one_line_before_anything_is_written(run, here, words, message):
    (here / "few.jsonl").write_text('{"prompt": "one"}\n')
    code, out, err = run(f"make-head {words}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and message in err
    assert not (here / "head").exists()


def test_a_folder_of_other_settings_is_refused(run, monkeypatch):
    with monkeypatch.context() as patch:
        once(patch, make_head, "train", 0)
        with pytest.raises(Killed):
            make("head")
    code, _, err = run(f"{GIVEN} --output head --kind medusa --tokens 400")
    assert (code, err.count("\n")) == (2, 1)
    assert "--output is 'head', which holds a head with kind 'block' and now it is 'medusa'; give the old value" in err


class Clock:
    """One that every look at moves on by so many seconds."""

    def __init__(self, pace):
        self.now, self.pace = 0.0, pace

    def __call__(self):
        self.now += self.pace
        return self.now


def test_hours_that_are_over_end_answers_and_training(here, monkeypatch, capsys):
    """Answers that were to take three batches end after two, and training with its first step."""
    monkeypatch.setattr(make_head, "answers_for", lambda *args: 49)
    HeadRun("head", settings(hours=1e-3), device="cpu", quiet=True, clock=Clock(1.0)).run()
    state = json.loads((here / "head" / "make_head.json").read_text())
    assert state["answers"] == 32 and state["steps"] == 1
    assert state["result"]["test"]["sides"][1]["equal"] == 2


def test_too_few_hours_are_refused_with_what_it_takes_and_more_may_be_given(here):
    with pytest.raises(make_head.UsageError, match=r"hours is too small: .*, and 24 answers take .*; give more"):
        HeadRun("head", settings(hours=1e-3), device="cpu", quiet=True, clock=Clock(10.0)).run()
    state = json.loads((here / "head" / "make_head.json").read_text())
    assert HeadRun("head", settings(hours=1.0), device="cpu", quiet=True)._state == state, "the sample is kept"
