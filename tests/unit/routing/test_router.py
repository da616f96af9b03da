from __future__ import annotations

import errno
import math
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Components
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import UsageError
from specstream.routing.config import router_config
from specstream.routing.drafter import RoutedDrafter
from specstream.routing.router import Router
from tests.lossless.table_model import TableModel
from tests.unit.routing.synthetic import UnboundRouter, prompts, trained, worth

PLAIN = 10.0


@pytest.fixture(scope="module")
def model():
    return trained()


def live(router, questions, log_worth, noise=0.05, seed=0):
    """Choose, measure, learn, prompt by prompt; gives what was chosen."""
    chance = random.Random(seed)
    chosen = []
    for kind, tokens in questions:
        choice = router.choose(tokens)
        speed = PLAIN * math.exp(log_worth(kind, choice.drafter) + chance.gauss(0, noise))
        router.observe(choice.features, choice.drafter, speed, plain=PLAIN)
        chosen.append((kind, choice.drafter))
    return chosen


def best_share(chosen, log_worth, names):
    best = [max(names, key=lambda name, kind=kind: log_worth(kind, name)) for kind, _ in chosen]
    return sum(name == right for (_, name), right in zip(chosen, best, strict=True)) / len(chosen)


def test_it_chooses_by_the_prompt(model):
    router = UnboundRouter(model, explore=0.0)
    for kind, tokens in prompts(20, seed=5):
        choice = router.choose(tokens)
        assert choice.drafter == ("lookup" if kind == "sums" else "draft")
        assert set(choice.expected) == {"none", "lookup", "draft"}
        assert choice.expected["none"] == 1.0
        assert choice.seconds > 0
        assert choice.drafter == max(choice.expected, key=choice.expected.get)


def test_a_table_that_is_right_is_followed_while_it_learns(model):
    chosen = live(UnboundRouter(model), prompts(100, seed=6), worth)
    assert best_share(chosen, worth, model.names) > 0.9


def wrong(kind, drafter):
    """The opposite of what was trained on: who was good at one kind is good at the other."""
    return worth("words" if kind == "sums" else "sums", drafter)


def slow(kind, drafter):
    """Here speculation never pays."""
    return 0.0 if drafter == "none" else -0.5


def underrated(kind, drafter):
    """The look-up, which the table takes to harm words, is the best for all, and the draft is worth nothing."""
    return {"none": 0.0, "lookup": 0.6, "draft": -0.4}[drafter]


@pytest.mark.parametrize("truth", [wrong, slow, underrated])
def test_a_table_that_is_wrong_is_unlearned(model, truth):
    frozen = best_share(live(UnboundRouter(model, learn=False), prompts(60, seed=7), truth), truth, model.names)
    router = UnboundRouter(model)
    live(router, prompts(150, seed=8), truth)
    chosen = live(router, prompts(60, seed=7), truth)
    assert frozen < 0.6
    assert best_share(chosen, truth, model.names) > 0.85


def test_what_changes_is_learned_anew(model):
    router = UnboundRouter(model, memory=50)
    live(router, prompts(150, seed=8), slow)
    live(router, prompts(300, seed=9), worth)
    assert best_share(live(router, prompts(60, seed=7), worth), worth, model.names) > 0.8


def test_one_disturbed_measurement_does_not_turn_the_choice(model):
    router = UnboundRouter(model, explore=0.0)
    live(router, prompts(40, seed=1), worth)
    _, tokens = prompts(2, seed=2)[0]
    before = router.choose(tokens)
    router.observe(before.features, before.drafter, PLAIN / 50, plain=PLAIN)  # the machine stood still
    assert router.choose(tokens).drafter == before.drafter


def test_settled_is_the_table_alone_and_spends_no_chance(model):
    router, other = UnboundRouter(model, seed=3), UnboundRouter(model, seed=3)
    _, tokens = prompts(2, seed=2)[0]
    first = router.choose(tokens, settled=True)
    live(router, prompts(60, seed=3), wrong)
    again = router.choose(tokens, settled=True)
    assert (first.drafter, first.expected) == (again.drafter, again.expected)
    other.choose(tokens, settled=True)
    draws = [[each.choose(tokens).drafter for _ in range(5)] for each in (other, UnboundRouter(model, seed=3))]
    assert draws[0] == draws[1]


def test_a_seed_repeats_and_global_chance_is_left_alone(model):
    before = torch.get_rng_state()
    runs = [live(UnboundRouter(model, seed=seed, doubt=0.5), prompts(40, seed=1), worth) for seed in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_takes_what_is_best_on_the_whole(model):
    router = UnboundRouter(model, explore=0.0)
    (_, sums), (_, words) = prompts(2, seed=2)
    assert router.choose_for([sums, sums, words]).drafter == "lookup"
    assert router.choose_for([sums, words, words]).drafter == "draft"
    assert router.choose_for([sums, words, words]).features.shape[0] == 3


def test_only_some_may_be_allowed(model):
    router = UnboundRouter(model, explore=0.0)
    _, sums = prompts(2, seed=2)[0]
    choice = router.choose(sums, among=["none", "draft"])
    assert choice.drafter == "none"
    assert set(choice.expected) == {"none", "draft"}
    with pytest.raises(UsageError, match=r"has 1 drafter to choose from \(draft\); give it at least two"):
        router.choose(sums, among=["draft"])
    with pytest.raises(UsageError, match="drafter 'medusa' is not the router's; give some of none, lookup, draft"):
        router.choose(sums, among=["none", "medusa"])


def test_what_cannot_be_learned_from_is_refused(model):
    router = UnboundRouter(model)
    features = router.features([1, 2, 3])
    with pytest.raises(UsageError, match="drafter 'medusa' is not the router's"):
        router.observe(features, "medusa", 3.0)
    for speed in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="give a positive number"):
            router.observe(features, "lookup", speed, plain=PLAIN)


def test_plain_decoding_that_is_measured_is_remembered(model):
    """Without ``plain=`` speeds are held against the last that is known of it."""
    router = UnboundRouter(model, explore=0.0)
    _, sums = prompts(2, seed=2)[0]
    features = router.features(sums)
    router.observe(features, "none", 100.0)
    for _ in range(10):
        router.observe(features, "lookup", 100.0 * math.exp(worth("sums", "lookup")))
    assert router.choose(sums).expected["lookup"] == pytest.approx(math.exp(worth("sums", "lookup")), rel=0.1)


def test_no_target_is_said(model):
    router = Router(model, router_config({"router": "x"}), torch.Generator())
    with pytest.raises(UsageError, match="knows no target yet; call bind"):
        router.choose([1, 2])


def test_the_state_is_kept_and_restored(model, tmp_path):
    state = tmp_path / "folder" / "state"
    router = UnboundRouter(model, state=str(state), explore=0.0)
    live(router, prompts(30, seed=1), slow)
    assert [path.name for path in state.parent.iterdir()] == ["state"]
    again = UnboundRouter(model, state=str(state), explore=0.0)
    fresh = UnboundRouter(model, explore=0.0)
    _, sums = prompts(2, seed=2)[0]
    assert again.choose(sums).expected == router.choose(sums).expected != fresh.choose(sums).expected
    assert again.choose(sums).drafter == "none"
    fresh.load_state(state)
    assert fresh.choose(sums).expected == router.choose(sums).expected


def test_a_state_of_another_router_or_a_damaged_one_is_refused_and_changes_nothing(model, tmp_path):
    state = tmp_path / "state"
    router = UnboundRouter(model, explore=0.0)
    live(router, prompts(10, seed=1), slow)
    router.save_state(state)
    with pytest.raises(UsageError, match="is not this router's: its router is"):
        UnboundRouter(trained(seed=5), state=str(state))
    _, sums = prompts(2, seed=2)[0]
    before = router.choose(sums).expected
    whole = state.read_bytes()
    damaged = [b"", b"half", whole[:-20], b"\x80\x04."]
    for content in damaged:
        state.write_bytes(content)
        with pytest.raises(
            UsageError, match=r"is not this router's: .*; give a file that save_state of this router wrote"
        ) as caught:
            router.load_state(state)
        assert "\n" not in str(caught.value)
    assert router.choose(sums).expected == before


@pytest.mark.parametrize("name", ["evidence", "weighted", "scalars"])
@pytest.mark.parametrize("damage", ["nan", "shape", "sign", "missing"])
def test_a_state_whose_numbers_cannot_be_is_refused(model, tmp_path, name, damage):
    router = UnboundRouter(model)
    live(router, prompts(10, seed=1), worth)
    tensors = router._beliefs.tensors()
    value = tensors.pop(name)
    changed = {"nan": value * float("nan"), "shape": value[:1].clone(), "sign": -100 * value.abs()}
    if damage != "missing":
        tensors[name] = changed[damage].contiguous()
    metadata = {"kind": "router state", "router": model.fingerprint, "drafters": "none, lookup, draft"}
    save_file(tensors, tmp_path / "state", metadata=metadata)
    if (name, damage) == ("weighted", "sign"):  # a mean may be anything
        return router.load_state(tmp_path / "state")
    with pytest.raises(UsageError, match="is not this router's"):
        router.load_state(tmp_path / "state")


def test_a_full_disk_costs_no_answer_and_leaves_the_state_as_it_was(model, tmp_path, monkeypatch, caplog):
    state = tmp_path / "state"
    router = UnboundRouter(model, state=str(state))
    live(router, prompts(5, seed=1), worth)
    whole = state.read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(whole[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("specstream.files.tensors_file.save_file", half)
    live(router, prompts(5, seed=2), worth)
    assert "cannot be written: No space left on device" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert state.read_bytes() == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child only saves
def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_state(model, tmp_path):
    path, chance, router = tmp_path / "state", random.Random(0), UnboundRouter(model)
    router.save_state(path)
    first = path.stat().st_mtime_ns
    for _ in range(20):
        child = os.fork()
        if not child:
            try:
                while True:
                    router.save_state(path)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        router.load_state(path)
    assert path.stat().st_mtime_ns != first


def test_a_state_that_cannot_be_written_says_so(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"path .* cannot be written"):
        UnboundRouter(model).save_state(tmp_path / "file" / "state")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"router": "x", "explor": 1}, "unknown setting 'explor'; known are doubt, explore, learn"),
        ({}, "router is missing"),
        ({"router": "x", "explore": -1}, "explore is -1"),
        ({"router": "x", "memory": 0}, "memory is 0"),
    ],
)
def test_a_wrong_configuration_is_named(config, message):
    with pytest.raises(UsageError, match=message):
        Router.from_config(config)


def test_a_configuration_may_be_a_file_or_fields(model, tmp_path):
    model.save(tmp_path / "router")
    (tmp_path / "router.yaml").write_text(f"router: {tmp_path / 'router'}\nexplore: 0\n")
    fields = {"router": str(tmp_path / "router"), "explore": 0}
    for config in (tmp_path / "router.yaml", str(tmp_path / "router.yaml"), fields, router_config(fields)):
        assert Router.from_config(config).config == router_config(fields)
    with pytest.raises(UsageError, match="config is the folder"):
        Router.from_config(tmp_path / "router")


def test_the_routed_drafter_begins_what_was_chosen(model):
    begun = []

    class Noting(LookupDrafter):
        def begin(self, prompts, samplings, session=None):
            begun.append("lookup")
            return super().begin(prompts, samplings, session)

    router = UnboundRouter(model, explore=0.0)
    drafter = RoutedDrafter({"none": NoDrafter(), "lookup": Noting()}, router)
    (_, sums), (_, words) = prompts(2, seed=2)
    drafter.begin([sums], [Sampling()], None)
    assert begun == ["lookup"]
    drafter.begin([words], [Sampling()], None)  # the draft is not there, and the look-up would harm
    assert begun == ["lookup"]
    live(router, prompts(60, seed=3), slow)
    assert drafter.begin([sums], [Sampling()], None).choice.drafter == "none"
    drawing = drafter.begin([sums], [Sampling(temperature=1.0)], None)
    assert drawing.choice.drafter == "lookup"  # the table alone: a seed repeats
    with pytest.raises(UsageError, match="1 drafter to choose from"):
        RoutedDrafter({"none": NoDrafter()}, router)


def test_a_routed_session_is_the_chosen_one_and_says_so(model):
    class Big(LookupDrafter):
        @property
        def nodes(self):
            return 9

        @property
        def components(self):
            return Components(heads=(self,))

    router = UnboundRouter(model, explore=0.0)
    drafter = RoutedDrafter({"none": NoDrafter(), "lookup": Big()}, router)
    assert drafter.members == (drafter.by_name["none"], drafter.by_name["lookup"])
    assert (drafter.nodes, drafter.components.heads, drafter.joinable) == (9, (drafter.by_name["lookup"],), False)
    (_, sums), (_, words) = prompts(2, seed=2)
    table = TableModel.random(1, vocab=max(*sums, *words) + 1, memory=1)
    first, other = (drafter.begin([prompt], [Sampling()], None) for prompt in (sums, words))
    assert (first.choice.drafter, other.choice.drafter) == ("lookup", "none")
    first.join(drafter.begin([sums], [Sampling()], None))
    assert first.choice.drafter == "lookup", "the other one's choice is its own"
    rows = start_rows([sums], [0], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=2))
    list(decode(table, drafter, rows, speculation=Speculation(max_depth=2), timings=Timings()))
    assert rows[0].choice.drafter == "lookup"
