"""`specstream audit` as people type it."""

from __future__ import annotations

import json

import pytest

from specstream.cli import main
from specstream.cli.audit import PROMPTS
from specstream.core import decode
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.evaluation.test_audit import accept_everything


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A target and a draft, saved as folders."""
    root = tmp_path_factory.mktemp("models")
    for name, model in {"target": tiny_model(), "draft": tiny_model(noise=0.02)}.items():
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture
def run(capsys, tiny):
    """Exit code, stdout and stderr of an audit of the tiny pair."""

    def command(*words, model=str(tiny / "target"), draft=str(tiny / "draft")):
        with pytest.raises(SystemExit) as exit_:
            main(["audit", *words, "-m", model, *(["-d", draft] if draft else []), "-n", "12", "--dtype", "float32"])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


def test_a_passed_audit_exits_with_0_and_says_what_was_compared(run):
    code, out, err = run("one two", "--no-chat")
    assert (code, err) == (0, "")
    assert out.startswith("audit passed: 12 tokens of 1 prompt, 0 divergences from plain decoding\n")
    for word in ("rule: ", "noise: ", "draft_model: ", "drafted tokens accepted", "float32, cpu"):
        assert word in out


def test_a_failed_audit_exits_with_1_and_lists_every_divergence(run, monkeypatch):
    monkeypatch.setattr(decode, "verify_each", accept_everything)
    code, out, _ = run("one two", "--no-chat")
    assert code == 1
    assert "audit FAILED: 12 tokens of 1 prompt" in out
    assert "tokens are not those of plain decoding" in out
    code, out, _ = run("one two", "--no-chat", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["passed"] is False
    assert len(report["divergences"]) == report["failures"] > 0
    first = report["divergences"][0]
    assert first["gap"] > report["noise"]["gap"]
    assert first["fails"] is True
    assert first["emitted"] != first["plain"]


def test_json_is_one_object_that_says_how_it_came_about(run):
    code, out, err = run("--batch-size", "3", "--exact", "rounding", "--repetition-penalty", "1.2", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["passed"] is True
    assert report["prompts"] == len(PROMPTS)
    assert report["exact"] == "rounding"
    assert report["rule"].startswith("passes are equal up to rounding")
    assert report["drafted"] > 0
    assert report["divergences"] == []
    for key in ("torch", "transformers", "device", "dtype", "runtime", "model", "drafter"):
        assert report["provenance"][key]
    arguments = report["arguments"]
    assert arguments["adaptive"] is False, "a controller may decide that nothing is worth drafting"
    assert (arguments["batch_size"], arguments["repetition_penalty"], arguments["exact"]) == (3, 1.2, "rounding")


def test_prompts_from_files_and_a_report_in_a_file(run, tmp_path):
    (tmp_path / "p.txt").write_text("one two\n\nthree four\n", encoding="utf-8")
    chat = {"messages": [{"role": "user", "content": "five"}]}
    lines = ['"one two"', '{"prompt": "three four"}', json.dumps(chat)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "report.json"
    output.write_text('{"arguments": {}, "prompts": 1}', encoding="utf-8")  # an older report
    for name, count in (("p.txt", 2), ("p.jsonl", 3)):
        code, out, _ = run("--prompts", str(tmp_path / name), "--output", str(output))
        assert code == 0
        assert f"of {count} prompts" in out
        assert json.loads(output.read_text(encoding="utf-8"))["prompts"] == count
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.jsonl", "p.txt", "report.json"]


def test_drafting_nothing_is_said(run):
    code, out, _ = run("one two", "--drafter", "none", draft="")
    assert code == 0
    assert "none: drafted nothing, so nothing was put to the test" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the prompt is empty"),
        (["x", "--prompts", "y"], "a prompt, 'x', and a file of prompts, 'y'"),
        (["--prompts", "nowhere.txt"], "prompts 'nowhere.txt' cannot be read: No such file"),
        (["x", "--temperature", "0.7"], "temperature is 0.7; give 0"),
        (["x", "--batch-size", "0"], "--batch-size is 0"),
        (["x", "--drafter", "magic"], "drafter is 'magic'"),
        (["x", "--exact", "mostly"], "exact is 'mostly'"),
        (["x", "--output", "no/such/folder/report.json"], "in a folder that exists"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2_before_a_model_is_loaded(run, words, message):
    code, out, err = run(*words, model="unknown")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; give one prompt a line"),
        ('"fine"\n{"prompt"', "p.jsonl:2 is not JSON"),
        ('{"solution": "what"}', "p.jsonl:1' has no prompt"),
        ("[1, 2]", "p.jsonl:1 holds no prompt"),
        ("\udcff", "it is not UTF-8"),
    ],
)
def test_a_file_without_prompts_is_refused_by_line(run, tmp_path, text, message):
    file = tmp_path / "p.jsonl"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    code, _, err = run("--prompts", str(file))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
