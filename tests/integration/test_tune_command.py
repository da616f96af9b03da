"""`specstream tune` on a tiny model, and its file in `generate` and in the engine."""

from __future__ import annotations

import json

import pytest
import yaml

from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.config import GenerationConfig, engine_config
from specstream.drafters.lookup import LookupDrafter
from specstream.engine.build import build_parts
from specstream.engine.settings_file import KNOWN, read_settings
from specstream.errors import UsageError
from specstream.evaluation import tune as tuning
from specstream.evaluation.tune import PLAIN, Bench, DifferentOutputError, candidates
from specstream.models.target.hf import HuggingFaceTarget
from tests.tiny import tiny_model, tiny_tokenizer
from tests.words import in_place_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    for name, noise in (("model", 0.0), ("draft", 0.02)):
        tiny_model(noise=noise).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "prompts.txt").write_text("the cat sat on the cat sat on\none two three\nthe dog\n", encoding="utf-8")
    return root


@pytest.fixture
def run(capsys):
    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            main(list(words))
        return exit_.value.code, *capsys.readouterr()

    return command


def test_a_setting_is_found_and_can_be_used(run, folder, tmp_path):
    out_file = str(tmp_path / "best.yaml")
    words = ["--model", str(folder / "model"), "--draft", str(folder / "draft"), "--dtype", "float32"]
    words += ["--prompts", str(folder / "prompts.txt"), "--output", out_file, "--num-prompts", "2", "--repeats", "1"]
    code, out, _ = run("tune", *words, "-n", "8")
    assert code == 0
    for text in ("lookup", "draft in int8", "x plain", "speculate: ", f"written to {out_file}"):
        assert text in out
    text = (tmp_path / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith("# The fastest lossless setting")
    values = yaml.safe_load(text)
    assert set(values) <= KNOWN
    assert (values["model"], values["dtype"]) == (str(folder / "model"), "float32")
    assert "acceptance_threshold" not in values

    plain = run(
        "generate",
        "the cat",
        "--no-chat",
        "--model",
        values["model"],
        "--drafter",
        "none",
        "--dtype",
        "float32",
        "--json",
    )
    code, out, _ = run("generate", "the cat", "--no-chat", "--config", out_file, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["token_ids"] == json.loads(plain[1])["token_ids"]
    assert result["runtime"] == values["runtime"]
    engine = SpeculativeEngine.from_config(out_file, max_new_tokens=5)
    assert engine.generate("the cat").token_ids == result["token_ids"][:5]


def test_options_replace_what_the_file_says_and_nothing_else_does(run, folder, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"model: {folder / 'model'}\ndtype: float32\ndrafter: lookup\nmax_new_tokens: 3\nadaptive: false\n",
        encoding="utf-8",
    )
    result = json.loads(run("generate", "the cat", "--config", str(path), "--json")[1])
    assert (result["drafter"], result["new_tokens"], result["dtype"]) == ("lookup", 3, "float32")
    words = ["--max-new-tokens", "4", "--drafter", "none"]
    result = json.loads(run("generate", "the cat", "--config", str(path), *words, "--json")[1])
    assert (result["drafter"], result["new_tokens"]) == ("none", 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("draftr: lookup", r"mine.yaml:2: unknown setting 'draftr'; known are"),
        ("drafter: best", r"mine.yaml:2: drafter is 'best'; give"),
        ("max_new_tokens: 0", r"mine.yaml:2: max_new_tokens is 0; give"),
        ('draft_model: ""', r"mine.yaml:2: draft_model is ''; give a value that is not empty"),
        ('heads: " "', r"mine.yaml:2: heads is ' '; give a value that is not empty"),
        ("draft_model: 3", r"mine.yaml:2: draft_model is 3; give the name of a model"),
        ("model: again", r"mine.yaml:2: model is given in line 1 already"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: x\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_settings(path)


def test_a_file_without_a_model_makes_no_engine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("drafter: lookup\n", encoding="utf-8")
    with pytest.raises(UsageError, match="names no model"):
        SpeculativeEngine.from_config(str(path))


def test_every_candidate_is_lossless_and_can_be_written_down():
    found = candidates(tiny_model(), "draft", "folder")
    assert len({each.name for each in found}) == len(found) > 12
    for each in found:
        assert engine_config(dict(each.settings)).acceptance_threshold is None
        assert set(each.settings) <= KNOWN
        assert yaml.safe_load(yaml.safe_dump(dict(each.settings))) == each.settings
    assert all(each.draft in ("draft", "self:int8", "self:int4", None) for each in found)


def test_a_setting_that_writes_something_else_is_out(monkeypatch):
    """The drafter cannot do that; a broken verification could."""
    target = HuggingFaceTarget(tiny_model(), runtime="eager")
    bench = Bench([[5, 6, 7], [7, 8, 9]], GenerationConfig(max_new_tokens=6, ignore_eos=True))
    plain = build_parts(target, tiny_tokenizer(), None, engine_config({"drafter": "none"}))
    bench.add(PLAIN, plain)
    bench.add("lookup", plain.with_drafter(LookupDrafter()))
    other = HuggingFaceTarget(tiny_model(seed=3), runtime="eager")
    wrong = build_parts(other, tiny_tokenizer(), None, engine_config({"drafter": "none"}))
    with pytest.raises(DifferentOutputError, match="wrong wrote other tokens than plain decoding for prompt 0"):
        bench.add("wrong", wrong)


@pytest.mark.parametrize(("speed", "pays"), [(2.0, True), (0.5, False)])
def test_the_answer_may_be_not_to_speculate(monkeypatch, folder, speed, pays):
    """With times that are made up: everything that drafts is so many times as fast."""
    real = Bench.measure

    def measure(self, name, prompt):
        tokens, _ = real(self, name, prompt)
        return tokens, tokens / (10 if name == PLAIN else 10 * speed)

    monkeypatch.setattr(Bench, "measure", measure)
    monkeypatch.setattr(tuning, "RUNTIMES", {})
    engine = SpeculativeEngine(tiny_model(), tiny_tokenizer(), drafter="none", runtime="eager")
    told = []
    config = GenerationConfig(max_new_tokens=6)
    found = tuning.tune(engine, [[5, 6, 7], [7, 8, 9]], config, on_run=lambda *given: told.append(given))
    runs = [done for done, _, note in told if "warming up" not in note]
    assert runs == list(range(len(runs)))
    assert {total for _, total, _ in told} == {len(runs)}
    assert told[0] == (0, len(runs), "runtime eager: warming up")
    assert found.found.pays is pays
    assert found.verdict.startswith("speculate: " if pays else "do not speculate: the best of")
    assert (found.settings["drafter"] == "none") is not pays
    assert found.settings["runtime"] == "eager"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "best.json"], "--output is 'best.json'; give the name of a .yaml file"),
        (["--output", "/nowhere/best.yaml"], "give the name of a file in a folder that exists"),
        (["--prompts", "nowhere.txt"], "--prompts 'nowhere.txt' cannot be read"),
        (["--heads", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(run, folder, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr("specstream.cli.tune.load_engine", None)
    files = ["--prompts", str(folder / "prompts.txt"), "--output", str(tmp_path / "best.yaml")]
    code, out, err = run("tune", *in_place_of(files, words))
    assert (code, out) == (2, "")
    assert message in err
