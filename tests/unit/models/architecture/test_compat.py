"""Releases of transformers differ in names: each is met, or told apart in words that name the versions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from specstream.core.ports import Target
from specstream.drafters.lookup import LookupDrafter
from specstream.environment import TESTED
from specstream.errors import UnsupportedModelError, UsageError
from specstream.models.architecture import compat
from specstream.models.architecture.families import describe
from specstream.models.runtime import native
from specstream.models.runtime.fused import FusedLayers, FusedModel
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.decoding import run
from tests.lossless.families import CONFIGURATIONS, prompt

pytestmark = pytest.mark.usefixtures("one_thread")


class _Renaming(hf.LlamaForCausalLM):
    """A model whose forward calls the cache as another release does."""

    def _named(self, cache: Any, **rest: Any) -> Any:
        taken = compat.cache_argument(hf.LlamaForCausalLM) or ""
        return hf.LlamaForCausalLM.forward(self, **{taken: cache}, **rest)


class Newer(_Renaming):
    def forward(self, input_ids: Any = None, cache: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        return self._named(cache, input_ids=input_ids, position_ids=position_ids, **rest)


class Older(_Renaming):
    def forward(self, input_ids: Any = None, past_key_values: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        return self._named(past_key_values, input_ids=input_ids, position_ids=position_ids, **rest)


class Unknown(_Renaming):
    def forward(self, input_ids: Any = None, memory: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        return self._named(memory, input_ids=input_ids, position_ids=position_ids, **rest)


def made(kind: type[Any] = hf.LlamaForCausalLM) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(CONFIGURATIONS["llama"]()).eval()


def tokens(target: Target) -> list[int]:
    (row,) = run(target, LookupDrafter(min_ngram=1), [prompt(12)], 12)
    return row.emitted


@pytest.mark.parametrize("kind", [Newer, Older])
def test_the_cache_goes_by_the_name_that_the_forward_takes(kind: type[Any]) -> None:
    model = made(kind)
    assert compat.cache_argument(model) == ("cache" if kind is Newer else "past_key_values")
    assert tokens(HuggingFaceTarget(model)) == tokens(HuggingFaceTarget(made()))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_layers_forward_finds_the_cache_under_either_name(name: str) -> None:
    assert compat.cache_among({name: "it", "use_cache": True}) == "it"


def test_a_name_of_a_release_to_come_is_refused_with_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.transformers, "__version__", "5.31.0")
    with pytest.raises(UnsupportedModelError) as refused:
        describe(made(Unknown))
    low, high = TESTED["transformers"]
    for part in ("transformers 5.31.0", low, high, "pip install 'transformers>="):
        assert part in str(refused.value)
    assert "not a causal language model" not in str(refused.value)


def test_the_same_name_in_a_tested_release_is_the_models_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.transformers, "__version__", TESTED["transformers"][1] + ".1")
    with pytest.raises(UnsupportedModelError, match="not a causal language model with a key-value cache"):
        describe(made(Unknown))


@pytest.mark.parametrize(
    ("version", "tested"),
    [("5.16.9", False), ("5.17.0", True), ("5.24.2", True), ("5.25.0.dev0", False), ("6.0.0", False)],
)
def test_what_is_tested_goes_by_the_minor_release(version: str, tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.transformers, "__version__", version)
    assert compat.is_tested() is tested


def test_layers_that_are_called_otherwise_run_eagerly_and_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip("needs our kernels")
    expected = tokens(HuggingFaceTarget(made(), runtime="eager"))
    compat.warn_once.cache_clear()

    def renamed(self: FusedLayers, *given: Any, **named: Any) -> Any:
        raise TypeError("missing 'position_embeddings'")

    monkeypatch.setattr(FusedLayers, "__call__", renamed)
    monkeypatch.setattr(FusedModel, "knows", staticmethod(lambda model: False))
    monkeypatch.setenv("SPECSTREAM_NO_SELFTEST_CACHE", "1")
    target = HuggingFaceTarget(made())
    with pytest.warns(UserWarning, match=r"runtime native does not fit .* runs eagerly$") as warned:
        target.prepare()
        HuggingFaceTarget(made()).prepare()
    assert len(warned) == 1
    assert target.runtime.name == "eager"
    assert tokens(target) == expected
    with pytest.raises(UnsupportedModelError):  # who asked for it by name hears that it does not work
        HuggingFaceTarget(made(), runtime="native").prepare()


def test_where_the_attention_is_named_elsewhere_the_models_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.warn_once.cache_clear()
    monkeypatch.setattr(compat, "is_tested", lambda: False)
    layer = SimpleNamespace(layer_idx=0, config=SimpleNamespace())
    with pytest.warns(UserWarning, match=r"its own attention runs; transformers"):
        assert compat.attention_configs(SimpleNamespace(modules=lambda: [layer])) == {}


@pytest.mark.parametrize(
    ("package", "release"),
    [(compat.transformers, "4.57.1"), (compat.transformers, "5.16.1"), (torch, "2.10.0+cpu")],
    ids=["4", "5.16", "torch"],
)
def test_a_release_below_the_range_is_refused_in_one_sentence(
    package: Any, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "__version__", release)
    low, high = TESTED[package.__name__]
    with pytest.raises(UsageError) as refused:
        HuggingFaceTarget(made())
    for part in (
        f"{package.__name__} {release} is installed",
        f"{low} to {high}",
        f"pip install '{package.__name__}>=",
    ):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
