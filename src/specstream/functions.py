"""The same engine for those who want a function, or who keep calling transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from typing_extensions import Unpack

from specstream.config import EngineConfig, EngineSettings, GenerationConfig, engine_config
from specstream.core.decode import Row
from specstream.core.stopping import StopCheck
from specstream.errors import UsageError
from specstream.generation import Generation, Parts
from specstream.models.hf import HuggingFaceTarget
from specstream.parts import build_parts, renewed
from specstream.results import Totals


def speculative_decode(
    target: Any, draft: Any, input_ids: Any, **settings: Unpack[EngineSettings]
) -> tuple[Tensor, dict[str, Any]]:
    """Decode with a target and a draft.

    Args:
        target: a transformers causal language model.
        draft: a smaller one of the same vocabulary, or None for prompt lookup.
        input_ids: ``[n]`` or ``[rows, n]`` int64, or a list of rows of different lengths. No padding.
        **settings: ``max_new_tokens``, ``gamma``, ``temperature``, ``top_k``, ``top_p``, ``seed`` and the other
            settings of ``SpeculativeEngine``; stop strings need a tokenizer, so take the engine for those.

    Returns:
        ``output_ids`` ``[rows, longest]`` int64, prompts included, padded on the right with the model's pad or
        end-of-sequence token; and metrics: ``new_tokens`` (of all rows), ``seconds``, ``tokens_per_second``,
        ``target_passes``, ``acceptance_rate``, ``mean_accepted_length``, ``exact``.

    Raises:
        UsageError: an empty prompt, one longer than the context, a setting out of range.
        VocabularyMismatchError: a draft of another vocabulary.
    """
    config = engine_config(settings)
    if config.generation.stop_strings:
        raise UsageError("stop strings need a tokenizer; take SpeculativeEngine for them")
    model = HuggingFaceTarget(target, runtime=config.runtime, exact=config.exact == "bits")
    parts = build_parts(model, None, draft, config)
    generation = Generation(parts, prompts_of(input_ids), config.generation).run()
    return output_of(generation, target)


def output_of(generation: Generation, target: Any) -> tuple[Tensor, dict[str, Any]]:
    """What ``speculative_decode`` returns, of a generation that has ended with this target."""
    totals = Totals()
    totals.add(generation.rows, generation.timings.total)
    metrics = {
        "new_tokens": totals.new_tokens,
        "seconds": totals.seconds,
        "tokens_per_second": totals.tokens_per_second,
        "target_passes": totals.target_passes,
        "acceptance_rate": totals.acceptance_rate,
        "mean_accepted_length": totals.mean_accepted_length,
        "exact": generation.rows[0].exact,
    }
    return _padded([row.tokens for row in generation.rows], target, target.device), metrics


def custom_generate(draft_model: Any = None, **settings: Unpack[EngineSettings]) -> Callable[..., Any]:
    """Speculation behind the call people know: ``model.generate(**inputs, custom_generate=custom_generate())``.

    Sampling, stopping and lengths are those of the ``generate`` call; only how far to speculate is set here.

    Args:
        draft_model: a smaller model of the same vocabulary, or None for prompt lookup.
        **settings: ``drafter``, ``gamma``, ``max_speculation_depth``, ``branches``, ``runtime``, ``exact``.

    Returns:
        What ``generate`` takes as ``custom_generate``. Keep it: it holds the model's self-test, packed weights and
        drafter, and what was measured of them.
    """
    return _CustomGenerate(draft_model, engine_config(settings))


class _CustomGenerate:
    """Called by ``generate`` with everything prepared: input ids, logits processors, stopping criteria."""

    def __init__(self, draft: Any, config: EngineConfig) -> None:
        self._draft = draft
        self._config = config
        self._made: tuple[HuggingFaceTarget, Parts] | None = None
        self._revision = 0

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        _refuse(generation_config)
        if self._made is None or self._made[0].model is not model:
            config = self._config
            target = HuggingFaceTarget(model, runtime=config.runtime, exact=config.exact == "bits")
            self._revision = 0
            self._made = target, build_parts(target, None, self._draft, config)
        target, parts = self._made
        if target.refresh() != self._revision:
            parts = renewed(parts, target, None, self._draft, self._config)
            self._made, self._revision = (target, parts), target.revision
        pad = _pad_token_id(model, generation_config)
        width = input_ids.shape[1]
        # generate() has put temperature, top-k and the rest into its processors already. Chance follows torch's
        # own seed, as it does there.
        settings = GenerationConfig(
            max_new_tokens=generation_config.max_length - width,
            temperature=1.0 if generation_config.do_sample else 0.0,
            logits_processor=[logits_processor] if logits_processor else [],
            ignore_eos=True,  # the stopping criteria know the end of sequence
            seed=int(torch.randint(2**62, ())),
        )
        prompts = _unpadded(input_ids, model_kwargs.get("attention_mask"))
        check = _criteria_check(stopping_criteria, width, pad, input_ids.device)
        rows = Generation(parts, prompts, settings, check).run().rows
        sequences = _continued(input_ids, rows, pad)
        if not generation_config.return_dict_in_generate:
            return sequences
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=cast(LongTensor, sequences))


def _refuse(config: Any) -> None:
    if (config.num_beams or 1) > 1:
        raise UsageError(f"num_beams is {config.num_beams}; speculative decoding follows one beam, give num_beams=1")
    wanted = [
        name
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
        if getattr(config, name, False)
    ]
    if wanted:
        raise UsageError(f"{wanted[0]} is not available under speculative decoding; leave it out")


def _criteria_check(criteria: Any, width: int, pad: int, device: torch.device) -> StopCheck:
    """The stopping criteria of transformers, shown one more token at a time behind a prompt of the batch's width."""

    def check(emitted: Sequence[int], new: int) -> int | None:
        ids = torch.tensor([[pad] * width + list(emitted)], device=device)
        for kept in range(len(emitted) - new + 1, len(emitted) + 1):
            if bool(criteria(ids[:, : width + kept], None).all()):
                return kept
        return None

    return check


def prompts_of(input_ids: Any) -> list[list[int]]:
    """The rows of token ids: a tensor ``[n]`` or ``[rows, n]``, or a list of rows."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.tolist()
    if not input_ids or isinstance(input_ids[0], int):
        input_ids = [input_ids]
    return [list(row) for row in input_ids]


def _unpadded(input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return prompts_of(input_ids)
    return [row[keep.bool()].tolist() for row, keep in zip(input_ids, mask, strict=True)]


def _continued(input_ids: Tensor, rows: Sequence[Row], pad: int) -> Tensor:
    """The given ids, padding and all, with what each row emitted behind them."""
    longest = max(len(row.emitted) for row in rows)
    emitted = [row.emitted + [pad] * (longest - len(row.emitted)) for row in rows]
    return torch.cat([input_ids, torch.tensor(emitted, device=input_ids.device)], dim=1)


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
            if value is not None:
                return int(value)
    return 0
