"""The same engine for those who want a function, or who keep calling transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from typing_extensions import Unpack

from specstream.config import EngineConfig, EngineSettings, GenerationConfig, engine_config
from specstream.engine.build import build_parts, check_draft, eos_token_ids, make_target, model_name, renewed
from specstream.engine.call_arguments import check_call, check_length
from specstream.engine.callbacks import Columns, row_processor
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import notes_of, prepare
from specstream.engine.prompt_forms import padding_of, token_rows
from specstream.engine.results import Metrics, Totals
from specstream.engine.text import check_tokenizer
from specstream.errors import UsageError, has, must_be, shown
from specstream.models.architecture.checkpoint import CheckpointRules
from specstream.models.hub.load import load_model
from specstream.models.target.hf import HuggingFaceTarget


def speculative_decode(
    target: Any, draft: Any, input_ids: Any = None, **settings: Unpack[EngineSettings]
) -> tuple[Tensor, Metrics]:
    """Decode with a target and a draft.

    Args:
        target: a transformers causal language model.
        draft: a smaller one of the same vocabulary, or None for prompt lookup.
        input_ids: ``[n]`` or ``[rows, n]`` int64, a list of rows of different lengths, or what a tokenizer
            returned, whose mask tells the padding. Elsewhere no padding.
        **settings: ``max_new_tokens``, ``gamma``, ``temperature``, ``top_k``, ``top_p``, ``seed`` and the other
            settings of ``SpeculativeEngine``; stop strings need a tokenizer, so take the engine for those.

    Returns:
        ``output_ids`` ``[rows, longest]`` int64, prompts included, padded on the right with the model's pad or
        end-of-sequence token; and metrics, as keys and as attributes: ``new_tokens`` (of all rows), ``seconds``,
        ``tokens_per_second``, ``target_passes``, ``acceptance_rate``, ``mean_accepted_length``, ``exact``,
        ``left_out`` and ``notes`` (as in ``GenerationResult``).

    Raises:
        UsageError: an empty prompt, one longer than the context, a setting out of range.
        VocabularyMismatchError: a draft of another vocabulary.
    """
    if isinstance(draft, Tensor):
        raise UsageError(
            "draft is a Tensor; give speculative_decode(target, draft, input_ids), or to generate() "
            "custom_generate=custom_generate(draft)"
        )
    config = engine_config(settings)
    if config.generation.stop_strings:
        raise UsageError("stop strings need a tokenizer; take SpeculativeEngine for them")
    if isinstance(prediction := config.generation.prediction, str):
        raise UsageError(
            f"prediction is {prediction!r} and there is no tokenizer; give token ids, or take SpeculativeEngine"
        )
    prompts = token_rows(input_ids, padding_of(target, None, eos_token_ids(target, None)))
    model = make_target(target, config)
    parts = build_parts(model, None, draft, config)
    generation = Generation(parts, prompts, config.generation)
    prepare(parts, len(prompts))
    return output_of(generation.run(), target, config, draft)


def create_backend(
    name: str, *, dtype: Any = "auto", device: str = "auto", runtime: str = "auto", torch_dtype: Any = None
) -> HuggingFaceTarget:
    """A model by name as what decodes: its ``model`` is a ``target`` or a ``draft`` of ``speculative_decode``.

    Args:
        name: a catalog name, a folder or a hub id.
        dtype: of its weights; ``auto`` is the checkpoint's, or float32 on a CPU that would emulate it.
        device: where it goes; ``auto`` is the GPU if there is one.
        runtime: how its passes run, as in ``EngineConfig``.
        torch_dtype: an older name of ``dtype``.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        UnsupportedModelError: it is no causal language model.
        UsageError: an unknown dtype, device or runtime.
    """
    if not isinstance(name, str | PathLike):
        raise UsageError(f"name is {shown(name)}; give the name of a model; one that is loaded needs no backend")
    given = {"dtype": dtype, "torch_dtype": torch_dtype, "device": device, "runtime": runtime}
    if torch_dtype is None or dtype == "auto":
        del given["torch_dtype" if torch_dtype is None else "dtype"]
    config = engine_config(given)  # type: ignore[arg-type]
    model, _ = load_model(name, dtype=config.dtype, device=config.device)
    return HuggingFaceTarget(model, runtime=config.runtime)


def output_of(generation: Generation, target: Any, config: EngineConfig, draft: Any = None) -> tuple[Tensor, Metrics]:
    """What ``speculative_decode`` returns, of a generation that has ended with this target, draft and configuration."""
    totals = Totals()
    totals.add(generation.rows, generation.timings.total)
    names = ("new_tokens", "seconds", "tokens_per_second", "target_passes", "acceptance_rate", "mean_accepted_length")
    metrics = Metrics(totals.figures(*names), exact=generation.rows[0].exact, left_out=generation.parts.left_out)
    metrics["notes"] = notes_of(config, generation, model_name(target) if draft is target else None)
    return _padded([row.tokens for row in generation.rows], target, target.device), metrics


def custom_generate(
    draft_model: Any = None,
    *called: Any,
    tokenizer: Any = None,
    streamer: Any = None,
    **settings: Unpack[EngineSettings],
) -> Callable[..., Any]:
    """Speculation behind the call people know: ``model.generate(**inputs, custom_generate=custom_generate())``.

    Sampling, stopping and lengths are those of the ``generate`` call; only how far to speculate is set here. What the
    call asks for and cannot get is refused by name.

    Args:
        draft_model: a smaller model of the same vocabulary, or None for prompt lookup.
        *called: nothing: it is refused, as ``generate`` gives it where this was not called.
        tokenizer: for ``stop``, and to compare vocabularies with a draft by name. Here, as ``generate`` keeps its own
            ``tokenizer`` to itself.
        streamer: gets tokens as they are accepted, of one row. Here, as ``generate`` keeps its own to itself.
        **settings: ``drafter``, ``gamma``, ``max_speculation_depth``, ``branches``, ``runtime``, ``exact``, and
            ``stop``, strings that end the text: ``generate`` takes its ``stop_strings`` only with its own tokenizer.

    Returns:
        What ``generate`` takes as ``custom_generate``. Keep it: it holds the model's self-test, packed weights and
        drafter, and what was measured of them.

    Raises:
        UsageError: ``stop`` without a tokenizer, or a setting of the ``generate`` call.
    """
    if called:
        if isinstance(called[0], Tensor):
            raise UsageError("custom_generate is what makes the callable; give custom_generate=custom_generate()")
        raise UsageError(
            f"custom_generate is given {1 + len(called)} models and takes the draft alone; give "
            "custom_generate=custom_generate(draft) to generate(), whose model is the target"
        )
    if draft_model is not None and not isinstance(draft_model, str):
        check_draft(draft_model)
    config = engine_config(settings)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    must_be(
        streamer is None or has(streamer, "put", "end"),
        "streamer",
        streamer,
        "an object with put and end, such as a TextStreamer",
    )
    for name in GenerationConfig.model_fields.keys() - {"stop"}:
        if (value := settings.get(name)) is not None:
            raise UsageError(f"{name} is {value!r}; give it to generate(), whose call custom_generate follows")
    if config.generation.stop_strings and tokenizer is None:
        raise UsageError(f"stop is {settings['stop']!r} and there is no tokenizer; give tokenizer=, the model's own")
    return _CustomGenerate(draft_model, tokenizer, streamer, config)


class _CustomGenerate:
    """Called by ``generate`` with everything prepared: input ids, logits processors, stopping criteria."""

    def __init__(self, draft: Any, tokenizer: Any, streamer: Any, config: EngineConfig) -> None:
        self._draft, self._tokenizer, self._streamer, self._config = draft, tokenizer, streamer, config
        self._made: tuple[HuggingFaceTarget, Parts] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # made of a model and of this process

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        check_call(model, input_ids, generation_config, model_kwargs)
        if self._streamer is not None and len(input_ids) > 1:
            raise UsageError(
                f"a streamer is given with {len(input_ids)} rows, which advance at their own pace; give one"
            )
        parts = self._parts(model)
        criteria = [*stopping_criteria, *self._stop_strings()]
        columns = Columns(criteria, input_ids, _pad_token_id(model, generation_config))
        # generate() has put temperature, top-k and the rest into its processors already. Chance follows torch's
        # own seed, as it does there.
        settings = GenerationConfig(
            max_new_tokens=generation_config.max_length - input_ids.shape[1],
            temperature=1.0 if generation_config.do_sample else 0.0,
            seed=int(torch.randint(2**62, ())),
        )
        prompts = token_rows({"input_ids": input_ids, "attention_mask": model_kwargs.get("attention_mask")})
        check_length(prompts, settings.max_new_tokens, parts.target.context_length)
        # generate() has made processors of the checkpoint's rules, too.
        parts = replace(parts, eos_token_ids=columns.eos_token_ids, checkpoint=CheckpointRules())
        generation = Generation(parts, prompts, settings)
        prepare(parts, len(prompts))
        for row, prompt in zip(generation.rows, prompts, strict=True):
            if logits_processor:
                padding = input_ids[row.index, : input_ids.shape[1] - len(prompt)]
                own = row_processor(logits_processor, row.index, len(prompts), padding)
                row.sampling = replace(row.sampling, processors=(own,))
            row.stopping = replace(row.stopping, check=columns.check(row.index))
        self._run(generation, columns)
        if not generation_config.return_dict_in_generate:
            return columns.ids
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=cast(LongTensor, columns.ids))

    def _parts(self, model: Any) -> Parts:
        if self._made is None or self._made[0].model is not model:
            config = self._config
            target = make_target(model, config)
            self._made = target, build_parts(target, self._tokenizer, self._draft, config)
        target, parts = self._made
        self._made = target, renewed(parts, target, self._tokenizer, self._draft, self._config)
        return self._made[1]

    def _stop_strings(self) -> list[Any]:
        from transformers import StopStringCriteria

        stops = self._config.generation.stop_strings
        return [StopStringCriteria(self._tokenizer, stops)] if stops else []

    def _run(self, generation: Generation, columns: Columns) -> None:
        """Decode to the end; a streamer gets the prompt, then the tokens one by one, as from ``generate``."""
        if self._streamer is None:
            generation.run()
            return
        sent = columns.ids.shape[1]
        try:
            self._streamer.put(columns.ids.cpu())
            for _ in generation.rounds():
                for token in columns.ids[0, sent:].cpu():
                    self._streamer.put(token[None])
                sent = columns.ids.shape[1]
        finally:
            self._streamer.end()  # whoever reads on another thread would wait for ever


def _padded(rows: Sequence[list[int]], model: Any, device: torch.device) -> Tensor:
    pad = _pad_token_id(model, getattr(model, "generation_config", None))
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)


def _pad_token_id(model: Any, generation_config: Any) -> int:
    """As ``generate`` pads: with the pad token, else the first end-of-sequence token."""
    for source in (generation_config, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            if isinstance(value, (list, tuple)):
                value = value[0] if value else None
            if isinstance(value, int | Tensor):
                return int(value)
            if value is not None:
                raise UsageError(f"the model's configuration has {name} {shown(value)}; give a token id")
    return 0
