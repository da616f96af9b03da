"""That a command which takes long says how far it is, on a terminal and in a log."""

from __future__ import annotations

import json

import pytest

from specstream import reporting
from specstream.cli import main
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = "one two three\nfour five six\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, model in {"target": tiny_model(), "draft": tiny_model(noise=0.02)}.items():
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "prompts.txt").write_text(PROMPTS)
    questions = [{"category": "c", "turns": [line]} for line in PROMPTS.splitlines()]
    (root / "question.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (root / "task.jsonl").write_text(
        "".join(json.dumps({"instruction": line, "output": "x"}) + "\n" for line in PROMPTS.splitlines())
    )
    (root / "task.yaml").write_text(
        "format: jsonl\nprompt: '{instruction}'\nreferences: [output]\nmetrics: [exact_match]\nmax_new_tokens: 4\n"
    )
    return root


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("compare --target-model target --draft-model draft --input-str one --num-runs 2 --N 4", "runs: 3 of 3"),
        ("audit --prompts prompts.txt --model target -n 4 --no-chat", "audited prompts: 2 of 2"),
        ("benchmark heads --prompts question.jsonl --model target --drafter lookup -n 4", "answers: 6 of 6"),
        ("benchmark task --task task.yaml --data task.jsonl --model target", "target: examples: 2 of 2"),
    ],
)
def test_how_far_a_command_is(monkeypatch, capsys, models, command, last):
    monkeypatch.setattr(reporting, "AFTER", 0.0)
    monkeypatch.chdir(models)
    with pytest.raises(SystemExit) as exit_:
        main(command.split())
    out, err = capsys.readouterr()
    assert exit_.value.code == 0, err
    assert "specstream: loading target" in err
    assert f"specstream: {last}: done in" in err
    assert "loading" not in out
