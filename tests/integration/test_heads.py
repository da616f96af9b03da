"""Streams and Medusa heads as users choose them: a folder, in Python and on the command line."""

from __future__ import annotations

import json

import pytest
import torch

from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.errors import HeadMismatchError, ModelNotFoundError, UsageError
from specstream.evaluation import heads as comparing
from specstream.heads.block import BlockConfig, BlockHead
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.hub.gguf import load_gguf
from tests.gguf_files import write_gguf
from tests.published_heads import write_dflash, write_eagle
from tests.tiny import tiny_model
from tests.words import in_place_of

PROMPTS = ["the cat sat on the", "one two three one two three one"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model, tokenizer):
    """A model, and untrained heads of it: streams, streams with an early exit, Medusa, a block head."""
    root = tmp_path_factory.mktemp("heads")
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(model, StreamsConfig(gamma=3, layers=1, rank=2)).save(root / "streams")
        Streams(model, StreamsConfig(gamma=3, layers=1, rank=2, pruning_rank=2)).save(root / "pruned")
        MedusaHeads(model, num_heads=3).save(root / "medusa")
        BlockHead(model, BlockConfig(gamma=3, layers=1)).save(root / "block")
    write_eagle(root / "eagle3", model, gamma=3)
    write_dflash(root / "dflash", model)
    write_eagle(root / "authors", model, "authors", drafted=range(0, 100, 2))
    return root


@pytest.fixture
def run(capsys, folders):
    """Exit code, stdout and stderr of a command about the tiny model."""

    def command(verb, *words):
        with pytest.raises(SystemExit) as exit_:
            main([verb, *words, "-m", str(folders / "model"), "--dtype", "float32"])
        return exit_.value.code, *capsys.readouterr()

    return command


@pytest.mark.parametrize(
    ("folder", "drafter", "settings"),
    [
        ("streams", "streams", {}),
        ("pruned", "streams", {"pruning": 0.001}),
        ("medusa", "medusa", {}),
        ("block", "block", {}),
        ("eagle3", "eagle3", {}),
        ("authors", "eagle3", {}),
        ("dflash", "dflash", {}),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_text_is_the_models_own_and_auto_knows_whose_heads_they_are(
    model, tokenizer, folders, folder, drafter, settings, named
):
    plain = SpeculativeEngine(model, tokenizer, drafter="none")
    chosen = {"drafter": drafter} if named else {}
    # Without a controller something is drafted in every round.
    engine = SpeculativeEngine(
        model, tokenizer, heads=str(folders / folder), adaptive=False, max_speculation_depth=3, **chosen, **settings
    )
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=20)
        assert result.token_ids == plain.generate(prompt, max_new_tokens=20).token_ids
        assert result.drafter == drafter
    assert engine.provenance()["heads"] == str(folders / folder)
    assert engine.benchmark(PROMPTS[:1], num_runs=1, max_new_tokens=12)["drafted"] > 0


@pytest.mark.parametrize(("write", "kind"), [(write_eagle, "eagle3"), (write_dflash, "dflash")])
def test_heads_of_others_draft_for_a_gguf_file_too(tmp_path, write, kind):
    """DFlash's authors leave the output out: it is the file's, in blocks."""
    file = write_gguf(tmp_path / "model.gguf", kind="Q4_1")
    folder = write(tmp_path / "head", load_gguf(file, torch.float32)[0], "authors", taps=(1, 1))
    plain = SpeculativeEngine(str(file), drafter="none", dtype="float32").generate([3, 4, 5, 6], max_new_tokens=16)
    engine = SpeculativeEngine(
        str(file), heads=str(folder), dtype="float32", adaptive=False, max_speculation_depth=3, max_new_tokens=16
    )
    result = engine.generate([3, 4, 5, 6])
    assert (result.token_ids, result.drafter, result.drafts[kind] > 0) == (plain.token_ids, kind, True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"drafter": "streams"}, UsageError, "drafter is 'streams' and there are no heads for this model; give heads="),
        ({"drafter": "medusa", "heads": "streams"}, UsageError, "holds 'streams'; give drafter='streams'"),
        ({"drafter": "block"}, UsageError, "drafter is 'block' and there are no heads; give heads="),
        ({"drafter": "eagle3"}, UsageError, "drafter is 'eagle3' and there are no heads; give heads="),
        ({"heads": "block", "pruning": 0.1}, UsageError, "pruning is 0.1 and .* holds 'block'; give streams"),
        ({"drafter": "lookup", "heads": "streams"}, UsageError, "drafter is 'lookup' and there are heads"),
        ({"drafter": "lookup", "pruning": 0.1}, UsageError, "pruning is 0.1 and drafter is 'lookup'"),
        ({"pruning": 0.1}, UsageError, "pruning is 0.1 and there are no heads; give heads="),
        ({"drafter": "mixed", "heads": "streams", "pruning": 0.1}, UsageError, "pruning is 0.1 and drafter is 'mixed'"),
        ({"heads": "streams", "pruning": 0.1}, UsageError, "has no early exit; give no pruning"),
        ({"heads": "streams", "pruning": 1.5}, UsageError, "pruning is 1.5; give a value that is less than 1"),
        ({"heads": "streams", "draft_model": "x"}, UsageError, "and there is a draft_model; give one of them"),
        (
            {"heads": "model"},
            ModelNotFoundError,
            "holds 'llama'; give a folder of streams, medusa, block, eagle3 or dflash",
        ),
        ({"heads": "nowhere"}, ModelNotFoundError, "no heads in .*; give a folder that training wrote"),
    ],
)
def test_what_does_not_go_together_is_refused(model, tokenizer, folders, settings, error, message):
    if "heads" in settings:
        settings = {**settings, "heads": str(folders / settings["heads"])}
    with pytest.raises(error, match=message):
        SpeculativeEngine(model, tokenizer, **settings)


@pytest.mark.parametrize("kind", ["streams", "medusa", "block"])
def test_heads_of_another_base_are_refused_by_name(tokenizer, folders, kind):
    with pytest.raises(
        HeadMismatchError, match=rf"{kind}.* belong to llama \(\w+\) and the model is llama \(\w+\); give"
    ):
        SpeculativeEngine(tiny_model(seed=5), tokenizer, heads=str(folders / kind))


def test_generate_takes_heads(run, folders):
    code, out, _ = run("generate", "one two", "--heads", str(folders / "streams"), "-n", "8", "--no-chat", "--json")
    assert code == 0
    assert json.loads(out)["drafter"] == "streams"
    code, _, err = run("generate", "one two", "--drafter", "streams", "-n", "8")
    assert (code, err.count("\n")) == (2, 1)
    assert "give --heads" in err


@pytest.mark.parametrize("kind", ["streams", "pruned", "medusa", "block", "eagle3", "dflash"])
def test_the_audit_passes_heads(run, folders, kind):
    code, out, _ = run("audit", "one two", "--heads", str(folders / kind), "-n", "12", "--no-chat", "--json")
    report = json.loads(out)
    assert (code, report["passed"]) == (0, True)
    assert report["drafted"] > 0


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Like Spec-Bench's file: 3 prompts of one category, 2 of another."""
    file = tmp_path_factory.mktemp("prompts") / "question.jsonl"
    records = [
        {"question_id": at, "category": "writing" if at < 3 else "coding", "turns": [f"the cat {at}", "and then?"]}
        for at in range(5)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def test_bench_heads_holds_all_drafters_beside_plain_decoding(run, folders, questions, tmp_path):
    heads = ["--streams", str(folders / "streams"), "--medusa", str(folders / "medusa"), "--draft", "self:int8"]
    amount = ["--per-category", "2", "-n", "10", "--output", str(tmp_path / "report.json")]
    code, out, err = run("benchmark", "heads", "--prompts", str(questions), *heads, *amount)
    assert (code, err) == (0, "")
    for word in ("streams", "medusa", "lookup", "lookahead", "draft_model", "mixed", "plain", "writing", "coding"):
        assert word in out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    figures = {each["side"]: each for each in report["all"]}
    assert list(figures) == ["plain", "streams", "medusa", "draft_model", "mixed", "lookup", "lookahead"]
    assert len(report["samples"]) == 4 * len(figures)
    plain = figures["plain"]
    assert (plain["mean_accepted_length"], plain["ratio"], plain["parameters"]) == (1, 1, 0)
    for each in figures.values():
        assert each["ratio_interval"]["low"] <= each["ratio"] <= each["ratio_interval"]["high"]
    assert plain["acceptance"] == [0, 0, 0, 0]
    assert all(each["equal"] == each["outputs"] == 4 for each in figures.values())
    assert figures["streams"]["parameters"] == 3 * 48 + 2 * (2 * 96 + 2 * 72 + 3 * 144)
    assert figures["medusa"]["parameters"] == 3 * (48 * 48 + 300 * 48)
    assert figures["draft_model"]["parameters"] == 0, "the target drafts for itself"
    assert all(each["measured_over_predicted"] > 0 for each in figures.values())
    assert (report["batch_size"], report["left_out"]) == (1, 0)
    assert report["arguments"]["per_category"] == 2
    assert report["provenance"]["runtime"]


def test_bench_heads_asks_turns_and_long_prompts_and_tells_lengths_of_each(run, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "SHORTEST", 64)
    document = tmp_path / "text.txt"
    document.write_text("one two three four five six seven\n" * 80, encoding="utf-8")
    words = ["--turns", "2", "--document", str(document), "--context", "120", "--context", "400", "--per-category", "1"]
    words += ["--drafter", "lookup", "-n", "6", "--output", str(tmp_path / "report.json")]
    code, out, err = run("benchmark", "heads", "--prompts", str(questions), *words)
    assert (code, err) == (0, "")
    assert all(name in out for name in ("turn 1", "turn 2", "at 128 tokens or fewer", "at 512 tokens or fewer"))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [each["outputs"] for each in report["all"]] == [8, 8], "two categories, turns and contexts"
    assert set(report["turns"]) == {"1", "2"} and set(report["positions"]) >= {"128", "512"}
    assert report["arguments"]["context"] == [120, 400]


def test_the_model_as_its_own_draft_is_not_loaded_again_as_in_an_engine(run, folders, questions):
    words = ["--drafter", "draft_model", "--draft", str(folders / "model"), "--per-category", "1", "-n", "4", "--json"]
    code, out, _ = run("benchmark", "heads", "--prompts", str(questions), *words)
    assert code == 0
    plain, draft = json.loads(out)["all"]
    assert plain["parameters"] == draft["parameters"] == 0


def test_a_fixed_tree_takes_the_heads_that_are_there(run, folders, questions, monkeypatch):
    load, loaded = MedusaHeads.from_pretrained, []
    monkeypatch.setattr(MedusaHeads, "from_pretrained", lambda *given: loaded.append(given[0]) or load(*given))
    words = [
        "--medusa",
        str(folders / "medusa"),
        "--drafter",
        "medusa",
        "--fixed",
        "5",
        "--per-category",
        "1",
        "-n",
        "4",
    ]
    assert run("benchmark", "heads", "--prompts", str(questions), *words)[0] == 0
    assert loaded == [str(folders / "medusa")]


def test_bench_heads_ends_with_a_prompt_that_cannot_be_answered(run, tmp_path):
    record = {"category": "a", "turns": ["the dog sat " * 300]}
    (tmp_path / "long.jsonl").write_text(json.dumps(record), encoding="utf-8")
    code, out, err = run("benchmark", "heads", "--prompts", str(tmp_path / "long.jsonl"), "--drafter", "lookup")
    assert (code, out) == (2, "")
    assert err.startswith("error: the prompt has")


def test_bench_heads_decodes_several_prompts_at_once(run, questions, tmp_path):
    words = ["--drafter", "lookup", "-b", "2", "-b", "3", "-n", "12", "--output", str(tmp_path / "report.json")]
    code, out, err = run("benchmark", "heads", "--prompts", str(questions), *words)
    assert (code, err) == (0, "")
    assert "2 groups of 2 prompts in the file's order, decoded at once; the last 1 are left out" in out
    assert "1 groups of 3 prompts in the file's order, decoded at once; the last 2 are left out" in out
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["arguments"]["per_category"] == 20
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    pairs, threes = report["batches"]
    assert [(each["batch_size"], each["left_out"], each["categories"]) for each in (pairs, threes)] == [
        (2, 1, {}),
        (3, 2, {}),
    ]
    for each, outputs, groups in ((pairs, 4, 2), (threes, 3, 1)):
        assert [(own["side"], own["equal"], own["outputs"]) for own in each["all"]] == [
            ("plain", outputs, outputs),
            ("lookup", outputs, outputs),
        ]
        assert len(each["samples"]) == 2 * groups
    assert pairs["all"][1]["ratio_interval"]["low"] > 0
    assert threes["all"][1]["ratio_interval"]["low"] is None, "one group says nothing of others"
    assert [each["category"] for each in pairs["samples"][::2]] == ["writing", "writing, coding"]
    assert report["arguments"]["batch_size"] == [2, 3]


def test_bench_heads_holds_thresholds_of_pruning_beside_each_other(run, folders, questions, tmp_path):
    words = ["--streams", str(folders / "pruned"), "--drafter", "streams", "--fixed", "9"]
    words += ["--pruning", "0.001", "--pruning", "0.9", "--per-category", "1", "-n", "16"]
    code, _, err = run(
        "benchmark", "heads", "--prompts", str(questions), *words, "--output", str(tmp_path / "report.json")
    )
    assert (code, err) == (0, "")
    figures = {each["side"]: each for each in json.loads((tmp_path / "report.json").read_text())["all"]}
    kinds = ("streams", "streams (pruned 0.001)", "streams (pruned 0.9)")
    assert list(figures) == ["plain", *(name for kind in kinds for name in (kind, f"{kind} (fixed tree)"))]
    whole, some, hardly = (figures[f"{kind} (fixed tree)"]["nodes"] for kind in kinds)
    assert whole > some > hardly
    assert all(each["equal"] == each["outputs"] == 2 for each in figures.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drafter", "lookup", "--pruning", "0.1"], "pruning is 0.1 and --drafter names no streams; add"),
        (["--drafter", "medusa"], "drafter is 'medusa' and there is no --medusa; give one"),
        (["--drafter", "none"], "drafter is 'none', which is always measured; leave it out"),
        (["--drafter", "magic"], "drafter is 'magic'; give one of"),
        (["--prompts", "nowhere.jsonl"], "--prompts 'nowhere.jsonl' cannot be read"),
        (["--turns", "3"], "--turns is 3 and the longest conversation of"),
        (["--context", "99"], "--context and --document go together: "),
        (["--batch-size", "0"], "--batch-size is '0'; give a value"),
        (["--batch-size", "6"], "batch-size is 6 and there are 5 prompts; give more, or a smaller one"),
        (["--output", "/nowhere/report.json"], "give the name of a file in a folder that exists"),
    ],
)
def test_bench_heads_refuses_before_a_model_is_loaded(run, questions, words, message):
    code, out, err = run("benchmark", "heads", *in_place_of(["--prompts", str(questions)], words))
    assert (code, out) == (2, "")
    assert message in err


def test_prompts_without_a_category_are_refused_by_number(run, tmp_path):
    (tmp_path / "some.jsonl").write_text('{"category": "a", "turns": ["b"]}\n{"turns": ["c"]}\n', encoding="utf-8")
    code, _, err = run("benchmark", "heads", "--prompts", str(tmp_path / "some.jsonl"))
    assert code == 2
    assert "record 2 of" in err
    assert "some.jsonl' has no 'category'; give" in err


def test_bench_heads_tells_what_heads_are_worth_by_themselves(run, folders, questions, tmp_path):
    heads = ["--streams", str(folders / "streams"), "--medusa", str(folders / "medusa"), "--fixed", "7"]
    only = ["--drafter", "streams", "--drafter", "medusa", "--per-category", "1", "-n", "16"]
    code, out, err = run(
        "benchmark", "heads", "--prompts", str(questions), *heads, *only, "-o", str(tmp_path / "report.json")
    )
    assert (code, err) == (0, "")
    assert "streams (fixed tree)" in out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    sides = ["plain", "streams", "streams (fixed tree)", "medusa", "medusa (fixed tree)"]
    assert [each["side"] for each in report["all"]] == sides
    for sample in report["samples"]:
        if sample["side"].endswith("(fixed tree)"):
            passes = len(sample["emitted"])
            assert 7 * (passes - 4) < sample["drafted"] <= 7 * (passes - 1), "all rounds but the first and the last few"
    ratio = 3 * (48 * 48 + 300 * 48) / (3 * 48 + 2 * (2 * 96 + 2 * 72 + 3 * 144))
    assert report["parameter_ratio"] == pytest.approx(ratio)
    assert f"Medusa has {ratio:.1f} times as many extra parameters as streams" in out


def test_the_old_name_does_the_same_and_says_what_the_new_one_is(run, folders, questions):
    words = ["--prompts", str(questions), "--drafter", "lookup", "--per-category", "1", "-n", "6", "--json"]
    code, out, err = run("bench-heads", *words)
    assert code == 0
    note = "note: specstream bench-heads is deprecated and goes with the next release; use specstream benchmark heads\n"
    assert err == note
    again = json.loads(run("benchmark", "heads", *words)[1])
    old = json.loads(out)
    assert set(old) == set(again)
    assert [each["emitted"] for each in old["samples"] if each["side"] == "plain"] == [
        each["emitted"] for each in again["samples"] if each["side"] == "plain"
    ]
