"""Lookahead: the window's iterations, the n-grams they make, and what is drafted of them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specstream.core.decode import decode
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.ports import DraftRequest, Verdict
from specstream.core.rows import start_rows
from specstream.core.sampling import NO_CHOICE, Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.lookahead import LookaheadDrafter, Pool
from specstream.drafters.none import NoDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableModel

PROMPT = [*range(10, 19)]
"""With W = N = 3, it fills the window: columns (13, 14), (15, 16), (17, 18)."""


def request(tokens, depth=5, offer=None):
    return DraftRequest(tokens=tokens, depth=depth, generator=torch.Generator(), offer=offer)


def start(prompt=PROMPT, **options):
    drafter = LookaheadDrafter(**{"window": 3, "ngram": 3, "from_text": False, **options})
    return drafter.begin([prompt], [Sampling()])


def paths(tree):
    """The drafted paths, from the root to each leaf."""
    ends = [node for node in range(1, len(tree)) if not tree.children[node]]
    return {tuple(tree.tokens[node] for node in tree.path(end)[1:]) for end in ends}


def iterate(session, tokens, choose, depth=5):
    """One round: ``choose`` maps the tokens on the path to a node to what the target would say there."""
    (tree,) = session.propose([request(tokens, depth)])
    choices = [choose(tuple(tree.tokens[at] for at in tree.path(node))) for node in range(len(tree))]
    session.observe([Verdict(path=(0,), tokens=(choices[0],), choices=lambda: choices)])
    return tree


def test_the_window_is_a_comb_below_the_root():
    (tree,) = start().propose([request(PROMPT)])
    # Column i begins at position i, its tokens see the chain up to there, and the chain is the columns' first tokens.
    assert paths(tree) == {(14,), (15, 16), (15, 17, 18)}
    assert tree.tokens[0] == PROMPT[-1]


def test_an_iteration_completes_an_ngram_of_every_column_and_shifts_it():
    session = start()
    answers = {(18, 14): 1, (18, 15, 16): 2, (18, 15, 17, 18): 3}
    iterate(session, PROMPT, lambda path: answers.get(path, 0))
    # The n-grams were (18, 14, 1), (15, 16, 2) and (17, 18, 3); what is left of the columns, (14,) 1, 16 2 and 18 3.
    assert paths(start_tree(session, [*PROMPT, 40])) == {(1,), (16, 2), (16, 18, 3)}
    for first, continuation in ((18, (14, 1)), (15, (16, 2)), (17, (18, 3))):
        assert continuation in paths(start_tree(session, [*PROMPT, first]))


def start_tree(session, tokens, depth=5):
    (tree,) = session.propose([request(tokens, depth)])
    return tree


def test_what_the_target_says_in_the_end_is_what_jacobi_iterations_converge_to():
    """Against a target that counts, guesses are right from the second iteration on: each column counts."""
    session, tokens = start([5, 9, 1]), [5, 9, 1]
    for _ in range(3):
        tree = iterate(session, tokens, lambda path: path[-1] + 1)
        tokens.append(tokens[-1] + 1)
    for path in paths(tree):
        assert all(later == earlier + 1 for earlier, later in pairwise(path[1:]))


def test_the_newest_ngram_is_the_first_path():
    session = start(from_text=True, prompt=[1, 2, 3, 1, 4, 5, 1])
    (tree,) = session.propose([request([1, 2, 3, 1, 4, 5, 1])])
    assert tree.tokens[1:3] == (4, 5)
    assert {(2, 3), (4, 5)} <= paths(tree)


def test_a_pool_keeps_the_newest_of_each_first_token():
    pool = Pool(3, 2)
    pool.read([1, 2, 3, 1, 4, 5, 1, 6])
    assert pool.after(1) == [(4, 5), (2, 3)]
    pool.read([1, 2, 3, 1, 4, 5, 1, 6, 7])
    assert pool.after(1) == [(6, 7), (4, 5)]
    pool.add(1, (4, 5))
    assert pool.after(1) == [(4, 5), (6, 7)]
    assert pool.after(99) == []


def test_the_text_is_read_only_if_wanted():
    tokens = [1, 2, 3, 1]
    assert (2, 3) not in paths(start_tree(start(tokens, window=1), tokens))
    assert (2, 3) in paths(start_tree(start(tokens, window=1, from_text=True), tokens))


@pytest.mark.parametrize(("depth", "columns"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_columns_too_deep_for_a_round_wait(depth, columns):
    session = start()
    before = [list(column) for column in session._rows[0].columns]
    tree = iterate(session, PROMPT, lambda path: 77, depth)
    assert max(tree.depths) <= depth
    changed = [now != then for now, then in zip(session._rows[0].columns, before, strict=True)]
    assert changed == [at < columns for at in range(3)]


def test_the_offer_is_the_window_at_any_depth_and_the_candidates_as_deep_as_taken():
    tokens = [1, 2, 3, 1, 4, 5, 1]
    session = start(tokens, from_text=True)
    ((offer,),) = session.offers([request(tokens)])
    for depth in range(1, offer.depth + 1):
        (tree,) = session.propose([request(tokens, depth, offer)])
        assert tree.drafted == offer.beside + sum(offer.per_depth[:depth])
        assert set(session._rows[0]._scored) == {0, 1, 2}
    assert paths(tree) == paths(offer.tree)


def test_nothing_is_offered_that_could_not_be_emitted():
    assert start().offers([request(PROMPT, 0)]) == [[]]
    (tree,) = start().propose([request(PROMPT, 0)])
    assert len(tree) == 1


def test_a_round_that_scored_no_window_changes_nothing():
    session = start()
    before = [list(column) for column in session._rows[0].columns]
    session.propose([request(PROMPT, 0)])
    session.observe([Verdict(path=(0,), tokens=(3,), choices=lambda: pytest.fail("nobody asked"))])
    assert session._rows[0].columns == before


def test_logits_without_a_choice_make_no_ngram():
    session = start()
    before = [list(column) for column in session._rows[0].columns]
    iterate(session, PROMPT, lambda path: NO_CHOICE)
    assert session._rows[0].columns == before


def test_rows_that_leave_take_their_windows_along():
    session = LookaheadDrafter(window=3, ngram=3).begin([PROMPT, PROMPT[::-1], PROMPT[3:]], [Sampling()] * 3)
    rows = list(session._rows)
    session.keep([2, 0])
    assert session._rows == [rows[2], rows[0]]


@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    window=st.integers(1, 6),
    ngram=st.integers(2, 5),
    depth=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_any_window_fits_any_depth(prompt, window, ngram, depth):
    """Few tokens, so that columns share their prefixes."""
    session = start(prompt, window=window, ngram=ngram, from_text=True)
    tokens = list(prompt)
    for step in range(4):
        ((*offers,),) = session.offers([request(tokens, depth)])
        tree = iterate(session, tokens, lambda path, step=step: (path[-1] + step) % 4, depth)
        assert max(tree.depths) <= depth
        assert all(tree.drafted == offer.beside + sum(offer.per_depth) for offer in offers)
        tokens.append(step)


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("ngram", 1), ("guesses", 0)])
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}; give"):
        LookaheadDrafter(**{name: value})


MODEL = TableModel.random(3, vocab=12, memory=1, scale=3.0)
"""What it says next depends on one token: n-grams of any place hold everywhere."""


def generate(drafter, controller=None, tokens=60):
    rows = start_rows([[1, 2]], [0], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=tokens))
    speculation = Speculation(max_depth=5, controller=controller)
    for _ in decode(
        MODEL,
        drafter,
        rows,
        speculation=speculation,
        timings=Timings(),
    ):
        pass
    return rows[0]


def test_the_window_alone_finds_what_the_target_will_say():
    row = generate(LookaheadDrafter(from_text=False))
    assert row.emitted == generate(NoDrafter()).emitted
    assert row.stats.mean_accepted_length > 2


def test_it_can_be_turned_down(monkeypatch):
    """Where wide passes are dear, the controller stops paying for the window."""
    controller = Controller()
    observe = controller.observe

    def priced(offers, requests, trees, verdicts, seconds, *, deciding, ragged):
        of_the_pass = float(max(map(len, trees)))
        observe(offers, requests, trees, verdicts, (0.0, of_the_pass), deciding=0.0, ragged=ragged)

    monkeypatch.setattr(controller, "observe", priced)
    row = generate(LookaheadDrafter(), controller, tokens=100)
    assert row.emitted == generate(NoDrafter(), tokens=100).emitted
    wide = row.stats.drafted / 12  # rounds with a window
    assert wide < 4
