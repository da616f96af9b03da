"""What an engine is made of: the target, the drafter and how far to speculate, built from a configuration."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from specstream.config import DEEPEST, UNMEASURED, DrafterName, EngineConfig
from specstream.core.controller import Controller
from specstream.core.decode import Speculation
from specstream.core.ports import Drafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import Heads, MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.streams import StreamHead, StreamsDrafter
from specstream.errors import UsageError, VocabularyMismatchError
from specstream.generation import Parts
from specstream.heads.folder import kind_of
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.models.hf import HuggingFaceTarget
from specstream.models.runtime import Quantization, lend_kernels, prefers_bytes
from specstream.models.uncached import UncachedTarget
from specstream.models.vocabulary import load_draft

SELF = "self:"
"""``self:int8`` and ``self:int4`` are the target itself as its own draft, its weights read from fewer bits."""


def build_parts(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Parts:
    """What a configuration generates with.

    Args:
        target: the model whose output it is.
        tokenizer: its tokenizer, None where no text is needed.
        draft: a model, the name of one, or None.
        config: the rest.

    Raises:
        UsageError: a drafter and a draft that do not go together.
        VocabularyMismatchError: a draft of another vocabulary.
    """
    check_choice(config, draft)
    return Parts(
        target=target if config.use_cache else UncachedTarget(target),
        drafter=_build_drafter(target, tokenizer, draft, config),
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(target.model, tokenizer),
        speculation=Speculation(
            max_depth=config.max_speculation_depth or DEEPEST,
            unmeasured_depth=config.max_speculation_depth or UNMEASURED,
            acceptance_threshold=config.acceptance_threshold,
            controller=Controller() if config.adaptive else None,
        ),
    )


def _build_drafter(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Drafter:
    name = config.drafter
    if name == "auto" and config.heads is not None:
        name = cast(DrafterName, kind_of(config.heads))
    if name == "auto":  # heads that are shipped for this very model would be found here
        name = "lookup" if draft is None else "draft_model"
    if name == "none":
        return NoDrafter()
    if name == "lookup":
        return LookupDrafter(branches=config.branches)
    if name == "lookahead":
        return LookaheadDrafter(
            window=config.lookahead_window, ngram=config.lookahead_ngram, guesses=config.lookahead_guesses
        )
    if name == "streams":
        assert config.heads is not None
        streams = Streams.from_pretrained(config.heads, target.model)
        if config.pruning is not None and not streams.config.pruning_rank:
            raise UsageError(f"pruning is {config.pruning} and {config.heads!r} has no early exit; give no pruning")
        return StreamsDrafter(streams, rates=streams.details.get("rates"), pruning=config.pruning)
    if name == "medusa":
        assert config.heads is not None
        heads = MedusaHeads.from_pretrained(config.heads, target.model)
        lend_kernels(heads, target.runtime.name)
        return MedusaDrafter(heads)
    drafting, part = _draft_target(target, tokenizer, draft, config)
    model = DraftModelDrafter(
        drafting,
        gamma=config.gamma or config.max_speculation_depth or DEEPEST,
        branches=config.branches,
        vocab_size=_vocab_size(target.model),
        part=part,
    )
    return MixedDrafter(LookupDrafter(branches=config.branches), model) if name == "mixed" else model


def _draft_target(
    target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig
) -> tuple[HuggingFaceTarget, Tensor | None]:
    """The draft as a target of its own, and the tokens it says, if not all.

    A model that drafts for itself shares everything, the bits too.
    """
    quantization, named = config.draft_quantization, isinstance(draft, str)
    if named and draft.startswith(SELF):
        draft, quantization, named = target.model, _self_quantization(draft), False
    if quantization == "auto":
        quantization = "int8" if named and prefers_bytes(target.model, config.runtime) else "none"
    if draft is target.model:
        if quantization == "none":
            return target, None
        return HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization), None
    draft_tokenizer, part = None, None
    if named:
        draft, draft_tokenizer, part = load_draft(draft, dtype=config.dtype, device=str(target.model.device))
    _check_vocabulary(target.model, tokenizer, draft, draft_tokenizer)
    if part is not None and _vocab_size(draft) != _vocab_size(target.model):
        raise VocabularyMismatchError(
            f"the draft {model_name(draft)} says some of {_vocab_size(draft)} tokens and the target has "
            f"{_vocab_size(target.model)}; make one of {model_name(target.model)}: specstream make-draft"
        )
    drafting = HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization)
    drafting.prepare()  # here, as its first generation would be timed with it
    if named:  # nobody else has it
        drafting.runtime.release()
    return drafting, part


def _self_quantization(draft: str) -> Quantization:
    name = draft.removeprefix(SELF)
    if name not in ("int8", "int4"):
        raise UsageError(f"draft_model is {draft!r}; the target drafts for itself as {SELF}int8 or {SELF}int4")
    return cast(Quantization, name)


def _check_vocabulary(target: Any, tokenizer: Any, draft: Any, draft_tokenizer: Any) -> None:
    """Sizes may differ by padding where the tokenizers are known to be one; else they must be equal."""
    ours, theirs = _vocab_size(target), _vocab_size(draft)
    if tokenizer is not None and draft_tokenizer is not None:
        if tokenizer.get_vocab() == draft_tokenizer.get_vocab():
            return
        ours, theirs = len(tokenizer), len(draft_tokenizer)
    elif ours == theirs:
        return
    raise VocabularyMismatchError(
        f"the draft {model_name(draft)} has another vocabulary ({theirs} tokens) than {model_name(target)} "
        f"({ours} tokens); give a draft of the same tokenizer, or drafter='lookup'"
    )


def check_choice(config: EngineConfig, draft: Any) -> None:
    """Refuse a drafter and a draft, or heads, that do not go together.

    Raises:
        UsageError: so it is.
        ModelNotFoundError: there are no heads in the folder.
    """
    name = config.drafter
    headed = ("streams", "medusa")
    if name in headed and config.heads is None:
        raise UsageError(f"drafter is {name!r} and there are no heads; give heads=, a folder of heads for this model")
    if name not in (*headed, "auto") and config.heads is not None:
        raise UsageError(f"drafter is {name!r} and there are heads; give drafter='streams' or 'medusa', or no heads")
    if config.pruning is not None and name not in ("streams", "auto"):
        raise UsageError(f"pruning is {config.pruning} and drafter is {name!r}; give drafter='streams' or no pruning")
    if config.heads is not None:
        if draft is not None:
            raise UsageError(f"heads is {config.heads!r} and there is a draft_model; give one of them")
        if (kind := kind_of(config.heads)) != name and name != "auto":
            raise UsageError(f"drafter is {name!r} and {config.heads!r} holds {kind!r}; give drafter={kind!r}")
    if draft is None and name in ("draft_model", "mixed"):
        raise UsageError(f"drafter is {name!r} and there is no draft_model; give a smaller model of this tokenizer")
    if draft is not None and name not in ("auto", "draft_model", "mixed"):
        raise UsageError(
            f"drafter is {name!r} and there is a draft_model; give drafter='draft_model' or no draft_model"
        )


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def most_nodes(parts: Parts) -> int:
    """Drafted nodes of the largest tree, as far as that is known beforehand."""
    drafter = parts.drafter
    own = drafter.nodes if isinstance(drafter, (LookaheadDrafter, MedusaDrafter, StreamsDrafter)) else 0
    return max(parts.speculation.max_depth, own)


def extra_parameters(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Parameters that a drafter needs beyond the target's own."""
    if (heads := _heads_of(drafter)) is not None:
        return heads.extra_parameters
    draft = _draft_of(drafter)
    return 0 if draft is None or draft.model is target.model else int(draft.model.num_parameters())


def draft_bytes(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Bytes of weights that are there to draft with."""
    if (heads := _heads_of(drafter)) is not None:
        return heads.nbytes
    draft = _draft_of(drafter)
    return 0 if draft is None or draft is target else draft.runtime.nbytes


def _heads_of(drafter: Drafter) -> Heads | StreamHead | None:
    if isinstance(drafter, MedusaDrafter):
        return drafter.heads
    return drafter.head if isinstance(drafter, StreamsDrafter) else None


def _draft_of(drafter: Drafter) -> HuggingFaceTarget | None:
    """The draft model, if one drafts."""
    drafter = drafter.model if isinstance(drafter, MixedDrafter) else drafter
    if not isinstance(drafter, DraftModelDrafter):
        return None
    assert isinstance(drafter.model, HuggingFaceTarget)
    return drafter.model


def _vocab_size(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def model_name(model: Any) -> str:
    """What a model is called."""
    return str(model.config.name_or_path or model.config.model_type)
