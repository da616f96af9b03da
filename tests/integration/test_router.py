"""`specstream router` as people type it, and the router in the engine and as a function."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from specstream import AdaptiveRouter, SpeculativeEngine
from specstream.cli import main
from specstream.core import decode
from specstream.core.policy.policy import Speculation
from specstream.core.policy.prices import PriceList
from specstream.demo.figures import speculative_figures
from specstream.demo.offered import OfferedModels, Question
from specstream.errors import HeadMismatchError, UsageError
from specstream.routing.config import NONE, DrafterSpec
from specstream.routing.records import read_collected
from specstream.training import router_collect
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.core.machine import fix_costs

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SUMS = [{"question": f"{at} + {at} = ? {at} + {at} = ?", "kind": "sum"} for at in range(10)]
CHATS = [{"prompt": f"{first} the cat"} for first in WORDS]
FAST = {"maths": "lookup", "chat": "draft"}
CHEAP_DRAFTS = PriceList(
    {(1, nodes, 64): 0.01 + 1e-5 * nodes for nodes in (1, 2, 4, 8, 16)},
    {"draft_model": {(1, depth): 1e-3 * depth for depth in (1, 2, 4)}},
)
"""Of a draft as large as its target, whose drafts do not pay here: they are to be tried all the same."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A target, a draft, prompts of two kinds."""
    root = tmp_path_factory.mktemp("router")
    for name, model in {"target": tiny_model(), "draft": tiny_model(noise=0.02)}.items():
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "sums.json").write_text(json.dumps([{"question": "no sum", "kind": "other"}, *SUMS]), encoding="utf-8")
    (root / "chats.jsonl").write_text("\n".join(map(json.dumps, CHATS)), encoding="utf-8")
    return root


def configs(root, folder):
    """The two configurations, as files."""
    target = {"model": str(root / "target"), "dtype": "float32", "runtime": "eager"}
    collect = {
        "target": target,
        "drafters": {
            "none": {"drafter": "none"},
            "lookup": {"drafter": "lookup"},
            "draft": {"drafter": "draft_model", "draft": str(root / "draft"), "draft_quantization": "none"},
            "mixed": {"drafter": "mixed", "draft": str(root / "draft"), "draft_quantization": "none"},
        },
        "prompts": [
            {"file": str(root / "sums.json"), "domain": "maths", "where": {"kind": "sum"}, "limit": 8},
            {"file": str(root / "chats.jsonl"), "domain": "chat", "skip": 2, "template": "Say: {prompt}!"},
        ],
        "collection": {"output": str(folder / "collected.jsonl"), "max_new_tokens": 20},
    }
    train = {
        "target": target,
        "data": {"files": [str(folder / "collected.jsonl")]},
        "fit": {"epochs": 60, "hidden": 8, "reduced": 4},
        "output_dir": str(folder / "router"),
    }
    paths = []
    for name, values in (("collect", collect), ("train", train)):
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values), encoding="utf-8")
    return paths


@pytest.fixture
def run(capsys):
    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


def timed(generation, plain, measured=router_collect._run):
    """As measured, but for the seconds: those say what each drafter is good for, by what it is asked."""
    run = measured(generation, plain)
    kind = "maths" if any(chr(48 + digit) in generation.text_asked for digit in range(10)) else "chat"
    return replace(run, seconds=run.tokens / (20.0 if generation.side == FAST[kind] else 10.0))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A collection whose clock is made up, and the router that was trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    collect, train = configs(root, folder)
    generate = router_collect._generate
    tokenizer = tiny_tokenizer()

    with pytest.MonkeyPatch.context() as patch:

        def noting(parts, section, ids):
            generation = generate(parts, section, ids)
            generation.text_asked = tokenizer.decode(ids)
            generation.side = {"draft_model": "draft"}.get(parts.drafter.name, parts.drafter.name)
            return generation

        patch.setattr(router_collect, "_generate", noting)
        patch.setattr(router_collect, "_run", timed)
        for words in (("collect", "--config", str(collect)), ("train", "--config", str(train))):
            with pytest.raises(SystemExit) as exit_:
                main(["router", *words])
            assert exit_.value.code == 0
    return folder


def test_every_drafter_is_measured_on_every_prompt(run, root, tmp_path, monkeypatch):
    fix_costs(monkeypatch, CHEAP_DRAFTS)
    collect, _ = configs(root, tmp_path)
    settings = ("--set", "collection.runs=2", "--set", "collection.max_new_tokens=8")
    code, out, err = run("router", "collect", "--config", collect, *settings)
    assert (code, err) == (0, "")
    assert "16 prompts, 0 failed, 0 too long, left out" in out
    measured, failed = read_collected([tmp_path / "collected.jsonl"])
    assert (len(measured), failed) == (16, [])
    assert sorted(each.domain for each in measured) == ["chat"] * 8 + ["maths"] * 8
    assert {each.prompt for each in measured if each.domain == "chat"} == {
        f"Say: {record['prompt']}!" for record in CHATS[2:]
    }
    tokenizer, target = tiny_tokenizer(), tiny_model()
    for each in measured:
        assert set(each.runs) == {"none", "lookup", "draft", "mixed"}
        assert all(len(own) == 2 and all(one.equal for one in own) for own in each.runs.values())
        assert all(one.passes == one.tokens and one.drafted == 0 for one in each.runs[NONE])
    assert any(one.accepted for each in measured for one in each.runs["draft"])
    chat = [{"role": "user", "content": measured[0].prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert measured[0].token_ids == inputs["input_ids"][0].tolist()
    own = target.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert measured[0].runs[NONE][0].tokens == len(own)
    record = json.loads((tmp_path / "collected.jsonl.meta.json").read_text())
    assert record["complete"] is True
    assert record["drafters"]["draft"]["draft"] == str(root / "draft")


def test_an_interrupted_collection_goes_on_and_another_is_not_mixed_in(run, root, tmp_path, monkeypatch):
    collect, _ = configs(root, tmp_path)
    left, verify = 300, decode.verify_each

    def interrupted(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return verify(*arguments)

    monkeypatch.setattr(decode, "verify_each", interrupted)
    assert run("router", "collect", "--config", collect)[0] == 130
    partial = tmp_path / "collected.jsonl.partial"
    before = partial.read_text().splitlines()
    assert before and not (tmp_path / "collected.jsonl").exists()
    with partial.open("a") as file:
        file.write('{"prompt": "hal')  # as if the power had gone
    monkeypatch.setattr(decode, "verify_each", verify)
    code, _, err = run("router", "collect", "--config", collect, "--set", "collection.max_new_tokens=5")
    assert code == 2
    assert "holds prompts with max_new_tokens 20 and now it is 5; give another collection.output" in err
    assert run("router", "collect", "--config", collect, "--limit", "6")[0] == 0
    after = (tmp_path / "collected.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 6
    assert run("router", "collect", "--config", collect)[0] == 0
    assert len(read_collected([tmp_path / "collected.jsonl"])[0]) == 16
    measured = (tmp_path / "collected.jsonl").read_bytes()
    code, _, err = run("router", "collect", "--config", collect, "--limit", "2")
    assert code == 0 and "holds 16 prompts, more than the limit of 2; all are kept" in err
    assert (tmp_path / "collected.jsonl").read_bytes() == measured
    code, _, err = run("router", "collect", "--config", collect, "--set", "target.model=nowhere")  # nor is it loaded
    assert code == 2 and "and now it is 'nowhere'; give another collection.output" in err
    assert "holds prompts with target.model " in err


def test_a_prompt_that_fails_is_recorded_and_the_others_go_on(run, root, tmp_path, monkeypatch):
    collect, _ = configs(root, tmp_path)
    generate, failing = router_collect._generate, []

    def sometimes(parts, section, ids):
        if len(failing) == 4 + 3:  # each of the four drafters warms up
            failing.append(ids)
            raise RuntimeError("out of\nmemory")
        failing.append(ids)
        return generate(parts, section, ids)

    monkeypatch.setattr(router_collect, "_generate", sometimes)
    code, out, _ = run("router", "collect", "--config", collect, "--limit", "4")
    assert code == 0
    assert "4 prompts, 1 failed" in out
    measured, failed = read_collected([tmp_path / "collected.jsonl"])
    assert len(measured) == 3
    assert [each.error for each in failed] == ["RuntimeError: out of memory"]

    def never(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(router_collect, "_generate", never)
    code, _, err = run("router", "collect", "--config", collect, "--set", f"collection.output={tmp_path / 'b.jsonl'}")
    assert code == 1
    assert "all 16 prompts failed" in err


def test_trained_it_closes_the_gap_and_says_what_it_costs(run, trained):
    figures = json.loads((trained / "router" / "figures.json").read_text())
    assert figures["prompts"] == {"fitted": 12, "held_out": 4, "failed": 0}
    assert figures["table"]["agreement"] == 1.0
    assert figures["table"]["gap_closed"] > 0.8
    assert figures["table"]["best_single"] in ("lookup", "draft")
    words = ("--router", trained / "router", "--data", trained / "collected.jsonl")
    code, out, err = run("router", "evaluate", *words, "-o", trained / "table.json")
    assert code == 0 and "has prompts that the router was fitted to, on which it looks better than it is" in err
    for word in ("always", "none", "lookup", "draft", "mixed", "router", "oracle", "maths", "chat", "regret"):
        assert word in out
    table = json.loads((trained / "table.json").read_text())
    assert table["prompts"] == 16
    assert table["routing_seconds"] > 0
    assert table["arguments"]["learn"] is False
    code, out, err = run("router", "evaluate", *words, "--json", "--learn")
    assert code == 0 and err.count("\n") == 1
    assert json.loads(out)["gap_closed"] > 0


def test_some_of_the_measured_drafters_may_be_chosen_among(run, root, trained, tmp_path):
    _, train = configs(root, tmp_path)
    words = ("--set", f"data.files={[str(trained / 'collected.jsonl')]}", "--set", "data.drafters=[draft, none]")
    code, out, _ = run("router", "train", "--config", train, *words, "--json")
    assert code == 0
    assert {each["name"] for each in json.loads(out)["table"]["all"]} >= {"none", "draft"}
    assert "lookup" not in out
    words = ("--router", tmp_path / "router", "--data", trained / "collected.jsonl")
    code, out, _ = run("router", "evaluate", *words, "--json")  # which has runs of others too
    assert code == 0
    table = json.loads(out)
    assert (table["best_single"], table["prompts"]) == ("draft", 16)


def test_held_out_files_are_judged_by_and_not_fitted_to(run, root, trained, tmp_path):
    _, train = configs(root, tmp_path)
    files = [str(trained / "collected.jsonl")]
    lines = (trained / "collected.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "held.jsonl").write_text("".join(lines[:6]))
    (tmp_path / "held.jsonl.meta.json").write_text((trained / "collected.jsonl.meta.json").read_text())
    held = f"data.held_out_files=[{tmp_path / 'held.jsonl'}]"
    code, out, _ = run("router", "train", "--config", train, "--set", f"data.files={files}", "--set", held, "--json")
    assert code == 0
    assert json.loads(out)["prompts"] == {"fitted": 10, "held_out": 6, "failed": 0}
    (tmp_path / "held.jsonl.meta.json").unlink()
    code, _, err = run("router", "train", "--config", train, "--set", f"data.files={files}", "--set", held)
    assert code == 2
    assert "has no record beside it" in err


@pytest.fixture
def known_plain(monkeypatch):
    """What plain passes take here; measured, a slow spell of the machine would leave it unknown."""
    monkeypatch.setattr(Speculation, "plain_seconds", lambda self, rows: 1e-9)


@pytest.mark.usefixtures("known_plain")
@pytest.mark.parametrize("kind", FAST)
def test_the_engine_routes_and_says_so(root, trained, kind, tmp_path):
    state = tmp_path / "state"
    settings = {"router": str(trained / "router"), "router_state": str(state), "dtype": "float32", "runtime": "eager"}
    engine = SpeculativeEngine(str(root / "target"), drafter="router", **settings)
    plain = SpeculativeEngine(str(root / "target"), drafter="none", dtype="float32", runtime="eager")
    prompt = [{"role": "user", "content": "3 + 3 = ? 3 + 3 = ?" if kind == "maths" else "Say: six the cat!"}]
    result = engine.generate(prompt, max_new_tokens=30, ignore_eos=True)
    assert result.token_ids == plain.generate(prompt, max_new_tokens=30, ignore_eos=True).token_ids
    assert result.drafter == "router"
    assert result.routing["drafter"] == FAST[kind]
    assert 0 < result.routing["seconds"] < result.prefill_seconds
    assert set(result.routing["expected"]) == {"none", "lookup", "draft", "mixed"}
    assert state.exists()
    assert engine.provenance()["drafter"] == "router"
    assert plain.generate(prompt, max_new_tokens=3).routing is None


@pytest.mark.usefixtures("known_plain")
def test_what_it_learns_it_learns_of_one_greedy_text_that_is_long_enough(root, trained):
    engine = SpeculativeEngine(
        str(root / "target"), drafter="router", router=str(trained / "router"), dtype="float32", runtime="eager"
    )
    seen = []
    engine.parts.drafter.router.observe = lambda *values, **named: seen.append((values, named))
    engine.generate("one two", max_new_tokens=5)
    engine.generate(["one two", "three"], max_new_tokens=20, ignore_eos=True)
    engine.generate("one two", max_new_tokens=20, temperature=1.0, ignore_eos=True)
    assert seen == []
    result = engine.generate("one two", max_new_tokens=20, ignore_eos=True)
    ((features, drafter, speed), named) = seen[0]
    assert drafter == result.routing["drafter"]
    assert named == {"plain": result.baseline["tokens_per_second"]}
    assert features.shape[0] == 1
    assert speed > 0
    pieces = engine.stream("one two", max_new_tokens=20, ignore_eos=True)
    assert "".join(pieces) == pieces.result.text == result.text
    assert len(seen) == 2


def test_a_seed_repeats_whatever_was_learned(root, trained):
    engine = SpeculativeEngine(
        str(root / "target"), drafter="router", router=str(trained / "router"), dtype="float32", runtime="eager"
    )
    first = engine.generate("one two", max_new_tokens=20, temperature=1.0, seed=4)
    for _ in range(3):
        engine.generate("one two", max_new_tokens=20, ignore_eos=True)
    again = engine.generate("one two", max_new_tokens=20, temperature=1.0, seed=4)
    assert (first.token_ids, first.routing["drafter"]) == (again.token_ids, again.routing["drafter"])


def test_two_drafters_of_one_draft_share_it(root, trained):
    engine = SpeculativeEngine(
        str(root / "target"), drafter="router", router=str(trained / "router"), dtype="float32", runtime="eager"
    )
    drafters = engine.parts.drafter.by_name
    assert drafters["mixed"].drafters[1] is drafters["draft"]
    assert drafters["draft"].name == "draft"
    report = engine.benchmark(["one two three"], num_runs=1, max_new_tokens=8)
    assert report["memory_overhead"] == pytest.approx(1.0)  # the draft is as large as the target, and there once


def test_generate_on_the_command_line(run, root, trained):
    words = ("generate", "one two", "-m", root / "target", "--dtype", "float32", "-n", "8", "--drafter", "router")
    code, out, err = run(*words, "--router", trained / "router")
    assert code == 0
    assert "the router took" in err
    code, out, _ = run(*words, "--router", trained / "router", "--json")
    assert json.loads(out)["routing"]["drafter"] in ("none", "lookup", "draft", "mixed")
    code, _, err = run(*words)
    assert code == 2
    assert "drafter is 'router' and there is none; give --router" in err
    code, _, err = run(*words[:-1], "lookup", "--router", trained / "router")
    assert code == 2
    assert "--router is given and --drafter is 'lookup'; give --drafter router" in err


def test_a_router_of_another_model_is_refused(trained):
    with pytest.raises(HeadMismatchError, match="the router belongs to target"):
        SpeculativeEngine(tiny_model(seed=4), tiny_tokenizer(), drafter="router", router=str(trained / "router"))


@pytest.mark.usefixtures("known_plain")
def test_route_and_decode(trained):
    target, draft = tiny_model(), tiny_model(noise=0.02)
    tokenizer = tiny_tokenizer()
    router = AdaptiveRouter.from_config({"router": str(trained / "router"), "explore": 0})
    ids = tokenizer("<user>Say: six the cat!<assistant>", return_tensors="pt")["input_ids"]
    expected = target.generate(ids, max_new_tokens=20, do_sample=False)
    settings = {"max_new_tokens": 20, "runtime": "eager"}
    for drafts in ({"draft": draft}, [draft], [draft, draft]):
        output_ids, metrics = router.route_and_decode(target, drafts, ids, **settings)
        assert torch.equal(output_ids, expected)
        assert metrics["drafter"] == "draft"
        assert 0 < metrics["routing_seconds"] < metrics["seconds"]
        assert set(metrics["expected"]) == {"none", "lookup", "draft"} | ({"mixed"} if len(drafts) == 2 else set())
        assert metrics["speedup"] > 0
    kept = router._made[3]
    router.route_and_decode(target, [draft, draft], ids[0], **settings)
    assert router._made[3] is kept
    output_ids, metrics = router.route_and_decode(target, [], ids, **settings)
    assert torch.equal(output_ids, expected)
    assert set(metrics["expected"]) == {"none", "lookup"}
    assert metrics["left_out"] is None


def test_route_and_decode_says_which_depth_is_not_reached(trained, monkeypatch):
    router = AdaptiveRouter.from_config({"router": str(trained / "router"), "explore": 0})
    own = {NONE: DrafterSpec(drafter=NONE), "lookup": DrafterSpec(drafter="lookahead")}
    monkeypatch.setattr(AdaptiveRouter, "drafters", property(lambda self: own))
    _, metrics = router.route_and_decode(tiny_model(), None, [[5, 6, 7]], gamma=9, max_new_tokens=4, runtime="eager")
    assert metrics.left_out.startswith("gamma is 9 and lookahead's window of 4 and n-grams of 4 tokens reach 5")


def test_what_route_and_decode_cannot_do_is_said(trained, tmp_path):
    target, ids = tiny_model(), [1, 2, 3]
    router = AdaptiveRouter.from_config({"router": str(trained / "router")})
    with pytest.raises(UsageError, match="draft model 'medusa' belongs to no drafter; name it as one of draft, mixed"):
        router.route_and_decode(target, {"medusa": target}, ids)
    with pytest.raises(UsageError, match="there are 3 draft models and 2 drafters that draft with one"):
        router.route_and_decode(target, [target] * 3, ids)
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        router.route_and_decode(target, None, ids, stop="x")
    with pytest.raises(UsageError, match="drafter is given and the router has its own"):
        router.route_and_decode(target, None, ids, drafter="lookup")
    settings = json.loads((trained / "router" / "config.json").read_text())
    del settings["drafters"]["lookup"], settings["drafters"]["mixed"], settings["drafters"]["draft"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "router.safetensors").write_bytes((trained / "router" / "router.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"the router has 1 drafter to choose from \(none\); give it at least two"):
        AdaptiveRouter.from_config({"router": str(tmp_path)})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collection.speed=3", "unknown setting 'collection.speed'; known are chat, exclude, max_new_tokens"),
        ("drafters={none: {drafter: none}}", "has 1 drafter to choose from (none); give it at least two"),
        ("drafters={lookup: {drafter: lookup}, mixed: {drafter: lookup}}", "add 'none: {drafter: none}'"),
        ("drafters.lookup.drafter=magic", "drafter is 'magic'"),
        ("drafters.lookup.drafter=router", "one of the router's drafters is 'router'"),
        ("drafters.lookup.drafter=draft_model", "there is no draft_model; give a smaller model"),
        ("drafters.lookup.kind=x", "unknown setting 'drafters.lookup.kind'; known are draft, draft_quantization"),
        ("prompts=[{file: a, domain: b, template: x}]", "template is 'x'; give a text with {prompt} in it"),
        ("prompts=[]", "prompts is []"),
        ("prompts=[{file: nowhere.jsonl, domain: b}]", "'nowhere.jsonl' cannot be read"),
    ],
)
def test_a_wrong_collection_is_one_line(run, root, tmp_path, override, message):
    collect, _ = configs(root, tmp_path)
    code, out, err = run("router", "collect", "--config", collect, "--set", override)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "collected.jsonl.partial").exists()


def test_a_wrong_training_is_one_line(run, root, trained, tmp_path):
    _, train = configs(root, tmp_path)
    files = f"data.files={[str(trained / 'collected.jsonl')]}"
    for override, message in (
        ("fit.depth=3", "unknown setting 'fit.depth'"),
        ("data.files=[]", "data.files is []"),
        (f"target.model={root / 'draft'}", "the collection is of target ("),
        ("embedding.name=bert", "embedding.name is 'bert'"),
        ("data.drafters=[lookup, draft]", "add 'none', the measure of all"),
        ("data.drafters=[none, eagle]", "data.drafters has 'eagle', which was not measured"),
        ("data.drafters=[none]", "the router has 1 drafter to choose from"),
    ):
        given = [] if override.startswith("data.files") else ["--set", files]
        code, _, err = run("router", "train", "--config", train, *given, "--set", override)
        assert code == 2
        assert message in err
    assert not (tmp_path / "router").exists()


def test_the_demo_offers_it_and_says_what_it_took(root, trained):
    models = [str(root / "target"), str(root / "draft")]
    offered = OfferedModels(models, drafter="router", router=str(trained / "router"), runtime="eager")
    try:
        assert "router" in offered.load(models[0])
        (*_, race) = offered.race(Question(prompt="one two", model=models[0], drafter="router", max_new_tokens=12), 0.0)
        assert race.equal
        choice = race.speculative.generation.choice
        taken = {name: value for value, name, _ in speculative_figures(race)}["the router's choice"]
        assert taken == choice.drafter
        (*_, race) = offered.race(Question(prompt="one two", model=models[0], drafter="lookup", max_new_tokens=4), 0.0)
        assert "the router's choice" not in {name for _, name, _ in speculative_figures(race)}
        assert "router" not in offered.load(models[1]), "it was trained for the other model"
    finally:
        offered.close()
