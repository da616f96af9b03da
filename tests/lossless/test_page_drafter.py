"""The drafter of docs/add_a_drafter.md, as it stands there: lossless, and at work in an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from specstream.core.policy.prices import PriceList
from specstream.core.sampling import Sampling
from tests.lossless.test_distribution import Case, judge
from tests.lossless.test_greedy import PROMPTS, by_definition, generate
from tests.lossless.test_greedy import TARGET as GREEDY_TARGET
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.core.machine import fix_costs

PAGE = Path(__file__).parents[2] / "docs" / "add_a_drafter.md"
DRAFTER, AT_WORK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def page_drafter(code=DRAFTER):
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_greedy_tokens_are_the_models_own():
    texts = [GREEDY_TARGET.favourites(prompt, 12) for prompt in PROMPTS]
    drafter = page_drafter()["BigramDrafter"](texts, GREEDY_TARGET.vocab)
    rows = generate(drafter, PROMPTS, Sampling())
    assert [row.emitted for row in rows] == [by_definition(Sampling(), prompt, 40) for prompt in PROMPTS]
    assert 0 < sum(row.stats.accepted for row in rows) < sum(row.stats.drafted for row in rows)


TEXTS = [[0, 1, 0, 1, 0, 1, 0, 2, 1, 3, 1, 3, 1, 3, 2, 2, 2, 2, 3, 0, 3, 0, 3, 1]]
APPENDED = "proposals.append(distribution)"


def sampled(code=DRAFTER):
    return judge(Case(drafter=lambda: page_drafter(code)["BigramDrafter"](TEXTS, 4)))[0]


@pytest.mark.parametrize("code", [DRAFTER, DRAFTER.replace(APPENDED, "pass")], ids=["as it is", "without proposals"])
def test_sampling_is_lossless(code):
    comparison = sampled(code)
    assert comparison.matches, comparison


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (APPENDED, "proposals.append(distribution**4 / (distribution**4).sum())"),
        ("draw(distribution, request.generator)", "int(distribution.argmax())"),
    ],
    ids=["another distribution", "not drawn"],
)
def test_the_rule_is_needed(right, wrong):
    assert DRAFTER.count(right) == 1
    assert not sampled(DRAFTER.replace(right, wrong)).matches


def test_it_works_in_an_engine_and_passes_the_audit(tmp_path, capsys, monkeypatch):
    # The tiny model's passes are as cheap as a draft: it is told another machine's costs, or little would be drafted.
    prices = PriceList({(1, nodes, 64): 0.01 + 1e-5 * nodes for nodes in (1, 2, 4, 8, 16)}, {"bigram": {(1, 1): 1e-4}})
    fix_costs(monkeypatch, prices)
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    names = page_drafter()
    exec(compile(AT_WORK.replace('"smollm2-135m"', repr(str(tmp_path))), str(PAGE), "exec"), names)
    assert names["report"].passed and names["report"].drafted > 0
    assert names["result"]["drafter"] == "bigram"
    assert torch.is_tensor(names["drafter"].following(names["tokens"][0][0]))
    assert "passed" in capsys.readouterr().out
