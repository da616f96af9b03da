from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from specstream import SpeculativeEngine
from specstream.config import GenerationConfig
from specstream.core import decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Target, Verdict
from specstream.core.sampling import Finder
from specstream.core.tree import TokenTree
from specstream.drafters.none import NoDrafter
from specstream.engine.generation import Generation, Parts
from specstream.errors import NumericalError, UsageError
from specstream.evaluation.audit import AuditReport, audit, audit_tokens
from tests.lossless.drafters import FunctionDrafter, oracle
from tests.lossless.table_model import TableModel
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["one two three one two", "the cat sat on the mat and the dog", "def add(a, b):"]
NEW_TOKENS = 24


def engine(dtype: torch.dtype = torch.float32, drafter: str = "lookup", **settings) -> SpeculativeEngine:
    """Drafts are always made: what is to be audited is not left to what it costs on this machine."""
    draft = tiny_model(noise=0.02).to(dtype) if drafter == "draft_model" else None
    model = tiny_model().to(dtype)
    return SpeculativeEngine(model, tiny_tokenizer(), draft, drafter=drafter, adaptive=False, **settings)


def accept_everything(trees, logits, contexts, sampling, generators, threshold=None, ends=frozenset()):
    """A verifier with a bug: it looks at the logits behind the deepest draft only."""
    return [
        Verdict(path=path, tokens=(*(tree.tokens[node] for node in path[1:]), int(logits[row, path[-1]].argmax())))
        for row, tree in enumerate(trees)
        for path in [tree.path(max(range(len(tree)), key=tree.depths.__getitem__))]
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("drafter", ["lookup", "draft_model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_lossless_engine_passes(dtype, drafter, batch_size):
    audited = engine(dtype, drafter, max_new_tokens=NEW_TOKENS)
    report = audit(audited, PROMPTS, batch_size=batch_size)
    assert report.passed, report.problems
    assert report.prompts == 3
    assert report.tokens == sum(result.new_tokens for result in audited.generate(PROMPTS))
    assert report.drafted > report.accepted >= (drafter == "draft_model")
    assert report.noise.comparisons == report.tokens * len(report.noise.widths)
    assert report.noise.plausible
    assert report.exact == "rounding" or report.divergences == ()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_verifier_that_accepts_wrong_drafts_is_found_out_at_every_token(monkeypatch, batch_size):
    audited = engine(drafter="draft_model", max_new_tokens=NEW_TOKENS, ignore_eos=True)
    monkeypatch.setattr(decode, "verify_each", accept_everything)
    report = audit(audited, PROMPTS, batch_size=batch_size)
    expected = []
    for number, prompt in enumerate(PROMPTS):
        ids = audited.tokenizer(prompt)["input_ids"]
        emitted = audited.generate(prompt).token_ids
        with torch.no_grad():  # transformers' own choice at every position, given the tokens emitted before it
            logits = audited.model(torch.tensor([[*ids, *emitted]])).logits[0, len(ids) - 1 : -1]
        for position, (row, token) in enumerate(zip(logits, emitted, strict=True)):
            if (choice := int(row.argmax())) != token:
                expected.append((number, position, token, choice, float(row[choice] - row[token])))
    assert len(expected) > 10
    found = [(each.prompt, each.position, each.emitted, each.plain) for each in report.divergences]
    assert found == [each[:4] for each in expected]
    assert [each.gap for each in report.divergences] == pytest.approx([each[4] for each in expected], abs=1e-3)
    told = {(each.emitted, each.emitted_text) for each in report.divergences}
    told |= {(each.plain, each.plain_text) for each in report.divergences}
    for token, text in told:
        alone = audited.tokenizer.decode([token])
        assert text.startswith("\\x") if "\N{REPLACEMENT CHARACTER}" in alone else text == alone
    assert any(text.startswith("\\x") for _, text in told)
    assert not report.passed
    assert "tokens are not those of plain decoding" in report.problems[0]


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.5}, {"logits_processor": [lambda ids, scores: -scores]}])
def test_choices_are_made_from_processed_scores(settings):
    audited = engine(max_new_tokens=NEW_TOKENS)
    report = audit(audited, PROMPTS, **settings)
    assert report.passed, report.problems
    assert report.divergences == ()
    assert audited.generate(PROMPTS[0], **settings).token_ids != audited.generate(PROMPTS[0]).token_ids


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(chr(ord("a") + token % 26) for token in tokens)


@dataclass(frozen=True)
class TwoFaced:
    """A target that is one model in passes of one node a row, another one in wider passes."""

    narrow: TableModel
    wide: TableModel
    exact: str = "rounding"
    context_length: int | None = None
    rereads_at = None

    def begin(self, prefixes: Sequence[Sequence[int]]) -> TwoFacedSession:
        return TwoFacedSession(self, prefixes)


class TwoFacedSession:
    device = torch.device("cpu")
    ragged = False
    chains_only = False
    hidden_states = None
    finder = Finder()

    def __init__(self, model: TwoFaced, prefixes: Sequence[Sequence[int]]) -> None:
        self.exact = model.exact
        self._sessions = [face.begin(prefixes) for face in (model.narrow, model.wide)]

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        scored = [session.score(trees) for session in self._sessions]
        return scored[max(map(len, trees)) > 1]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for session in self._sessions:
            session.commit(paths)

    def exact_of(self, row: int) -> str:
        return self.exact

    def rollback(self, lengths: Sequence[int]) -> None:
        raise AssertionError("neither the loop nor the audit rolls a target back")

    def keep(self, rows: Sequence[int]) -> None:
        for session in self._sessions:
            session.keep(rows)


TABLE = TableModel.random(5)
LETTERS = [[0, 1, 2, 3], [3, 2, 1], [1, 1, 0, 2, 3]]


def audit_stub(target: Target, drafter: object = None, **settings: object) -> AuditReport:
    parts = Parts(
        target=target,
        drafter=drafter or oracle(TABLE),
        tokenizer=Letters(),
        eos_token_ids=frozenset(),
        speculation=Speculation(max_depth=3),
    )
    return audit_tokens(parts, LETTERS, GenerationConfig(**{"max_new_tokens": 33, **settings}), batch_size=2)


def rounded(size: float, exact: str = "rounding") -> TwoFaced:
    """Every score of a wide pass is off by up to ``size``, and two scores after every context nearly tie."""
    best = TABLE.table.topk(2, -1)
    table = TABLE.table.scatter(1, best.indices[:, 1:], best.values[:, :1] - size / 4)
    error = (torch.rand(table.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * size
    return TwoFaced(replace(TABLE, table=table), replace(TABLE, table=table + error), exact)


def test_a_divergence_below_the_noise_is_rounding():
    target = rounded(0.01)
    report = audit_stub(target)
    assert report.divergences
    assert report.passed, report.problems
    assert report.failures == ()
    assert report.exact == "rounding"
    assert report.largest_gap == pytest.approx(0.0025, abs=1e-6)
    assert report.rule == "passes are equal up to rounding: a divergence fails if its gap is above the noise"


def test_noise_is_how_far_other_widths_move_gaps():
    target = rounded(0.01)
    report = audit_stub(target)
    error = target.wide.table - target.narrow.table
    ranges = error.amax(-1) - error.amin(-1)
    assert report.noise.widths == (2, 4, 8)
    assert report.noise.comparisons == 3 * 99
    # What was emitted visits some of the contexts; at least one of them is among the worst half.
    assert float(ranges.median()) < report.noise.gap <= float(ranges.max()) + 1e-6
    assert report.noise.logit <= 0.01
    assert report.noise.gap <= 2 * report.noise.logit
    assert report.noise.false_bits == 0


def test_a_divergence_above_the_noise_fails_among_others_that_do_not(monkeypatch):
    wrong = FunctionDrafter(lambda request: TokenTree.chain([request.tokens[-1], *[0] * min(1, request.depth)]))
    monkeypatch.setattr(decode, "verify_each", accept_everything)
    report = audit_stub(rounded(0.01), wrong)
    assert 0 < len(report.failures) < len(report.divergences)
    assert all((each.gap > report.noise.gap) == (each in report.failures) for each in report.divergences)
    assert not report.passed
    assert report.problems == (f"{len(report.failures)} of 99 tokens are not those of plain decoding",)


def test_where_bits_are_claimed_any_divergence_and_any_difference_fails():
    report = audit_stub(rounded(0.01, "bits"))
    assert report.divergences
    assert report.failures == report.divergences
    assert report.exact == "bits"
    assert report.rule.endswith("any divergence fails")
    assert report.problems[1].startswith("passes that claim to be bit-equal differ by 0.009")


def test_bits_that_differ_fail_without_any_divergence():
    report = audit_stub(replace(rounded(0.01, "bits"), narrow=TABLE, wide=TABLE.sharpened(1 + 1e-6)))
    assert report.divergences == ()
    assert len(report.problems) == 1
    assert not report.passed


def test_passes_that_compute_another_thing_are_no_noise():
    report = audit_stub(TwoFaced(TABLE, TableModel.random(6)))
    assert report.divergences
    assert report.failures == ()  # the noise would excuse them all
    assert "which is more than rounding" in report.problems[0]
    assert not report.passed


def test_nan_logits_of_wide_passes_are_no_noise():
    wide = replace(TABLE, table=torch.full_like(TABLE.table, math.nan))
    report = audit_stub(TwoFaced(TABLE, wide), NoDrafter())  # only the passes that measure noise are wide
    assert not report.passed
    assert report.noise.gap == report.noise.logit == math.inf
    json.dumps(report.to_dict(), allow_nan=False)


@dataclass
class Watched:
    """A target that notes what each session was asked to score."""

    target: Target
    context_length: int | None = None
    rereads_at = None

    def begin(self, prefixes: Sequence[Sequence[int]]) -> object:
        session, passes = self.target.begin(prefixes), [list(map(tuple, prefixes))]
        score = session.score

        def watched(trees: Sequence[TokenTree]) -> Tensor:
            passes.append([tree.tokens for tree in trees])
            return score(trees)

        session.score = watched
        self.sessions = [*getattr(self, "sessions", []), passes]
        return session


def test_plain_decoding_is_repeated_pass_by_pass():
    stops = frozenset([2])  # the rows end at different times
    parts = Parts(
        target=Watched(TableModel.random(8)),
        drafter=NoDrafter(),
        tokenizer=Letters(),
        eos_token_ids=stops,
        speculation=Speculation(max_depth=3),
    )
    config = GenerationConfig(max_new_tokens=12)
    rows = Generation(parts, LETTERS, config).run().rows
    (plain,) = parts.target.sessions
    assert len({len(row.emitted) for row in rows}) > 1
    audit_tokens(parts, LETTERS, config, batch_size=3)
    _, speculative, again, *_ = parts.target.sessions
    assert plain == speculative == again


def test_progress_is_told_batch_by_batch():
    done = []
    audited = engine(max_new_tokens=2)
    audit(audited, PROMPTS, batch_size=2, on_batch=done.append)
    assert done == [2, 3]


def test_nan_logits_of_plain_decoding():
    narrow = replace(TABLE, table=torch.full_like(TABLE.table, math.nan))
    with pytest.raises(NumericalError, match="token 0 of prompt 0 is nan"):
        audit_stub(TwoFaced(narrow, TABLE), max_new_tokens=32)  # the last pass of speculation is a wide one too


def test_a_token_that_plain_decoding_cannot_choose_has_an_infinite_gap():
    narrow = TABLE.without(0, 1)
    report = audit_stub(TwoFaced(narrow, TABLE))
    assert report.largest_gap == math.inf
    written = report.to_dict()
    assert written["largest_gap"] is None
    json.dumps(written, allow_nan=False)
    gaps = [each["gap"] for each in written["divergences"] if each["gap"] is None or each["gap"] == math.inf]
    assert gaps
    assert set(gaps) == {None}


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (PROMPTS, {"temperature": 0.7}, "temperature is 0.7; give 0"),
        (PROMPTS, {"batch_size": 0}, "batch_size is 0; give a whole number from 1 on"),
        ([], {}, "prompts is empty; give at least one"),
        (["", "x"], {}, "is empty"),
    ],
)
def test_what_cannot_be_audited_is_refused(prompts, settings, message):
    with pytest.raises(UsageError, match=message):
        audit(engine(), prompts, **settings)
