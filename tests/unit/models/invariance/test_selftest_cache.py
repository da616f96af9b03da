"""What the self-test found before is believed, and only that."""

from __future__ import annotations

import json
from functools import partial, wraps
from types import MethodType

import pytest
import torch
from transformers.models.llama import modeling_llama

from specstream.environment import GENERIC
from specstream.errors import UnsupportedModelError
from specstream.models.cache import STEP
from specstream.models.invariance import selftest_cache
from specstream.models.invariance.selftest_cache import SelfTestCache, cache_of
from specstream.models.invariance.widths import Exactness
from specstream.models.target import hf
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import build
from tests.unit.models.invariance.test_widths import LARGE, VOCAB, FakeModel, Kernel, widest


def exactness(path, kernel: Kernel, *, one_width: bool = False) -> tuple[Exactness, FakeModel]:
    model = FakeModel(kernel)
    found = Exactness(
        model.begin,
        VOCAB,
        None,
        dtype=torch.bfloat16,
        activations=LARGE,
        one_width=one_width,
        cache=lambda: SelfTestCache(path),
    )
    found.calibrate()
    return found, model


def unlike(rows: int, width: int, blocks: int, before: int) -> int:
    return width


@pytest.mark.parametrize(("kernel", "one_width"), [(widest(1, 4, 24), False), (unlike, False), (unlike, True)])
def test_who_starts_again_gets_the_same_answers_without_a_pass(tmp_path, kernel, one_width):
    path = tmp_path / "deep" / "known.json"
    first, _ = exactness(path, kernel, one_width=one_width)
    shapes = [(rows, nodes, 30, STEP) for rows in (1, 2) for nodes in (1, 3, 8, 20, 24)]
    answers = [(first.width(*shape), first.branches(1, 8, STEP)) for shape in shapes]

    again, model = exactness(path, kernel, one_width=one_width)
    assert [(again.width(*shape), again.branches(1, 8, STEP)) for shape in shapes] == answers
    assert again.base == first.base
    assert model.passes == []
    assert not [each for each in path.parent.iterdir() if each != path], "nothing is left lying about"


def test_what_is_not_known_is_still_tried(tmp_path):
    path = tmp_path / "known.json"
    exactness(path, widest(1, 4, 24))
    again, model = exactness(path, widest(1, 4, 24))
    assert again.width(1, 16, 30, STEP) == (16, True)
    assert model.passes
    assert again.width(1, 20, 30, STEP) == (20, False)


def test_two_processes_keep_what_both_found(tmp_path):
    one, other = SelfTestCache(tmp_path / "known.json"), SelfTestCache(tmp_path / "known.json")
    one.keep("a", 4)
    other.keep("b", True)
    assert (SelfTestCache(tmp_path / "known.json").get("a"), SelfTestCache(tmp_path / "known.json").get("b")) == (4, 1)


def test_seconds_are_kept_as_they_were_measured(tmp_path):
    path = tmp_path / "known.json"
    measured = {(1, 8, 64): 0.1 + 0.2, (4, 32, 1024): 2.0, (1, 1, 64): 1e-7}
    first = SelfTestCache(path)
    first.keep_seconds("passes", measured)
    first.keep("passes of rows", 5)
    first.keep_seconds("passes", {(1, 1, 64): 0.5})
    again = SelfTestCache(path)
    assert again.seconds("passes") == {**measured, (1, 1, 64): 0.5} == first.seconds("passes")
    assert (again.get("passes of rows"), again.seconds("passes of")) == (5, {})
    assert again.get("passes: 4 32 1024") is None, "seconds are no whole number"


def test_without_a_file_answers_live_as_long_as_the_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = SelfTestCache(None)
    found.keep("base", 4)
    found.keep_seconds("passes", {(1,): 0.5})
    assert (found.get("base"), found.seconds("passes")) == (4, {(1,): 0.5})
    assert not list(tmp_path.iterdir())
    assert SelfTestCache(None).get("base") is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"base": NaN}', json.dumps({"base": "four"})])
def test_a_damaged_file_is_as_good_as_none(tmp_path, text):
    (tmp_path / "known.json").write_text(text)
    assert SelfTestCache(tmp_path / "known.json").get("base") is None


def test_where_nothing_can_be_written_all_goes_on(tmp_path):
    (tmp_path / "file").write_text("no folder")
    found, _ = exactness(tmp_path / "file" / "known.json", widest(1, 4))
    assert found.base == 4


def file_of(model, runtime="eager"):
    found = cache_of(model, runtime)
    assert found is not None
    return found._path


def test_the_file_is_named_by_all_that_bits_depend_on(tmp_path, monkeypatch):
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = build("llama", torch.bfloat16)
    found = {"own": file_of(model)}
    assert found["own"] == file_of(build("llama", torch.bfloat16))
    found |= {"runtime": file_of(model, "native"), "dtype": file_of(build("llama"))}
    found |= {
        "family": file_of(build("qwen2", torch.bfloat16)),
        "weights": file_of(build("llama", torch.bfloat16, noise=0.1)),
    }
    made_with = selftest_cache.provenance("cpu", "torch.bfloat16")
    for name, changed in {
        "threads": ("provenance", lambda *of: {**made_with, "threads": "another"}),
        "torch": ("provenance", lambda *of: {**made_with, "torch": "another"}),
        "processor": ("processor", lambda: "another"),
        "sources": ("_sources", lambda: "changed"),
        "level": ("level", lambda: GENERIC),
        "kernels": ("_kernels", lambda runtime: "another"),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(selftest_cache, *changed)
            found[name] = file_of(model)
    # A word that no machine can have set already.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")
    found["libraries"] = file_of(model)
    alike = {name for name, file in found.items() if list(found.values()).count(file) > 1}
    assert not alike


def test_the_file_is_named_by_the_code_of_the_forward(tmp_path, monkeypatch):
    """A class that was patched once must not speak for the one that is not."""
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = build.__wrapped__("llama", torch.bfloat16)
    norm, rotate, own = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb, file_of(model)
    found = [own]
    for where, name, patch in [
        (modeling_llama.LlamaRMSNorm, "forward", lambda self, x: norm(self, x) * 2),
        (modeling_llama.LlamaRMSNorm, "forward", lambda self, x: norm(self, x) * 3),
        (modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: rotate(k, q, *rest)),
        (modeling_llama, "apply_rotary_pos_emb", wraps(rotate)(lambda q, k, *rest: rotate(q, q, *rest))),
        (model.model.norm, "forward", lambda x: x),
        (model.model.norm, "forward", partial(norm, model.model.norm)),
        (model.model.norm, "forward", MethodType(lambda self, x: -x, model.model.norm)),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(where, name, patch)
            found.append(file_of(model))
    for by in (1, 2):
        monkeypatch.setattr(model.model.norm, "forward", adding(by))
        found.append(file_of(model))
        monkeypatch.setattr(model.model.norm, "forward", partial(torch.add, by))
        found.append(file_of(model))
    monkeypatch.delattr(model.model.norm, "forward")
    hook = model.model.norm.register_forward_hook(lambda module, given, made: made + 1)
    found.append(file_of(model))
    hook.remove()
    assert len(set(found)) == len(found)
    hook = model.model.norm.register_forward_hook(Watcher())
    assert cache_of(model, "eager") is None, "what it does may stand in its attributes"
    hook.remove()
    model(torch.tensor([[1]]), output_hidden_states=True)
    assert file_of(model) == own, "what transformers hooks by itself is no patch"


def test_forwards_that_close_over_each_other_have_a_name_too(tmp_path, monkeypatch):
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = build.__wrapped__("llama", torch.bfloat16)

    def outer(x):
        return inner(x)

    def inner(x):
        return outer(x)

    model.model.norm.forward = outer
    assert file_of(model) == file_of(model)


def adding(by):
    return lambda x: x + by


class Watcher:
    def __call__(self, module, given, made):
        return made


def test_a_model_that_was_refused_is_refused_again(tmp_path, monkeypatch):
    def refuse(target):
        raise UnsupportedModelError("no tree")

    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hf, "check_tree", refuse)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="no tree"):
            HuggingFaceTarget(build("llama", torch.bfloat16), runtime="eager").prepare()


def test_a_target_remembers(tmp_path, monkeypatch):
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = build("llama", torch.bfloat16)
    first = HuggingFaceTarget(model, runtime="eager")
    first.prepare(nodes=4)
    monkeypatch.setattr(hf, "check_tree", lambda target: pytest.fail("asked again"))
    monkeypatch.setattr(Exactness, "_agrees", lambda *arguments, **settings: pytest.fail("asked again"))
    monkeypatch.setattr(Exactness, "_find", lambda *arguments: pytest.fail("asked again"))
    again = HuggingFaceTarget(model, runtime="eager")
    again.prepare(nodes=4)
    assert again.exactness.base == first.exactness.base
    monkeypatch.setenv(selftest_cache.SWITCH, "1")
    assert cache_of(model, "eager") is None
