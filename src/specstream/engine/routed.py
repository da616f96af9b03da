"""AdaptiveRouter: the drafter for each prompt, as a function of a target and some drafts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from specstream.config import EngineSettings, GenerationConfig, engine_config
from specstream.engine.build import build_drafters, build_parts, eos_token_ids, left_out_of, make_target
from specstream.engine.functions import output_of
from specstream.engine.generation import Baselines, Generation, Parts, check_tokens
from specstream.engine.inventory import prepare
from specstream.engine.prompt_forms import one_prompt, padding_of, several_prompts, token_rows
from specstream.engine.results import Metrics
from specstream.engine.text import Prompt, are_tokens, check_tokenizer, encode, kind_of
from specstream.errors import UsageError
from specstream.models.architecture.families import require_model
from specstream.models.target.hf import HuggingFaceTarget
from specstream.routing.config import DrafterSpec, check_drafters
from specstream.routing.drafter import RoutedDrafter
from specstream.routing.router import Choice, Router


class AdaptiveRouter(Router):
    """Chooses the drafter for each prompt, and goes on learning. ``from_config`` makes one (see ``RouterConfig``)."""

    _made: tuple[Any, Any, HuggingFaceTarget, Parts] | None = None
    _baselines: Baselines

    def bind(self, target: Any, tokenizer: Any = None) -> None:
        """Take the target whose prompts these will be.

        Args:
            target: the transformers model.
            tokenizer: its tokenizer; only mpnet's embedding and prompts given as text or chat need it.

        Raises:
            UnsupportedModelError: the target is no transformers model.
            HeadMismatchError: the router was trained for another target.
            UsageError: no tokenizer, or another model's.
        """
        if tokenizer is not None:
            check_tokenizer(tokenizer, len(self.model.table))
        super().bind(target, tokenizer)

    def choose(
        self,
        prompt: Prompt | Tensor | Mapping[str, Any],
        *,
        among: Collection[str] | None = None,
        settled: bool = False,
    ) -> Choice:
        """The drafter for one prompt, in any form that ``SpeculativeEngine.generate`` takes; see ``choose_for``."""
        return super().choose_for([one_prompt(prompt, "choose", "choose_for")], among=among, settled=settled)

    def choose_for(self, prompts: Any, *, among: Collection[str] | None = None, settled: bool = False) -> Choice:
        """One drafter for all prompts of a batch: that with the best mean over the rows.

        Args:
            prompts: several, in any form that ``SpeculativeEngine.generate`` takes.
            among: only these; None for all.
            settled: go by the trained table alone, without chance and without what was learned since.

        Raises:
            UsageError: no prompt, one that cannot be used, fewer than two drafters, or one that the router does not
                know.
        """
        return super().choose_for(several_prompts(prompts, "prompts"), among=among, settled=settled)

    def _tokens(self, prompt: Any) -> Sequence[int]:
        one = one_prompt(prompt, "features", "choose_for")
        if self._tokenizer is None and not are_tokens(one):
            raise UsageError(f"the prompt is {kind_of(one)} and there is no tokenizer; give token ids, or bind one")
        tokens = encode(self._tokenizer, one)
        check_tokens(len(self.model.table), [tokens], [], self._tokenizer)
        return tokens

    def route_and_decode(
        self, target: Any, draft_models: Any, input_ids: Any, **settings: Unpack[EngineSettings]
    ) -> tuple[Tensor, Metrics]:
        """Decode with the drafter that is expected to be fastest on this prompt.

        Args:
            target: the transformers model that the router was trained for.
            draft_models: what the router's drafters draft with: a mapping from their names, or a list in their order,
                of models or names of models. Drafters whose draft is not given are left out; those that need none
                are not. None takes the models that the router names.
            input_ids: as of ``speculative_decode``. One drafter is chosen for all rows.
            **settings: as of ``speculative_decode``. What was built of a target and its drafts is kept for the next
                call with the same. A router that embeds with mpnet needs ``bind(target, tokenizer)`` before.

        Returns:
            ``output_ids`` and metrics as ``speculative_decode`` gives them, and ``drafter``, ``routing_seconds`` (part
            of ``seconds``), ``expected`` and ``speedup`` over plain decoding (see ``measure_baseline``).

        Raises:
            UsageError: fewer than two drafters, or what ``speculative_decode`` refuses.
            HeadMismatchError: the router was trained for another target.
        """
        config = engine_config(settings)
        if config.generation.stop_strings:
            raise UsageError("stop strings need a tokenizer; take SpeculativeEngine(drafter='router') for them")
        require_model(target)
        prompts = token_rows(input_ids, padding_of(target, None, eos_token_ids(target, None)))
        parts = self._parts_of(target, draft_models, settings)
        generation = Generation(parts, prompts, config.generation)
        prepare(parts, len(prompts))
        generation.run()
        speedup, _ = self._baselines.speedup(generation, measure=config.measure_baseline)
        output_ids, metrics = output_of(generation, target, config)
        assert generation.choice is not None
        choice = generation.choice.to_dict()
        routing = {"drafter": choice["drafter"], "routing_seconds": choice["seconds"], "expected": choice["expected"]}
        return output_ids, Metrics({**metrics, **routing, "speedup": speedup})

    def _parts_of(self, target: Any, draft_models: Any, settings: EngineSettings) -> Parts:
        """What was built of this target and these drafts, or is now."""
        drafts = None if draft_models is None else _by_name(draft_models, self.drafters)
        kept = {name: value for name, value in settings.items() if name not in GenerationConfig.model_fields}
        if strange := sorted({"drafter", "heads", "router", "router_state"} & set(kept)):
            raise UsageError(f"{strange[0]} is given and the router has its own drafters; leave it out")
        key = (kept, None if drafts is None else {name: id(model) for name, model in drafts.items()})
        if self._made is None or self._made[0] is not target or self._made[1] != key:
            specs = _with_drafts(self.drafters, drafts)
            check_drafters(specs)
            self.bind(target, self._tokenizer)
            config = engine_config({**kept, "drafter": "none"})  # type: ignore[typeddict-item]
            model = make_target(target, config)
            parts = build_parts(model, self._tokenizer, None, config)
            routed = RoutedDrafter(build_drafters(model, self._tokenizer, specs, config, drafts), self)
            parts = replace(parts, drafter=routed, left_out=left_out_of(target, drafts, routed, config))
            self._made, self._baselines = (target, key, model, parts), Baselines()
        return self._made[3]


def _by_name(drafts: Any, specs: Mapping[str, DrafterSpec]) -> dict[str, Any]:
    """Draft models by the names of the drafters that draft with them.

    Raises:
        UsageError: a name that is none, or more models than drafters that draft with one.
    """
    drafting = [name for name, spec in specs.items() if spec.draft is not None]
    if not isinstance(drafts, Mapping):
        listed = list(drafts) if isinstance(drafts, Sequence) and not isinstance(drafts, str) else [drafts]
        if len(listed) > len(drafting):
            raise UsageError(
                f"there are {len(listed)} draft models and {len(drafting)} drafters that draft with one "
                f"({', '.join(drafting) or 'none'}); give no more than those"
            )
        return dict(zip(drafting, listed, strict=False))
    if strange := sorted(set(drafts) - set(drafting), key=str):
        wanted = f"name it as one of {', '.join(drafting)}" if drafting else "leave it out: none drafts with a model"
        raise UsageError(f"draft model {strange[0]!r} belongs to no drafter; {wanted}")
    return dict(drafts)


def _with_drafts(specs: Mapping[str, DrafterSpec], drafts: Mapping[str, Any] | None) -> dict[str, DrafterSpec]:
    """The drafters that can be built."""
    return {name: spec for name, spec in specs.items() if spec.draft is None or drafts is None or name in drafts}
