"""SpeculativeEngine: the composition root. What it is made of is built in ``build.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, overload

from pydantic import BaseModel
from torch import Tensor
from typing_extensions import Unpack

from specstream.config import (
    EngineConfig,
    EngineSettings,
    GenerationConfig,
    SamplingSettings,
    check_prefix_cache,
    engine_config,
    generation_config,
)
from specstream.core.ports import Drafter
from specstream.core.rows import Row
from specstream.drafters.none import NoDrafter
from specstream.engine.build import build_parts, eos_token_ids, make_target, model_name, refuse_quantised_twice, renewed
from specstream.engine.choices import SELF, check_choice, drafts_for_itself
from specstream.engine.contestants import by_turn, in_turn
from specstream.engine.generation import Baselines, Generation, Parts, TextPieces
from specstream.engine.inventory import memory_overhead, notes_of, prepare
from specstream.engine.prompt_forms import one_prompt, padding_of, prompts_in, several_prompts
from specstream.engine.results import GenerationResult, Metrics, Totals, figures_of
from specstream.engine.settings_file import read_settings
from specstream.engine.text import Chat, Prompt, are_tokens, check_tokenizer, encode
from specstream.environment import level, provenance
from specstream.errors import UsageError, count_of, must_be, shown, takes
from specstream.files.atomic import path_of
from specstream.heads.folder import check_base_name
from specstream.models.architecture.blocks import source_of
from specstream.models.architecture.checkpoint import checkpoint_rules
from specstream.models.architecture.released import close_to_others
from specstream.models.hub.catalog import check, on_disk
from specstream.models.hub.load import load_model
from specstream.models.hub.schemes import stored_as
from specstream.models.hub.vocabulary import check_tokenizers
from specstream.reporting import announce
from specstream.routing.model import RouterModel

_SETTINGS = {*EngineConfig.model_fields, *GenerationConfig.model_fields, "draft_model", "torch_dtype"}


class SpeculativeEngine:
    """Generates with a model and a drafter: faster, and the same output as the model alone.

    The model stays yours, and is never changed. You may cast, merge, patch or hook it, or load other weights into it,
    between two generations; threads may share an engine or use its model beside it.

    Args:
        model: a transformers causal language model, or the name of one (catalog name, folder, hub id).
        tokenizer: its tokenizer; may be left out if ``model`` is a name.
        draft_model: a smaller model of the same tokenizer, or the name of one, or ``self:int8`` for the model itself
            with its weights as bytes; None drafts by prompt lookup, and with heads that are
            shipped for the model.
        **settings: see ``EngineConfig`` and ``GenerationConfig``.

    Raises:
        UsageError: a setting out of range, with the value and the remedy.
        UnsupportedModelError: a model that cannot be a target, with the reason.
        VocabularyMismatchError: a draft of another vocabulary.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, draft_model: Any = None, **settings: Unpack[EngineSettings]
    ) -> None:
        must_be(not isinstance(draft_model, BaseModel), "draft_model", draft_model, "a draft; settings by their names")
        self.config = engine_config(settings)
        model, draft_model = (str(each) if isinstance(each, Path) else each for each in (model, draft_model))
        check_choice(self.config, draft_model)  # before a model is loaded for nothing
        if tokenizer is not None:
            check_tokenizer(tokenizer)
        place = self.config.device if isinstance(model, str) else str(getattr(model, "device", "cpu"))
        check_prefix_cache(self.config.prefix_cache_gb, place)
        self._loaded = isinstance(model, str)
        if isinstance(model, str):
            self.model_name = model
            check_names(self.config, model, draft_model)
            if tokenizer is None:
                check_vocabulary(model, draft_model)
            model, own_tokenizer = load_model(model, dtype=self.config.dtype, device=self.config.device)
            tokenizer = tokenizer or own_tokenizer
        else:
            self.model_name = model_name(model)
        if tokenizer is None:
            raise UsageError("tokenizer is missing; give the model's own, or give the model by name")
        self.model, self.tokenizer = model, tokenizer
        self.target = make_target(model, self.config)
        same = isinstance(draft_model, str) and draft_model == self.model_name
        self._draft = model if same else draft_model
        self.parts = build_parts(self.target, tokenizer, self._draft, self.config)
        if self.parts.left_out is not None:
            announce(self.parts.left_out)
        self._baselines = Baselines()
        self._totals = Totals()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError("an engine cannot be pickled or copied: it holds memory; make one where it is needed")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would have no effect, or would no longer fit the rest: an engine is made once.

        Raises:
            UsageError: so it is. Only ``parts`` may be replaced, and methods.
        """
        own = vars(self)
        made, free = "_totals" in own, name.startswith("_") or hasattr(type(self), name)
        if name == "parts":
            must_be(isinstance(value, Parts), name, value, "dataclasses.replace(engine.parts, drafter=drafter)")
        elif made and not free and (name in own or name in _SETTINGS or type(self) is SpeculativeEngine):
            whom = "generate or SpeculativeEngine" if name in GenerationConfig.model_fields else "SpeculativeEngine"
            fixed = name in own or name in _SETTINGS
            why = f"is fixed when the engine is made; give it to {whom}" if fixed else "is no attribute; leave it out"
            raise UsageError(f"{name} cannot be set to {shown(value)}: it {why}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise UsageError(f"{name} cannot be deleted: an engine needs it; delete the engine itself")

    @classmethod
    def from_config(cls, path: str, **settings: Unpack[EngineSettings]) -> SpeculativeEngine:
        """An engine as a YAML file says, such as ``specstream tune`` writes.

        Args:
            path: the file: ``model``, perhaps ``draft_model``, and settings by name.
            **settings: replace the file's.

        Raises:
            UsageError: a file that cannot be read, an unknown key, a value outside its range, no ``model``.
        """
        path_of("path", path, "a YAML file; settings in a mapping go to SpeculativeEngine(**mapping)")
        given = {**read_settings(path), **settings}
        if given.get("model") is None:
            raise UsageError(f"{path} names no model; give it as model: NAME")
        return cls(**given)

    @overload
    def generate(self, prompt: str | Chat | list[int], **settings: Unpack[SamplingSettings]) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: list[str] | list[Chat] | list[list[int]], **settings: Unpack[SamplingSettings]
    ) -> list[GenerationResult]: ...

    @overload
    def generate(self, prompt: Tensor | Mapping[str, Any], **settings: Unpack[SamplingSettings]) -> Any: ...

    def generate(self, prompt: Any = None, **settings: Unpack[SamplingSettings]) -> Any:
        """Generate from a prompt, or from several in one batch.

        Args:
            prompt: a text, which is taken as it is; a chat (a list of role/content), which goes through the chat
                template; token ids; or a list of these. A tensor ``[n]`` of ids is one prompt and ``[rows, n]`` is
                several, also in what a tokenizer returned; its ``attention_mask`` tells the padding.
            **settings: override the engine's, for this call; see ``GenerationConfig``.

        Returns:
            A ``GenerationResult``, or a list of them where several prompts were given.

        Raises:
            UsageError: an empty prompt, one longer than the context, a setting out of range.
            NumericalError: the model's logits are NaN or infinite.
        """
        config = generation_config(self.config.generation, settings)
        prompts, several = prompts_in(prompt, padding=self._padding())
        if not prompts:
            raise UsageError("the list of prompts is empty; give at least one")
        results = self._report(self._begun(prompts, config).run())
        return results if several else results[0]

    def stream(self, prompt: Prompt | Tensor | Mapping[str, Any], **settings: Unpack[SamplingSettings]) -> TextPieces:
        """Generate from one prompt, in any form that ``generate`` takes, piece by piece as tokens are accepted.

        Returns:
            An iterable of pieces of text; once it is exhausted its ``result`` is the ``GenerationResult``.
        """
        config = generation_config(self.config.generation, settings)
        one = one_prompt(prompt, "stream", "generate", self._padding())
        return TextPieces(self._begun([one], config), self._report)

    def benchmark(
        self,
        test_prompts: Sequence[Prompt] | Tensor | Mapping[str, Any],
        num_runs: int = 5,
        *,
        on_run: Callable[[int], None] = lambda done: None,
        **settings: Unpack[SamplingSettings],
    ) -> Metrics:
        """Measure speculation against plain decoding, the two in turn on the same prompts, each of them by itself.

        Both sides count prefill and obey the same stopping rules. One round of each warms up and is not counted.

        Args:
            test_prompts: texts or chats.
            num_runs: counted rounds over them.
            on_run: told how many rounds are done, that of the warm-up among them.

        Returns:
            ``average_speedup`` (median over the runs of speculative / plain tokens per second),
            ``tokens_per_second``, ``plain_tokens_per_second``, ``speculation_accuracy`` (accepted over drafted
            tokens), ``memory_overhead`` (what drafting adds in memory over what the target takes: weights with their
            copies, and KV caches of the longest text),
            ``mean_accepted_length``, ``drafted`` and ``rejected`` tokens, ``runs`` (their figures), ``provenance``.
        """
        config = generation_config(self.config.generation, settings)
        prompts = several_prompts(test_prompts, "test_prompts", self._padding())
        num_runs = count_of("num_runs", num_runs)
        must_be(takes(on_run, 1), "on_run", on_run, "a function of the number of rounds")
        encoded = self._encoded(prompts)  # all of them before the first pass
        longest = max(map(len, encoded)) + config.max_new_tokens
        sides = {
            "plain": lambda prompt: self._start([prompt], config, NoDrafter()).run(),
            "speculative": lambda prompt: self._start([prompt], config).run(),
        }
        rounds = [{side: Totals() for side in sides} for _ in range(num_runs + 1)]
        totals = {side: Totals() for side in sides}
        for turn in by_turn(in_turn(sides, encoded, rounds=num_runs + 1, warm_up=0)):
            for side, each in turn.values().items():
                for counted in (rounds[turn.round][side], totals[side])[: 1 + bool(turn.round)]:
                    counted.add(each.rows, each.timings.total)
            if turn.prompt == len(encoded) - 1:
                on_run(turn.round + 1)
        runs = [figures_of(each) for each in rounds[1:]]
        speculative = totals["speculative"]
        speedups = [run["speculative_tokens_per_second"] / run["plain_tokens_per_second"] for run in runs]
        return Metrics(
            average_speedup=median(speedups),
            tokens_per_second=speculative.tokens_per_second,
            plain_tokens_per_second=totals["plain"].tokens_per_second,
            speculation_accuracy=speculative.acceptance_rate,
            memory_overhead=memory_overhead(self.parts.drafter, self.target, longest),
            mean_accepted_length=speculative.mean_accepted_length,
            drafted=speculative.drafted,
            rejected=speculative.rejected,
            num_runs=num_runs,
            runs=runs,
            provenance=self.provenance(),
        )

    def get_metrics(self) -> Metrics:
        """Totals over everything this engine generated, with what they were measured on."""
        names = (
            *("requests", "new_tokens", "target_passes", "seconds", "tokens_per_second"),
            *("acceptance_rate", "mean_accepted_length", "average_speedup"),
        )
        return Metrics(self._totals.figures(*names), provenance=self.provenance())

    @property
    def unreleasable(self) -> str | None:
        """Why ``release`` would be refused; None if it would not."""
        # The blocks of a GGUF file are the file's, mapped; those of a checkpoint were made, and have a copy too.
        made = self.target.runtime.quantized and source_of(self.model) not in (None, "gguf")
        if self.config.quantization == "none" and not made:
            return "quantization is 'none', so there is no copy of the weights; leave release() out"
        if drafts_for_itself(self._draft, self.model):
            return f"draft_model is {shown(self._draft)}, which is made of the same weights; leave release() out"
        if not self._loaded:
            return "the model was given as an object, and others may read its weights; give the engine its name"
        return None

    def release(self) -> None:
        """Give back the memory of the weights that a quantised target reads copies of, of a model given by name.

        That model then runs in this engine only: whatever else is done with ``engine.model`` is refused.

        Raises:
            UsageError: nothing can be given back (``unreleasable``).
        """
        if (why := self.unreleasable) is not None:
            raise UsageError(why)
        self.target.release(head=self.parts.heads is None)
        close_to_others(self.model)

    def provenance(self) -> dict[str, Any]:
        """Versions, machine, model and settings: what every figure is to be read with."""
        settings = self.config.model_dump(exclude={"generation", "drafter", "device", "dtype", "runtime"})
        return {
            **provenance(str(self.model.device), _dtype_name(self.model)),
            "model": self.model_name,
            "drafter": self.parts.drafter.name,
            "runtime": self.target.runtime.name,
            **settings,
            "heads": self.parts.heads,
            "left_out": self.parts.left_out,
        }

    def _encoded(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [encode(self.tokenizer, prompt) for prompt in prompts]

    def _padding(self) -> int | None:
        return padding_of(self.model, self.tokenizer, eos_token_ids(self.model, self.tokenizer))

    def _begun(self, prompts: Sequence[Prompt], config: GenerationConfig) -> Generation:
        generation = self._start(self._encoded(prompts), config)
        generation.remembered = True
        generation.chats = [not isinstance(prompt, str) and not are_tokens(prompt) for prompt in prompts]
        return generation

    def _start(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, drafter: Drafter | None = None
    ) -> Generation:
        self._renew()
        parts = self.parts if drafter is None else self.parts.with_drafter(drafter)
        generation = Generation(parts, prompts, config)
        prepare(parts, len(prompts))
        return generation

    def _renew(self) -> None:
        """Follow what was done to the model since the last generation."""
        parts = renewed(self.parts, self.target, self.tokenizer, self._draft, self.config)
        if parts is not self.parts:
            self._baselines.clear()
        ends, rules = eos_token_ids(self.model, self.tokenizer), checkpoint_rules(self.model)
        self.parts = replace(parts, eos_token_ids=ends, checkpoint=rules)

    def _report(self, generation: Generation) -> list[GenerationResult]:
        speedup, baseline = self._baselines.speedup(generation, measure=self.config.measure_baseline)
        self._totals.add(generation.rows, generation.timings.total)
        if speedup is not None:
            self._totals.speedups.append(speedup)
        notes = notes_of(self.config, generation, self.model_name if self._draft is self.model else None)
        return [self._result(generation, row, speedup, baseline, notes) for row in generation.rows]

    def _result(
        self, generation: Generation, row: Row, speedup: float | None, baseline: dict[str, Any], notes: list[str]
    ) -> GenerationResult:
        stats, timings = row.stats, generation.timings
        return GenerationResult(
            text=generation.text(row),
            token_ids=row.emitted,
            finish_reason=row.finish_reason or "length",
            new_tokens=stats.new_tokens,
            seconds=timings.total,
            prefill_seconds=timings.prefill,
            cached_tokens=row.cached,
            tokens_per_second=stats.new_tokens / timings.total,
            target_passes=stats.target_passes,
            mean_accepted_length=stats.mean_accepted_length,
            acceptance_rate=stats.acceptance_rate,
            speedup=speedup,
            baseline=baseline,
            exact=row.exact,
            lossless=self.config.acceptance_threshold is None or generation.config.temperature == 0,
            chat=generation.chats[row.index],
            drafter=self.parts.drafter.name,
            drafts=dict(stats.drafts),
            left_out=self.parts.left_out,
            notes=list(notes),
            routing=None if generation.choice is None else generation.choice.to_dict(),
            model=self.model_name,
            dtype=_dtype_name(self.model),
            device=str(self.model.device),
            runtime=self.target.runtime.name,
            cpu_level=level().name,
        )


def check_names(config: EngineConfig, model: str, draft: Any) -> None:
    """Refuse a draft and a router that are not there, before a target is fetched or loaded for nothing.

    Raises:
        ModelNotFoundError: there is none of that name, or no router in the folder.
        HeadMismatchError: heads of another model of the catalog.
        UsageError: a quantised model is to be quantised.
    """
    _check_bits(config, model, draft)
    if config.heads is not None:
        check_base_name(config.heads, model)
    if isinstance(draft, str) and not draft.startswith(SELF):
        check(draft)
    if config.router is not None:
        RouterModel.load(config.router)


def check_vocabulary(model: str, draft: Any) -> None:
    """Refuse a draft of another vocabulary, where the files of both tokenizers are here and tell."""
    if isinstance(draft, str) and not draft.startswith(SELF) and None not in (on_disk(model), on_disk(draft)):
        check_tokenizers(model, draft, quick=True)


def _check_bits(config: EngineConfig, model: str, draft: Any) -> None:
    """Refuse to quantise a target of a name that is quantised."""
    wanted: list[tuple[str, str]] = [("quantization", config.quantization)]
    if isinstance(draft, str) and draft.startswith(SELF):
        wanted.append(("draft_model", draft))
    for setting, value in wanted:
        if value not in ("none", "auto") and (place := on_disk(model)) is not None:
            refuse_quantised_twice(stored_as(place), setting, value, model)


def _dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
