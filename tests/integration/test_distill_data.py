"""`specstream distill-data` as people type it."""

from __future__ import annotations

import json

import pytest

from specstream.cli import main
from specstream.core import decode
from tests.tiny import tiny_model, tiny_tokenizer
from tests.words import in_place_of

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROMPTS = [{"instruction": f"{first} {second}", "output": "x"} for first in WORDS for second in WORDS[:2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "target"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PROMPTS[:12]), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, PROMPTS[9:])), encoding="utf-8")
    held_out = [{"turns": ["One, two?", "seven one"]}, {"prompt": "something else"}]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, held_out)), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(capsys, model, files):
    def command(*words, output="out.jsonl", batch="3"):
        fixed = ("-m", str(model), "-n", "9", "--dtype", "float32", "--batch-size", batch)
        named = ("--prompts", str(files / "a.json"), "--prompts", str(files / "b.jsonl"), "-o", str(files / output))
        with pytest.raises(SystemExit) as exit_:
            main(["distill-data", *named, *in_place_of(fixed, words)])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_answers_are_the_models_own(run, files, model):
    code, out, err = run("--exclude", str(files / "held.jsonl"))
    assert (code, err) == (0, "")
    assert "18 answers" in out
    assert "3 repeated, 2 excluded, 0 too long" in out
    answers = lines(files / "out.jsonl")
    prompts = {record["instruction"] for record in PROMPTS} - {"one two", "seven one"}
    assert sorted(answer["prompt"] for answer in answers) == sorted(prompts)
    tokenizer, target = tiny_tokenizer(), tiny_model()
    for answer in answers[:4]:
        chat = [{"role": "user", "content": answer["prompt"]}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert answer["prompt_token_ids"] == inputs["input_ids"][0].tolist()
        own = target.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["answer_token_ids"] == own.tolist()
        assert answer["answer"] == tokenizer.decode(own, skip_special_tokens=True)
        assert answer["finish_reason"] == ("stop" if own[-1] == 0 else "length")
        assert answer["source"].partition("/")[2].partition(":")[0] in ("a.json", "b.jsonl")
    record = json.loads((files / "out.jsonl.meta.json").read_text())
    assert record["complete"] is True
    assert record["identity"]["max_new_tokens"] == 9
    assert len(record["identity"]["weights_sha256"]) == 64
    assert set(record["identity"]["exclude"]) == {"held.jsonl"}
    assert record["provenance"]["transformers"]
    assert not (files / "out.jsonl.partial").exists()


@pytest.mark.parametrize("sampling", [(), ("--temperature", "1", "--seed", "4")], ids=["greedy", "sampled"])
@pytest.mark.parametrize("passes", [1, 12, 25, 47])
def test_an_interrupted_run_ends_with_the_same_file(run, files, monkeypatch, sampling, passes):
    assert run(*sampling, output="whole.jsonl")[0] == 0
    left, verify = passes, decode.verify_each

    def interrupted(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return verify(*arguments)

    monkeypatch.setattr(decode, "verify_each", interrupted)
    assert run(*sampling)[0] == 130
    assert not (files / "out.jsonl").exists()
    with (files / "out.jsonl.partial").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "hal')  # as if the power had gone
    monkeypatch.setattr(decode, "verify_each", verify)
    assert run(*sampling)[0] == 0
    assert (files / "out.jsonl").read_bytes() == (files / "whole.jsonl").read_bytes()
    assert (files / "out.jsonl.meta.json").read_text() == (files / "whole.jsonl.meta.json").read_text()


def test_answers_do_not_depend_on_the_batch(run, files):
    for sampling in ((), ("--temperature", "1")):
        contents = set()
        for batch in ("1", "4", "7"):
            run(*sampling, batch=batch, output=f"{len(sampling)}-{batch}.jsonl")
            contents.add((files / f"{len(sampling)}-{batch}.jsonl").read_bytes())
        assert len(contents) == 1


def test_a_limit_takes_a_part_and_a_larger_one_goes_on(run, files, monkeypatch):
    run(output="whole.jsonl")
    run("--limit", "5")
    whole = lines(files / "whole.jsonl")
    assert lines(files / "out.jsonl") == whole[:5]
    assert len({answer["source"].partition(":")[0] for answer in whole[:8]}) == 2
    assert run()[0] == 0
    assert lines(files / "out.jsonl") == whole
    monkeypatch.setattr(decode, "verify_each", None)  # all are there: nothing is decoded
    assert run()[0] == 0
    code, _, error = run("--limit", "5")
    assert code == 0 and f"holds {len(whole)} answers, more than the limit of 5; all are kept" in error
    assert lines(files / "out.jsonl") == whole


def test_nothing_is_written_where_no_prompt_is_short_enough(run, files):
    code, _, error = run("--max-prompt-tokens", "1")
    assert code == 2 and "--max-prompt-tokens is 1 and all" in error and "prompts are longer; give more" in error
    assert not list(files.glob("out.jsonl*"))


@pytest.mark.parametrize(("words", "noted"), [(("--top-p", "0.5"), True), (("--top-p", "1"), False), ((), False)])
def test_a_draw_that_is_none_is_noted(run, words, noted):
    code, _, error = run("--limit", "1", *words)
    assert code == 0 and ("--top-p is 0.5, without effect at temperature 0; give --temperature" in error) == noted


def test_so_many_prompts_of_each_file(run, files):
    assert run("--per-file", "3")[0] == 0
    sources = [answer["source"].partition("/")[2].partition(":")[0] for answer in lines(files / "out.jsonl")]
    assert sorted(sources) == ["a.json"] * 3 + ["b.jsonl"] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-n", "8"), "holds answers with max_new_tokens 9 and now it is 8; give another -o"),
        (("--exclude", "HELD"), "holds answers with no exclude.held.jsonl, which is given now; give"),
        (("--drafter", "medusa"), "drafter is 'medusa'; give none or lookup"),
        (("--prompts", "nowhere.jsonl"), "--prompts 'nowhere.jsonl' is no file"),
        (("--limit", "0"), "limit"),
    ],
)
def test_a_wrong_call_is_refused_and_keeps_what_is_there(run, files, words, message):
    run("--limit", "5")
    before = (files / "out.jsonl").read_bytes()
    code, out, err = run(*(str(files / "held.jsonl") if word == "HELD" else word for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert (files / "out.jsonl").read_bytes() == before


def test_nothing_left_to_ask(run, files):
    code, _, err = run("--exclude", str(files / "a.json"), "--exclude", str(files / "b.jsonl"))
    assert code == 2
    assert "no prompt is left" in err
