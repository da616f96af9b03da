"""What an engine is made of: the target, the drafter and how far to speculate, built from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from specstream.config import DEEPEST, UNMEASURED, EngineConfig, with_settings
from specstream.core.head_drafter import HeadDrafter
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.core.prefix_cache import PrefixCache
from specstream.core.suffix_index import SuffixIndex
from specstream.core.tree import TokenTree
from specstream.drafters.block import BlockDrafter
from specstream.drafters.dflash import DFlashDrafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.eagle import EagleDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.recycling import RecyclingDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.engine.choices import SELF, check_choice, defaults_of, self_quantization, unused
from specstream.engine.generation import Parts
from specstream.engine.inventory import shallower
from specstream.engine.memory import Memory
from specstream.engine.text import check_tokenizer
from specstream.errors import UnsupportedModelError, UsageError, VocabularyMismatchError, shown
from specstream.heads.block import BlockHead
from specstream.heads.dflash import DFlashHead
from specstream.heads.eagle import EagleHead
from specstream.heads.folder import kind_of
from specstream.heads.medusa import MedusaHeads
from specstream.heads.shipped import left_out, shipped_for
from specstream.heads.streams import Streams
from specstream.models.architecture.blocks import called, source_of, unquantised
from specstream.models.architecture.checkpoint import checkpoint_rules
from specstream.models.architecture.compat import quantised_by, wrapper_of
from specstream.models.architecture.families import describe, require_model
from specstream.models.hub.load import check_draft_place, check_place
from specstream.models.hub.vocabulary import another_vocabulary, load_draft
from specstream.models.runtime.capabilities import Quantization
from specstream.models.runtime.runtime import draft_quantization, lend_kernels
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from specstream.routing.config import DrafterSpec
from specstream.routing.drafter import RoutedDrafter
from specstream.routing.router import Router

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class LoadedDraft:
    """A draft model that several configurations draft with.

    Attributes:
        target: the draft, as a target of its own.
        part: the tokens that it says, if not all.
    """

    target: HuggingFaceTarget
    part: Tensor | None = None


class SharedDrafts:
    """Draft models of one target for several configurations, each loaded once for each quantisation."""

    def __init__(self, target: HuggingFaceTarget, tokenizer: Any) -> None:
        self._target, self._tokenizer = target, tokenizer
        self._loaded: dict[tuple[str, str], LoadedDraft] = {}

    def get(self, name: str, config: EngineConfig, model: Any = None) -> LoadedDraft:
        """The draft of that name; ``model`` if it is at hand. The errors are those of ``build_parts``."""
        key = (name, config.draft_quantization)
        if key not in self._loaded:
            draft = name if model is None else model
            self._loaded[key] = _loaded(self._target, self._tokenizer, draft, config)
        return self._loaded[key]


def make_target(model: Any, config: EngineConfig) -> HuggingFaceTarget:
    """The model as a configuration says that its passes run.

    Raises:
        UsageError: a runtime or a quantisation that does not run here, or a quantisation of a quantised model.
        UnsupportedModelError: a model that cannot be a target, with the reason.
    """
    if config.quantization != "none":
        refuse_quantised_twice(_source(model), "quantization", config.quantization, model_name(model))
    return HuggingFaceTarget(
        model,
        runtime=config.runtime,
        exact=config.exact == "bits",
        quantization=config.quantization,
        head="int8" if config.quantization == "int4" else None,  # four bits there cost small models most
    )


def refuse_quantised_twice(source: str | None, setting: str, value: str, name: str) -> None:
    """Refuse to quantise a model that is quantised.

    Args:
        source: how it is, None where it is not.
        setting: that asks for it.
        value: of the setting.
        name: of the model.

    Raises:
        UsageError: it is.
    """
    if source is not None:
        raise UsageError(
            f"{setting} is {value!r} and {name} is {called(source)}, which has its own; leave it out, or give "
            f"{unquantised(source)}"
        )


def _source(model: Any) -> str | None:
    """How a model's layers are quantised."""
    return source_of(model) or quantised_by(model)


def build_parts(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Parts:
    """What a configuration generates with.

    Args:
        target: the model whose output it is.
        tokenizer: its tokenizer, None where no text is needed.
        draft: a model, the name of one, one that is loaded, or None.
        config: the rest.

    Raises:
        UsageError: a drafter and a draft that do not go together.
        VocabularyMismatchError: a draft of another vocabulary.
    """
    check_choice(config, draft)
    if tokenizer is not None:
        check_tokenizer(tokenizer, target.vocab_size)
    revision = target.revision
    loaded = isinstance(draft, str) and not draft.startswith(SELF)  # dtype is of the draft that is loaded then
    check_place(target.model, config.device, "auto" if loaded else config.dtype)
    heads = _heads_folder(target.model, draft, config)
    memory = _memory(target, tokenizer, draft, config)
    index = None if memory is None else memory.index
    if config.drafter == "router":
        drafter: Drafter = _routed(target, tokenizer, draft, config, index)
    else:
        drafter = _combined(_Sources(target, tokenizer, index), draft, heads, config)
    return Parts(
        memory=memory,
        prefixes=PrefixCache(int(config.prefix_cache_gb * GB)) if config.prefix_cache_gb else None,
        target=target if config.use_cache else UncachedTarget(target),
        drafter=drafter,
        heads=heads,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(target.model, tokenizer),
        checkpoint=checkpoint_rules(target.model),
        vocab_size=target.vocab_size,
        left_out=left_out_of(target.model, draft, drafter, config),
        revision=revision,
        speculation=Speculation(
            max_depth=_depth(config, DEEPEST),
            unmeasured_depth=_depth(config, UNMEASURED),
            unmeasured_steps=config.drafter != "auto" or draft is not None or config.heads is not None,
            acceptance_threshold=config.acceptance_threshold,
            controller=Controller() if config.adaptive else None,
        ),
    )


def _memory(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Memory | None:
    """Of answers, where there is to be one and a drafter copies from it."""
    if config.memory is False or "memory" in unused(config, draft):
        return None
    return Memory(None if config.memory is True else config.memory, tokenizer, _vocab_size(target.model))


def renewed(parts: Parts, target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Parts:
    """The same parts, or others where the target's model has become another one: heads are of a model, the rest is not.

    Of another vocabulary nothing stays as it is, and the tokenizer may not fit any more.

    The arguments and the errors are those of ``build_parts``.
    """
    if (revision := target.refresh()) == parts.revision:
        return parts
    if parts.heads is None and config.drafter != "router" and parts.vocab_size == target.vocab_size:
        return replace(parts, revision=revision)
    return build_parts(target, tokenizer, draft, config)


def _heads_folder(model: Any, draft: Any, config: EngineConfig) -> str | None:
    """The heads to draft with: those that were given, else streams that are shipped for this very model."""
    wanted = config.drafter == "streams" or (config.drafter == "auto" and draft is None and config.adaptive)
    if config.heads is not None or not wanted:
        return config.heads
    return shipped_for(model, "streams")


def left_out_of(model: Any, draft: Any, drafter: Drafter, config: EngineConfig) -> str | None:
    """What could draft, or was asked to, and does not, and why: shipped streams, and depths that nothing reaches.

    Args:
        model: the target's.
        draft: as it was given.
        drafter: that was made of it.
        config: the rest.
    """
    found = list[str]()
    if config.drafter == "auto" and draft is None and config.heads is None:
        if not config.adaptive and (unused_heads := shipped_for(model, "streams")) is not None:
            found.append(f"{Path(unused_heads).name} is not used at a fixed draft depth; drafter='streams' takes it")
        elif (why := left_out(model, "streams")) is not None:
            found.append(why)
    if (depth := _depth(config, 0)) > 0:
        found += shallower(drafter, "gamma" if depth == config.gamma else "max_speculation_depth", depth)
    return "; ".join(found) or None


def _routed(
    target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig, memory: SuffixIndex | None
) -> RoutedDrafter:
    router = Router.from_config({"router": config.router, "state": config.router_state})
    router.bind(target.model, tokenizer)
    return RoutedDrafter(build_drafters(target, tokenizer, router.drafters, config, draft, memory), router)


def build_drafters(
    target: HuggingFaceTarget,
    tokenizer: Any,
    specs: Mapping[str, DrafterSpec],
    config: EngineConfig,
    draft: Any = None,
    memory: SuffixIndex | None = None,
) -> dict[str, Drafter]:
    """Drafters of one target, as a router chooses from them. What two of them draft with is there once.

    Args:
        target: the model whose output it is.
        tokenizer: its tokenizer, None where no text is needed.
        specs: what to build, by name.
        config: the settings that they have in common.
        draft: in place of the draft models that ``specs`` names: one for all, or a mapping by the drafters' names.
        memory: of answers, to copy from.

    Raises:
        UsageError: a drafter that there is none of, or a drafter and a draft that do not go together.
    """
    sources, drafters = _Sources(target, tokenizer, memory), dict[str, Drafter]()
    for name, spec in specs.items():
        own = config_of(spec, config)
        given = draft.get(name) if isinstance(draft, Mapping) else draft
        model = given if given is not None and spec.draft is not None else spec.draft
        check_choice(own, model)
        drafters[name] = _combined(sources, model, _heads_folder(target.model, model, own), own, name)
    return drafters


def config_of(spec: DrafterSpec, config: EngineConfig) -> EngineConfig:
    """The settings of one of a router's drafters.

    Raises:
        UsageError: there is no such drafter, or it has no draft model and a ``gamma``.
    """
    if spec.drafter == "router":
        raise UsageError("one of the router's drafters is 'router'; give another drafter")
    if spec.gamma is not None and spec.draft is None:
        raise UsageError(
            f"gamma is {spec.gamma} of the router's drafter {spec.drafter!r}, which has no draft; give it to the engine"
        )
    kind = {"drafter": spec.drafter, "heads": spec.heads, "draft_quantization": spec.draft_quantization}
    own = with_settings(config, {**kind, "gamma": spec.gamma or config.gamma, "router": None, "router_state": None})
    return with_settings(own, defaults_of(option for option in unused(own, spec.draft) if option not in kind))


class _Sources:
    """What drafts with draft models and with heads, each made once, and the memory that all copy from."""

    def __init__(self, target: HuggingFaceTarget, tokenizer: Any, memory: SuffixIndex | None = None) -> None:
        self._target, self._tokenizer, self.memory = target, tokenizer, memory
        self._made: dict[Any, Drafter] = {}

    def get(self, draft: Any, heads: str | None, config: EngineConfig, name: str) -> Drafter:
        """That of a draft model, if there is one, or of the heads; ``name`` tells the draft from others."""
        key = (draft if isinstance(draft, str) else id(draft), heads, config.gamma, config.draft_quantization)
        if key not in self._made:
            self._made[key] = (
                _headed(self._target, heads, config)
                if draft is None
                else _draft_model(self._target, self._tokenizer, draft, config, name)
            )
        return self._made[key]


def _combined(
    sources: _Sources, draft: Any, heads: str | None, config: EngineConfig, own_name: str = "draft_model"
) -> Drafter:
    """A drafter by its name, of what drafts with the draft model or the heads, made where it is needed."""
    name = config.drafter
    if name == "none":
        return NoDrafter()
    if name == "lookahead":
        return LookaheadDrafter(
            window=config.lookahead_window, ngram=config.lookahead_ngram, guesses=config.lookahead_guesses
        )
    lookup = LookupDrafter(branches=config.branches, memory=sources.memory)
    if name == "recycling":
        return MixedDrafter(lookup, RecyclingDrafter(), name=name)
    if name == "lookup" or (name == "auto" and draft is None and heads is None):
        return lookup
    own = sources.get(draft, heads, config, own_name)
    if name == "mixed":
        return MixedDrafter(lookup, own)
    found = name == "auto" and heads != config.heads
    return MixedDrafter(lookup, own, name=f"{lookup.name}+{own.name}") if found else own


def _headed(target: HuggingFaceTarget, folder: str | None, config: EngineConfig) -> HeadDrafter:
    """What drafts with the heads in a folder."""
    if folder is None:
        raise UsageError(
            f"drafter is {config.drafter!r} and there are no heads for this model; give heads=, a folder of some"
        )
    if (kind := kind_of(folder)) == "block":
        block = BlockHead.from_pretrained(folder, target.model)
        return BlockDrafter(block, rates=block.details.get("rates"))
    if kind == "eagle3":
        return EagleDrafter(EagleHead.from_pretrained(folder, target.model))
    if kind == "dflash":
        return DFlashDrafter(DFlashHead.from_pretrained(folder, target.model))
    if kind == "medusa":
        heads = MedusaHeads.from_pretrained(folder, target.model)
        lend_kernels(heads, target.runtime.kind)
        return MedusaDrafter(heads)
    streams = Streams.from_pretrained(folder, target.model)
    if config.pruning is not None and not streams.config.pruning_rank:
        raise UsageError(f"pruning is {config.pruning} and {folder!r} has no early exit; give no pruning")
    if target.runtime.kind == "native":
        _warm_up(streams, target)
    return StreamsDrafter(streams, rates=streams.details.get("rates"), pruning=config.pruning)


def _warm_up(streams: Streams, target: HuggingFaceTarget) -> None:
    """Draft once: our kernels copy weights for it, and the first generation would be timed with that."""
    session = target.begin_unpadded([[0]])
    session.tap([streams.first])
    session.score([TokenTree.chain([0])])
    session.commit([(0,)])
    streams.candidates(session, [(0, 0)], [0], 1)


def _draft_model(
    target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig, name: str
) -> DraftModelDrafter:
    loaded = _loaded(target, tokenizer, draft, config)
    return DraftModelDrafter(
        loaded.target,
        gamma=_depth(config, DEEPEST),
        branches=config.branches,
        vocab_size=_vocab_size(target.model),
        part=loaded.part,
        from_cache=loaded.target.begin_from_cache if loaded.target.model is target.model else None,
        name=name,
    )


def _loaded(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> LoadedDraft:
    """The draft as a target of its own. A model that drafts for itself shares everything, the bits too."""
    if isinstance(draft, LoadedDraft):
        return draft
    quantization, named = config.draft_quantization, isinstance(draft, str)
    if named and draft.startswith(SELF):
        draft, quantization, named = target.model, self_quantization(draft), False
    if draft is target.model:
        if quantization == "auto":
            quantization = "none"
        if quantization == "none":
            return LoadedDraft(target=target)
        refuse_quantised_twice(_source(draft), "draft_model", f"{SELF}{quantization}", model_name(draft))
        own = HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization)
        return LoadedDraft(target=own)
    draft, draft_tokenizer, part = _draft_given(target, tokenizer, draft, config)
    try:
        describe(draft)  # before its vocabulary is asked for
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"draft_model cannot draft: {error}") from None
    _check_vocabulary(target.model, tokenizer, draft, draft_tokenizer)
    if part is not None and _vocab_size(draft) != _vocab_size(target.model):
        raise VocabularyMismatchError(
            f"the draft {model_name(draft)} says some of {_vocab_size(draft)} tokens and the target has "
            f"{_vocab_size(target.model)}; make one of {model_name(target.model)}: specstream make-draft"
        )
    quantization = _quantization_of(draft, config, named)
    drafting = HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization)
    drafting.prepare()  # here, as its first generation would be timed with it
    if named:  # nobody else has it
        drafting.release()
    return LoadedDraft(target=drafting, part=part)


def _quantization_of(draft: Any, config: EngineConfig, named: bool) -> Quantization:
    """How a draft's weights are read; nobody else has one that was given by name, so that the fastest way is taken.

    Blocks may be rounded once more: that changes what is drafted, never what is emitted.
    """
    wanted = config.draft_quantization
    if wanted == "auto":
        return draft_quantization(draft, config.runtime) if named else "none"
    if wanted != "none" and source_of(draft) is None:
        refuse_quantised_twice(quantised_by(draft), "draft_quantization", wanted, model_name(draft))
    return wanted


def _draft_given(
    target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig
) -> tuple[Any, Any, Tensor | None]:
    """A draft by name, loaded, with its tokenizer and the tokens it says, if not all; or the one that is at hand."""
    if isinstance(draft, str):

        def check(theirs: Any) -> None:
            if tokenizer is not None and tokenizer.get_vocab() != theirs.get_vocab():
                raise another_vocabulary(draft, len(theirs), model_name(target.model), len(tokenizer))

        return load_draft(draft, dtype=config.dtype, device=str(target.model.device), check=check)
    check_draft(draft)
    check_draft_place(draft, target.model, config.dtype)
    return draft, None, None


def check_draft(draft: Any) -> None:
    """Refuse an object that is no model.

    Raises:
        UnsupportedModelError: so it is.
    """
    if (reason := wrapper_of(draft)) is not None:
        raise UnsupportedModelError(f"draft_model is a {type(draft).__name__}: {reason}")


def _depth(config: EngineConfig, otherwise: int) -> int:
    """How deep trees may be."""
    return min((each for each in (config.gamma, config.max_speculation_depth) if each), default=otherwise)


def _check_vocabulary(target: Any, tokenizer: Any, draft: Any, draft_tokenizer: Any) -> None:
    """Sizes may differ by padding where the tokenizers are known to be one; else they must be equal."""
    ours, theirs = _vocab_size(target), _vocab_size(draft)
    if tokenizer is not None and draft_tokenizer is not None:
        if tokenizer.get_vocab() == draft_tokenizer.get_vocab():
            if theirs < min(ours, len(tokenizer)):  # no padding: it has no row for tokens that it is asked about
                raise VocabularyMismatchError(
                    f"the draft {model_name(draft)} has {theirs} rows of embeddings and its tokenizer {len(tokenizer)} "
                    "tokens; give a draft that was saved with its own tokenizer, or leave draft_model out"
                )
            return
        ours, theirs = len(tokenizer), len(draft_tokenizer)
    elif ours == theirs:
        return
    raise another_vocabulary(model_name(draft), theirs, model_name(target), ours)


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: as the model's generation configuration says now, else the tokenizer's.

    Raises:
        UsageError: what it says is neither a token id nor a list of some.
    """
    said, whose = getattr(getattr(model, "generation_config", None), "eos_token_id", None), "model's generation_config"
    if said is None:
        said, whose = getattr(tokenizer, "eos_token_id", None), "tokenizer"
    ids = said.reshape(-1).tolist() if isinstance(said, Tensor) else said
    ids = [ids] if isinstance(ids, int) else () if ids is None else ids
    if not isinstance(ids, list | tuple | set | frozenset) or not all(isinstance(each, int) for each in ids):
        raise UsageError(f"the {whose} has eos_token_id {shown(said)}; give a token id, or a list of some")
    return frozenset(ids)


def _vocab_size(model: Any) -> int:
    return len(model.get_input_embeddings().weight)  # PEFT's wrapper of an embedding has no num_embeddings


def model_name(model: Any) -> str:
    """What a model is called.

    Raises:
        UnsupportedModelError: it is no transformers model.
    """
    require_model(model)
    return str(model.config.name_or_path or model.config.model_type)
