"""SpeculativeEngine: the composition root, the only place that builds concrete parts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, cast, overload

from typing_extensions import Unpack

from specstream.config import (
    EngineConfig,
    EngineSettings,
    GenerationConfig,
    SamplingSettings,
    engine_config,
    generation_config,
)
from specstream.core.controller import Controller
from specstream.core.decode import Row, Speculation
from specstream.core.ports import Drafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import UsageError, VocabularyMismatchError
from specstream.generation import Generation, Parts, TextPieces, is_batch
from specstream.models.hf import HuggingFaceTarget
from specstream.models.load import load_model
from specstream.models.runtime import Quantization, prefers_bytes
from specstream.models.uncached import UncachedTarget
from specstream.provenance import provenance
from specstream.results import GenerationResult, Totals
from specstream.text import Chat, Prompt, encode

CALIBRATION_TOKENS = 16
"""Tokens of plain decoding, per row, that ``speedup`` is measured against."""

SELF = "self:"
"""``self:int8`` and ``self:int4`` are the target itself as its own draft, its weights read from fewer bits."""

# A caller's processor may keep state and is shown the tokens of the output only.
_CALIBRATION = {"max_new_tokens": CALIBRATION_TOKENS, "ignore_eos": True, "stop": [], "logits_processor": []}


class SpeculativeEngine:
    """Generates with a model and a drafter: faster, and the same output as the model alone.

    Args:
        model: a transformers causal language model, or the name of one (catalog name, folder, hub id).
        tokenizer: its tokenizer; may be left out if ``model`` is a name.
        draft_model: a smaller model of the same tokenizer, or the name of one, or ``self:int8`` for the model itself
            with its weights as bytes; None drafts by prompt lookup.
        **settings: see ``EngineConfig`` and ``GenerationConfig``.

    Raises:
        UsageError: a setting out of range, with the value and the remedy.
        UnsupportedModelError: a model that cannot be a target, with the reason.
        VocabularyMismatchError: a draft of another vocabulary.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, draft_model: Any = None, **settings: Unpack[EngineSettings]
    ) -> None:
        self.config = engine_config(settings)
        _check_choice(self.config.drafter, draft_model)  # before a model is loaded for nothing
        if isinstance(model, str):
            self.model_name = model
            model, own_tokenizer = load_model(model, dtype=self.config.dtype, device=self.config.device)
            tokenizer = tokenizer or own_tokenizer
        else:
            self.model_name = _name(model)
        if tokenizer is None:
            raise UsageError("tokenizer is missing; give the model's own, or give the model by name")
        self.model, self.tokenizer = model, tokenizer
        self.target = HuggingFaceTarget(model, runtime=self.config.runtime, exact=self.config.exact == "bits")
        same = isinstance(draft_model, str) and draft_model == self.model_name
        self.parts = build_parts(self.target, tokenizer, model if same else draft_model, self.config)
        self._baselines: dict[tuple[int, bool], dict[str, Any]] = {}
        self._totals = Totals()

    @overload
    def generate(self, prompt: str | Chat, **settings: Unpack[SamplingSettings]) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: list[str] | list[Chat], **settings: Unpack[SamplingSettings]
    ) -> list[GenerationResult]: ...

    def generate(self, prompt: Any, **settings: Unpack[SamplingSettings]) -> Any:
        """Generate from a prompt, or from several in one batch.

        Args:
            prompt: a text, a chat (a list of role/content), or a list of either.
            **settings: override the engine's, for this call; see ``GenerationConfig``.

        Returns:
            A ``GenerationResult``, or a list of them for a list of prompts.

        Raises:
            UsageError: an empty prompt, one longer than the context, a setting out of range.
            NumericalError: the model's logits are NaN or infinite.
        """
        config = generation_config(self.config.generation, settings)
        batch = is_batch(prompt)
        prompts: list[Prompt] = list(prompt) if batch else [prompt]
        if not prompts:
            raise UsageError("the list of prompts is empty; give at least one")
        results = self._report(self._start(prompts, config).run())
        return results if batch else results[0]

    def stream(self, prompt: Prompt, **settings: Unpack[SamplingSettings]) -> TextPieces:
        """Generate from one prompt, piece by piece as tokens are accepted.

        Returns:
            An iterable of pieces of text; once it is exhausted its ``result`` is the ``GenerationResult``.
        """
        config = generation_config(self.config.generation, settings)
        return TextPieces(self._start([prompt], config), self._report)

    def benchmark(
        self, test_prompts: Sequence[Prompt], num_runs: int = 5, **settings: Unpack[SamplingSettings]
    ) -> dict[str, Any]:
        """Measure speculation against plain decoding, the two in turn on the same prompts.

        Both sides count prefill and obey the same stopping rules. One round of each warms up and is not counted.

        Returns:
            ``average_speedup`` (median over the runs of speculative / plain tokens per second),
            ``tokens_per_second``, ``plain_tokens_per_second``, ``speculation_accuracy`` (accepted over drafted
            tokens), ``memory_overhead`` (bytes of the draft's weights over the target's),
            ``mean_accepted_length``, ``drafted`` and ``rejected`` tokens, ``runs`` (each run's figures) and
            ``provenance``.
        """
        if num_runs < 1 or not test_prompts:
            raise UsageError(f"num_runs is {num_runs} with {len(test_prompts)} prompts; give at least one of each")
        config = generation_config(self.config.generation, settings)
        sides = {"plain": NoDrafter(), "speculative": None}
        runs: list[dict[str, float]] = []
        totals = {side: Totals() for side in sides}
        for number in range(num_runs + 1):
            counted = {side: Totals() for side in sides}
            for prompt in test_prompts:
                for side, drafter in sides.items():
                    generation = self._start([prompt], config, drafter).run()
                    counted[side].add(generation.rows, generation.timings.total)
                    if number:
                        totals[side].add(generation.rows, generation.timings.total)
            if number:
                runs.append({f"{side}_tokens_per_second": counted[side].tokens_per_second for side in sides})
        speculative = totals["speculative"]
        return {
            "average_speedup": median(
                run["speculative_tokens_per_second"] / run["plain_tokens_per_second"] for run in runs
            ),
            "tokens_per_second": speculative.tokens_per_second,
            "plain_tokens_per_second": totals["plain"].tokens_per_second,
            "speculation_accuracy": speculative.acceptance_rate,
            "memory_overhead": self._draft_bytes() / self.target.runtime.nbytes,
            "mean_accepted_length": speculative.mean_accepted_length,
            "drafted": speculative.drafted,
            "rejected": speculative.rejected,
            "num_runs": num_runs,
            "runs": runs,
            "provenance": self.provenance(),
        }

    def get_metrics(self) -> dict[str, Any]:
        """Totals over everything this engine generated, with what they were measured on."""
        totals = self._totals
        return {
            "requests": totals.requests,
            "new_tokens": totals.new_tokens,
            "target_passes": totals.target_passes,
            "seconds": totals.seconds,
            "tokens_per_second": totals.tokens_per_second,
            "acceptance_rate": totals.acceptance_rate,
            "mean_accepted_length": totals.mean_accepted_length,
            "average_speedup": totals.average_speedup,
            "provenance": self.provenance(),
        }

    def provenance(self) -> dict[str, Any]:
        """Versions, machine, model and settings: what every figure is to be read with."""
        settings = self.config.model_dump(exclude={"generation", "drafter", "device", "dtype", "runtime"})
        return {
            **provenance(str(self.model.device), _dtype_name(self.model)),
            "model": self.model_name,
            "drafter": self.parts.drafter.name,
            "runtime": self.target.runtime.name,
            **settings,
        }

    def _start(self, prompts: Sequence[Prompt], config: GenerationConfig, drafter: Drafter | None = None) -> Generation:
        parts = self.parts if drafter is None else self.parts.with_drafter(drafter)
        generation = Generation(parts, [encode(self.tokenizer, prompt) for prompt in prompts], config)
        # Before the clock starts: the self-tests are no part of a generation.
        self.target.prepare(rows=len(prompts), nodes=parts.speculation.max_depth + 1)
        return generation

    def _report(self, generation: Generation) -> list[GenerationResult]:
        baseline = self._baseline(generation)
        timings = generation.timings
        speedup = generation.new_tokens / timings.decode / baseline["tokens_per_second"]
        self._totals.add(generation.rows, timings.total)
        self._totals.speedups.append(speedup)
        return [self._result(generation, row, speedup, baseline) for row in generation.rows]

    def _result(self, generation: Generation, row: Row, speedup: float, baseline: dict[str, Any]) -> GenerationResult:
        stats, timings = row.stats, generation.timings
        return GenerationResult(
            text=generation.text(row),
            token_ids=row.emitted,
            finish_reason=row.finish_reason or "length",
            new_tokens=stats.new_tokens,
            seconds=timings.total,
            prefill_seconds=timings.prefill,
            tokens_per_second=stats.new_tokens / timings.total,
            target_passes=stats.target_passes,
            mean_accepted_length=stats.mean_accepted_length,
            acceptance_rate=stats.acceptance_rate,
            speedup=speedup,
            baseline=baseline,
            exact=row.exact,
            lossless=self.config.acceptance_threshold is None or generation.config.temperature == 0,
            drafter=self.parts.drafter.name,
            model=self.model_name,
            dtype=_dtype_name(self.model),
            device=str(self.model.device),
            runtime=self.target.runtime.name,
        )

    def _baseline(self, generation: Generation) -> dict[str, Any]:
        """Plain decoding of the same model in the same runtime and process, measured once per batch size."""
        config = generation.config
        key = (len(generation.rows), config.temperature == 0)
        if key not in self._baselines:
            plain = Generation(
                self.parts.with_drafter(NoDrafter()),
                generation.prompts,
                config.model_copy(update=_CALIBRATION),
            )
            plain.run()
            self._baselines[key] = {
                "method": "plain decoding, same model, runtime, process and batch size; prefill not counted",
                "tokens": plain.new_tokens,
                "tokens_per_second": plain.new_tokens / plain.timings.decode,
            }
        return self._baselines[key]

    def _draft_bytes(self) -> int:
        drafter = self.parts.drafter
        drafter = drafter.model if isinstance(drafter, MixedDrafter) else drafter
        if not isinstance(drafter, DraftModelDrafter) or drafter.model is self.target:
            return 0
        assert isinstance(drafter.model, HuggingFaceTarget)
        return drafter.model.runtime.nbytes


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
    _check_choice(config.drafter, draft)
    return Parts(
        target=target if config.use_cache else UncachedTarget(target),
        drafter=_build_drafter(target, tokenizer, draft, config),
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(target.model, tokenizer),
        speculation=Speculation(
            max_depth=config.max_speculation_depth,
            acceptance_threshold=config.acceptance_threshold,
            controller=Controller() if config.adaptive else None,
        ),
    )


def _build_drafter(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> Drafter:
    name = config.drafter
    if name == "auto":
        name = "lookup" if draft is None else "draft_model"
    if name == "none":
        return NoDrafter()
    if name == "lookup":
        return LookupDrafter(branches=config.branches)
    if name == "lookahead":
        return LookaheadDrafter(
            window=config.lookahead_window, ngram=config.lookahead_ngram, guesses=config.lookahead_guesses
        )
    model = DraftModelDrafter(
        _draft_target(target, tokenizer, draft, config),
        gamma=config.gamma,
        branches=config.branches,
        vocab_size=_vocab_size(target.model),
    )
    return MixedDrafter(LookupDrafter(branches=config.branches), model) if name == "mixed" else model


def _draft_target(target: HuggingFaceTarget, tokenizer: Any, draft: Any, config: EngineConfig) -> HuggingFaceTarget:
    """The draft as a target of its own. A model that drafts for itself shares everything, the bits too."""
    quantization, named = config.draft_quantization, isinstance(draft, str)
    if named and draft.startswith(SELF):
        draft, quantization, named = target.model, _self_quantization(draft), False
    if quantization == "auto":
        quantization = "int8" if named and prefers_bytes(target.model, config.runtime) else "none"
    if draft is target.model:
        if quantization == "none":
            return target
        return HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization)
    draft_tokenizer = None
    if named:
        draft, draft_tokenizer = load_model(draft, dtype=config.dtype, device=str(target.model.device))
    _check_vocabulary(target.model, tokenizer, draft, draft_tokenizer)
    drafting = HuggingFaceTarget(draft, runtime=config.runtime, exact=False, quantization=quantization)
    drafting.prepare()  # here, as its first generation would be timed with it
    if named:  # nobody else has it
        drafting.runtime.release()
    return drafting


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
        f"the draft {_name(draft)} has another vocabulary ({theirs} tokens) than {_name(target)} ({ours} tokens); "
        "give a draft of the same tokenizer, or drafter='lookup'"
    )


def _check_choice(name: str, draft: Any) -> None:
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


def _vocab_size(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _name(model: Any) -> str:
    return str(model.config.name_or_path or model.config.model_type)
