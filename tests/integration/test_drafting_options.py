"""An option limits what drafts, whichever drafter it is, or is refused: it is never ignored."""

from __future__ import annotations

import json

import pytest
import torch

import specstream
from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.config import engine_config
from specstream.engine.build import config_of
from specstream.errors import UsageError
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams, StreamsConfig
from specstream.routing.config import DrafterSpec
from tests.tiny import tiny_model

PROMPT = "one two three four five one two three four five one two three"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model):
    root = tmp_path_factory.mktemp("heads")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(model, StreamsConfig(gamma=4, layers=1, rank=2)).save(root / "streams")
        MedusaHeads(model, num_heads=4).save(root / "medusa")
    return root


def chosen(drafter, folders):
    """The settings and the draft of a drafter that always drafts as deep as it may."""
    if drafter in ("streams", "medusa"):
        return {"drafter": drafter, "heads": str(folders / drafter)}, None
    if drafter == "mixed":
        return {"drafter": drafter, "heads": str(folders / "streams")}, None
    return {"drafter": drafter}, tiny_model() if drafter == "draft_model" else None


def deepest(monkeypatch, engine):
    """The deepest tree that was drafted while a text was generated."""
    depths = [0]
    kind = type(engine.parts.drafter)
    begin = kind.begin

    def watched(*arguments):
        session = begin(*arguments)
        propose = session.propose

        def seen(requests):
            trees = propose(requests)
            depths.extend(max(tree.depths) for tree in trees)
            return trees

        session.propose = seen
        return session

    monkeypatch.setattr(kind, "begin", watched)
    engine.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    return max(depths)


@pytest.mark.parametrize("drafter", ["lookup", "draft_model", "streams", "medusa", "mixed", "lookahead"])
@pytest.mark.parametrize("limit", ["gamma", "max_speculation_depth"])
def test_gamma_is_the_depth_of_every_drafter(monkeypatch, model, tokenizer, folders, drafter, limit):
    settings, draft = chosen(drafter, folders)
    engine = SpeculativeEngine(model, tokenizer, draft, adaptive=False, **settings, **{limit: 2})
    assert deepest(monkeypatch, engine) == 2
    assert engine.parts.speculation.max_depth == 2


@pytest.mark.parametrize("drafter", ["lookup", "draft_model"])
def test_a_gamma_beyond_the_default_is_followed(monkeypatch, model, tokenizer, folders, drafter):
    settings, draft = chosen(drafter, folders)
    engine = SpeculativeEngine(model, tokenizer, draft, adaptive=False, gamma=9, **settings)
    assert deepest(monkeypatch, engine) == 9


def test_the_smaller_of_two_limits_holds(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, gamma=6, max_speculation_depth=3)
    assert engine.parts.speculation.max_depth == 3


@pytest.mark.parametrize(
    ("drafter", "option"),
    [
        ("streams", {"branches": 3}),
        ("medusa", {"branches": 3}),
        ("lookahead", {"branches": 3}),
        ("none", {"branches": 3}),
        ("lookup", {"lookahead_window": 7}),
        ("draft_model", {"lookahead_guesses": 7}),
        ("streams", {"lookahead_ngram": 7}),
        ("lookup", {"draft_quantization": "int8"}),
        ("streams", {"draft_quantization": "int4"}),
    ],
)
def test_an_option_that_the_drafter_makes_no_use_of(model, tokenizer, folders, drafter, option):
    settings, draft = chosen(drafter, folders)
    (name,) = option
    for call in (
        lambda: SpeculativeEngine(model, tokenizer, draft, **settings, **option),
        lambda: specstream.speculative_decode(model, draft, [[5, 6]], **settings, **option),
    ):
        with pytest.raises(
            UsageError, match=rf"{name} is .* (which makes no use of it|there is no draft_model); leave it out"
        ):
            call()


def test_heads_that_auto_is_given_have_no_branches(model, tokenizer, folders):
    with pytest.raises(UsageError, match="branches is 3 and drafter is 'auto' with heads"):
        SpeculativeEngine(model, tokenizer, heads=str(folders / "streams"), branches=3)


def test_a_model_that_drafts_for_itself_has_one_quantization(model, tokenizer):
    with pytest.raises(UsageError, match="'self:int8' and draft_quantization is 'int4'; give one"):
        SpeculativeEngine(model, tokenizer, "self:int8", draft_quantization="int4")


def test_the_drafters_of_a_router_take_of_the_common_options_what_they_use():
    common = engine_config({"branches": 3, "lookahead_window": 7, "gamma": 5})
    lookup, lookahead = (config_of(DrafterSpec(drafter=name), common) for name in ("lookup", "lookahead"))
    assert (lookup.branches, lookup.lookahead_window, lookup.gamma) == (3, 4, 5)
    assert (lookahead.branches, lookahead.lookahead_window, lookahead.gamma) == (1, 7, 5)


def test_a_routers_drafter_without_a_draft_has_no_gamma_of_its_own():
    with pytest.raises(UsageError, match="gamma is 3 of the router's drafter 'lookup'"):
        config_of(DrafterSpec(drafter="lookup", gamma=3), engine_config({}))


BEYOND = [
    ("streams", "there are 4 streams, so 4 tokens"),
    ("medusa", "there are 4 Medusa heads, so 4 tokens"),
    ("mixed", "there are 4 streams, so 4 tokens"),
    ("lookahead", "lookahead's window of 4 and n-grams of 4 tokens reach 5, so 5 tokens"),
]


@pytest.mark.parametrize("limit", ["gamma", "max_speculation_depth"])
@pytest.mark.parametrize(("drafter", "reason"), BEYOND)
def test_a_depth_that_nothing_reaches_is_said_and_carried(capsys, model, tokenizer, folders, drafter, reason, limit):
    settings, draft = chosen(drafter, folders)
    wanted = f"{limit} is 9 and {reason} deep is the most that they draft"
    capsys.readouterr()
    engine = SpeculativeEngine(model, tokenizer, draft, adaptive=False, **settings, **{limit: 9})
    assert capsys.readouterr().err == f"specstream: {wanted}\n"
    assert engine.generate(PROMPT, max_new_tokens=4).left_out == wanted
    assert engine.provenance()["left_out"] == wanted
    _, metrics = specstream.speculative_decode(model, draft, [[5, 6]], max_new_tokens=2, **settings, **{limit: 9})
    assert metrics.left_out == wanted


@pytest.mark.parametrize(("drafter", "reach"), [("streams", 4), ("medusa", 4), ("lookahead", 5)])
def test_what_is_said_of_the_depth_is_so(monkeypatch, model, tokenizer, folders, drafter, reach):
    settings, draft = chosen(drafter, folders)
    engine = SpeculativeEngine(model, tokenizer, draft, adaptive=False, **settings, gamma=9)
    if drafter == "streams":  # whose first tree has three nodes
        engine.parts.drafter.preferred = 31
    assert deepest(monkeypatch, engine) == reach
    assert f"so {reach} tokens deep" in engine.parts.left_out


@pytest.mark.parametrize("drafter", ["streams", "medusa", "mixed", "lookahead", "lookup", "draft_model"])
def test_nothing_is_said_of_a_depth_that_is_reached(model, tokenizer, folders, drafter):
    settings, draft = chosen(drafter, folders)
    for gamma in (None, 1, 4):
        assert SpeculativeEngine(model, tokenizer, draft, **settings, gamma=gamma).parts.left_out is None


def test_the_command_line_says_it_too(capsys, model, tokenizer, folders, tmp_path):
    model.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    words = ["--model", str(tmp_path / "target"), "--heads", str(folders / "streams"), "-K", "9", "-n", "2", "--json"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["generate", "one two", *words])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert json.loads(out)["left_out"].startswith("gamma is 9 and there are 4 streams")
    assert json.loads(out)["left_out"].replace("gamma", "-K", 1) in err, "as it was typed"
