"""`specstream train` as people type it, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from specstream.cli import main
from specstream.training import run_log
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("peft")

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "target"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, model):
    """A file of it; the run goes to ``run`` beside it."""
    records = [
        {"prompt": f"{first} {second}", "completion": " ".join(WORDS[: 2 + at % 5])}
        for at, (first, second) in enumerate((first, second) for first in WORDS for second in WORDS)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    values = {
        "recipe": "lora",
        "model": {"target_model": str(model), "dtype": "float32", "device": "cpu"},
        "data": {"files": [str(tmp_path / "data.jsonl")], "eval_examples": 10, "max_length": 48},
        "training": {
            "num_train_steps": 12,
            "per_device_batch_size": 4,
            "learning_rate": 0.01,
            "output_dir": str(tmp_path / "run"),
            "save_steps": 5,
            "eval_steps": 6,
            "logging_steps": 3,
        },
        "logging": {"plot": False},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def train(capsys, config):
    def command(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["train", "--config", str(config), *words])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_leaves_a_best_checkpoint_and_its_log(train, tmp_path):
    code, out, err = train("--set", "logging.plot=true")
    assert code == 0, err
    assert out.startswith("finished: 12 of 12 steps, ")
    run = tmp_path / "run"
    assert "lora: 90 examples to train on, 10 held out" in err
    assert "step 3: tokens " in err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]
    record = json.loads((run / "best" / "training_record.json").read_text())
    assert record["config"]["lora"]["r"] == 4
    assert record["provenance"]["torch"] == torch.__version__
    assert (
        record["progress"]["figures"]["loss"] < json.loads((run / "log.jsonl").read_text().splitlines()[0])["eval/loss"]
    )
    assert adapter(run / "best")
    assert (run / "log.csv").exists()
    if "matplotlib" in sys.modules:
        assert (run / "curves.png").stat().st_size > 1000


def test_a_warm_up_that_does_not_end_is_noted(train):
    code, _, err = train("--set", "training.warmup_steps=12")
    assert code == 0
    assert "training.warmup_steps is 12 and training.num_train_steps is 12: the learning rate never reaches" in err
    assert "warmup_steps" not in train("--no-resume", "--set", "training.warmup_steps=3")[2]


def test_a_stopped_run_goes_on_to_the_same_bits(train, tmp_path):
    assert train("--set", f"training.output_dir={tmp_path / 'whole'}")[0] == 0
    code, out, _ = train("--set", "training.max_seconds=0.0001", "--json")
    first = json.loads(out)
    assert (code, first["finished"], first["step"]) == (0, False, 1)
    assert "run the same command to go on" in train("--set", "training.max_seconds=0.0001")[1]
    code, out, err = train("--json")
    assert (code, json.loads(out)["finished"]) == (0, True)
    assert "going on from step 2" in err
    own, whole = (adapter(tmp_path / run / "checkpoints" / "step-00000012") for run in ("run", "whole"))
    assert all(torch.equal(own[name], each) for name, each in whole.items())
    assert train("--json")[0] == 0  # nothing is left to do


def test_other_settings_are_refused_and_no_resume_sets_the_run_aside(train, tmp_path):
    assert train("--set", "training.num_train_steps=2")[0] == 0
    before = adapter(tmp_path / "run" / "best")
    code, _, err = train("--set", "lora.r=2")
    assert code == 2
    assert "holds a run with lora.r 4 and now it is 2" in err
    assert err.count("\n") == 1
    assert train("--set", "lora.r=2", "--set", "training.num_train_steps=2", "--no-resume")[0] == 0
    aside = adapter(tmp_path / "run.1" / "best")
    assert all(torch.equal(aside[name], each) for name, each in before.items())
    now = adapter(tmp_path / "run" / "best")
    assert all(each.shape != before[name].shape for name, each in now.items())


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("training.lerning_rate=1", 2, "unknown setting 'training.lerning_rate'; known are"),
        ("data.files=[nowhere.jsonl]", 2, "'nowhere.jsonl' is no file here; give one"),
        ("data.files=[]", 2, "data has no example"),
        ("data.dataset_name=nobody/nothing", 2, "data.dataset_name 'nobody/nothing'"),
        ("model.target_model=no pe", 2, "unknown model 'no pe'"),
        ("training.per_device_batch_size=500", 2, "per_device_batch_size is 500"),
        ("logging.use_wandb=true", 1, "pip install '.[wandb]'"),
    ],
)
def test_a_wrong_call_is_one_line(train, override, code, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got, out, err = train("--set", override)
    assert (got, out) == (code, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_figures_go_to_a_tracker_where_asked(train, monkeypatch):
    class Tracker:
        def __init__(self):
            self.rows, self.ended = [], None

        def init(self, project, config):
            assert (project, config["recipe"]) == ("trial", "lora")
            return self

        def log(self, row, step):
            self.rows.append((step, row))

        def finish(self, exit_code):
            self.ended = exit_code

    tracker = Tracker()
    monkeypatch.setattr(run_log, "require", lambda package, extra, purpose: tracker)
    assert train("--set", "logging={use_wandb: true, project: trial, plot: false}")[0] == 0
    assert [step for step, _ in tracker.rows] == [0, 3, 6, 6, 9, 12, 12]
    assert "loss" in tracker.rows[1][1]
    assert tracker.ended == 0


def test_two_processes_train_as_one(train, config, tmp_path):
    """Under ``accelerate launch``: the two passes of a step, side by side, are those that one does in turn."""
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0 -m specstream.cli train --config"
    command = [sys.executable, *launch.split(), str(config)]
    overrides = ["training.per_device_batch_size=2", "lora.dropout=0", f"training.output_dir={tmp_path / 'two'}"]
    words = [word for override in overrides for word in ("--set", override)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("examples to train on") == 1  # one of them speaks
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "loss" in row]) == 4
    alone = ["--set", "training.gradient_accumulation_steps=2", "--set", f"training.output_dir={tmp_path / 'one'}"]
    assert train(*words[:-2], *alone)[0] == 0
    one, two = (adapter(tmp_path / run / "checkpoints" / "step-00000012") for run in ("one", "two"))
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-3, atol=1e-5)
