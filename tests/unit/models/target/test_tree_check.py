"""The model is asked whether it follows a tree; here are some that do not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional

from specstream.core.tree import TokenTree
from specstream.errors import UnsupportedModelError
from specstream.models.architecture.families import Family
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target import session
from specstream.models.target.hf import HuggingFaceSession, HuggingFaceTarget
from specstream.models.target.tree_check import check_tree
from tests.lossless.families import CONFIGURATIONS, FAMILIES, VOCAB, build

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NOT_FOLLOWED = "its attention does not follow a tree's mask and positions"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("runtime", ["auto", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str, runtime: RuntimeName, dtype: torch.dtype) -> None:
    check_tree(HuggingFaceTarget(build(family, dtype), runtime=runtime))


def random_model(configuration: Any, dtype: torch.dtype) -> Any:
    model = hf.AutoModelForCausalLM.from_config(configuration).eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.copy_(torch.randn(weights.shape, generator=chance) * 0.25)
    return model.to(dtype)


BROKEN: dict[str, Callable[[], Any]] = {
    # ALiBi from the places in the cache, in a function of the module that nothing can be lent to.
    "falcon": lambda: hf.FalconConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "mpt": lambda: hf.MptConfig(vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4),
    # A window of its own, counted in places.
    "gpt_neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", BROKEN)
def test_a_family_that_does_not_follow_is_refused_before_the_first_pass(name: str, dtype: torch.dtype) -> None:
    target = HuggingFaceTarget(random_model(BROKEN[name](), dtype), runtime="eager")
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(UnsupportedModelError, match=f"^{name} cannot be a target: {NOT_FOLLOWED}: ") as refusal:
            target.begin([[1, 2, 3]])
        assert "\n" not in str(refusal.value)


@contextlib.contextmanager
def _no_hook(self: Family, positions: Tensor) -> Iterator[None]:
    yield


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_bloom_without_its_hook_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "key_positions", _no_hook)
    _refused("bloom", dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_bloom_with_positions_taken_from_places_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Family.key_positions
    in_line = lambda self, positions: hook(self, torch.arange(positions.shape[1]).expand_as(positions))  # noqa: E731
    monkeypatch.setattr(Family, "key_positions", in_line)
    _refused("bloom", dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layout_that_ignores_the_branches_is_refused(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every family notices a tree that is scored as if it were a chain."""
    layout = HuggingFaceSession._layout
    chains = lambda self, trees, *rest: layout(self, [TokenTree.chain(tree.tokens) for tree in trees], *rest)  # noqa: E731
    monkeypatch.setattr(HuggingFaceSession, "_layout", chains)
    _refused(family, dtype)


def _refused(family: str, dtype: torch.dtype, runtime: RuntimeName = "eager") -> None:
    with pytest.raises(UnsupportedModelError, match=NOT_FOLLOWED):
        check_tree(HuggingFaceTarget(build(family, dtype), runtime=runtime))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for bfloat16."""
    if not native.available():
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(native, "emulates", lambda dtype: dtype == torch.bfloat16)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
@pytest.mark.parametrize("place", [HuggingFaceSession, session], ids=["all", "mask"])
def test_where_plain_sequences_run_our_linear_layers_branches_that_are_ignored_are_refused(
    family: str, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_layout" if place is HuggingFaceSession else "block_rows"
    own, trees = getattr(place, name), 1 if place is HuggingFaceSession else 0

    def chains(*given: Any) -> Any:
        ignored = [TokenTree.chain(tree.tokens) for tree in given[trees]]
        return own(*given[:trees], ignored, *given[trees + 1 :])

    monkeypatch.setattr(place, name, chains)
    _refused(family, torch.bfloat16, "native")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("wrong", [lambda y: y.flip(-1), lambda y: y[..., :1]], ids=["other numbers", "another shape"])
def test_our_linear_layers_have_to_be_the_models(wrong: Callable[[Tensor], Tensor], monkeypatch: Any) -> None:
    linear = native.linear
    monkeypatch.setattr(native, "linear", lambda *given: lambda x: wrong(linear(*given)(x)))
    _refused("opt", torch.bfloat16, "native")


@pytest.mark.usefixtures("emulated")
def test_no_pass_over_more_than_a_token_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, linear = [], functional.linear
    record = lambda x, *given: tokens.append(x[..., 0].numel()) or linear(x, *given)  # type: ignore[func-returns-value]  # noqa: E731
    target = HuggingFaceTarget(build("llama", torch.bfloat16), runtime="native")
    monkeypatch.setattr(functional, "linear", record)
    check_tree(target)
    assert set(tokens) == {1}


@pytest.mark.parametrize(("runtime", "count"), [("eager", 3), ("packed", 3), ("native", 4)])
def test_it_runs_once_and_in_few_passes(runtime: RuntimeName, count: int) -> None:
    if runtime == "native" and not native.available():
        pytest.skip("no C++ compiler on this machine")
    model = build("llama")
    passes = []
    hook = model.register_forward_pre_hook(lambda module, arguments: passes.append(module))
    try:
        target = HuggingFaceTarget(model, runtime=runtime, exact=False)
        target.prepare()
        target.prepare()
    finally:
        hook.remove()
    assert len(passes) == count


def test_numbers_that_only_the_tree_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    score = HuggingFaceSession.score
    monkeypatch.setattr(HuggingFaceSession, "score", lambda self, trees: score(self, trees) * float("nan"))
    _refused("llama", torch.float32)


def test_logits_that_are_no_numbers_are_left_to_verification() -> None:
    model = random_model(CONFIGURATIONS["llama"](), torch.float32)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    check_tree(HuggingFaceTarget(model, runtime="eager"))


@pytest.mark.parametrize("context", [1, 2, 4, 7, 30])
def test_a_short_context_is_no_error(context: int) -> None:
    configuration = hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, n_positions=context)
    HuggingFaceTarget(random_model(configuration, torch.float32), runtime="eager").prepare()


def test_a_model_out_of_memory_is_not_called_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self: HuggingFaceSession, trees: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(HuggingFaceSession, "score", score)
    with pytest.raises(torch.OutOfMemoryError):
        check_tree(HuggingFaceTarget(build("llama"), runtime="eager"))
