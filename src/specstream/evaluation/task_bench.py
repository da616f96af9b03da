"""A fine-tuned model and a shared-mode one on a task: quality beside each other, and what streams save of the passes.

Quality is compared between the two models on the same examples, in pairs. Passes and speed are compared inside one
model, where plain decoding and its streams generate each example in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from specstream.config import GenerationConfig, engine_config
from specstream.engine.build import build_parts
from specstream.engine.contestants import PLAIN, Run
from specstream.engine.generation import Parts
from specstream.engine.inventory import extra_parameters, with_fixed_tree
from specstream.evaluation.compare import Comparison, Contestant, Sample, answer_text, compare
from specstream.evaluation.quality import Estimate, counted, difference, estimate
from specstream.evaluation.tasks.task import Task, TaskExample

CONTROLLED = "streams, controller"
"""The contestant for which the controller decides how far to draft."""

_FIGURES = {
    "side": "side",
    "parameters": "parameters",
    "call_reduction": "mean_accepted_length",
    "tokens_per_second": "tokens_per_second",
    "speedup": "ratio",
    "speedup_interval": "ratio_interval",
    "middle_speedup": "middle_ratio",
    "equal": "equal",
    "answers": "outputs",
}
"""What records call the figures of a comparison."""


def streams_beside(engine: Any, heads: str | None, nodes: Sequence[int]) -> list[Contestant]:
    """Plain decoding; with streams, trees of fixed sizes, and the controller's choice.

    Args:
        engine: with the drafter ``none``.
        heads: a folder of streams of its model.
        nodes: drafted nodes of the fixed trees.

    Raises:
        HeadMismatchError: they belong to another model.
    """
    found = [Contestant(name=PLAIN, parts=engine.parts)]
    for size in () if heads is None else (*nodes, None):
        config = engine_config({"drafter": "streams", "heads": heads, "adaptive": size is None})
        parts = build_parts(engine.target, engine.tokenizer, None, config)
        parameters = extra_parameters(parts.drafter, engine.target)
        name = CONTROLLED if size is None else f"streams, {size} nodes"
        own = parts if size is None else with_fixed_tree(parts, size)
        found.append(Contestant(name=name, parts=own, parameters=parameters))
    return found


def answer_all(
    contestants: Sequence[Contestant],
    task: Task,
    examples: Sequence[TaskExample],
    on_example: Callable[[int], None] | None = None,
) -> Comparison:
    """Every contestant answers every example, greedily; an example that fails is noted.

    Args:
        contestants: from ``streams_beside``.
        task: how prompts are put and where answers end.
        examples: what is asked.
        on_example: called with the number of examples done.
    """
    config = GenerationConfig(max_new_tokens=task.max_new_tokens, stop=list(task.stop))

    def answer(parts: Parts, example: TaskExample) -> Run:
        return answer_text(parts, example.prompt, config, task.chat)

    return compare(contestants, examples, answer, tolerant=True, on_prompt=on_example)


def record(run: Comparison, task: Task, examples: Sequence[TaskExample], provenance: dict[str, Any]) -> dict[str, Any]:
    """What one model did, as plain values that JSON can hold."""
    return {
        "model": provenance["model"],
        "figures": figures(run, task, examples),
        "answers": [_plain_answer(each) for each in run.samples],
        "failures": [
            {"example": index, "where": examples[index].where, "error": error} for index, error in run.failures.items()
        ],
        "provenance": provenance,
    }


def figures(run: Comparison, task: Task, examples: Sequence[TaskExample]) -> list[dict[str, Any]]:
    """Of every contestant; none if nothing was answered. ``quality`` is every metric of the task, from 0 to 100."""
    found = []
    for each in run.figures():
        answers = run.of(each["side"])
        references = [examples[answer.prompt].references for answer in answers]
        texts = [_text(answer) for answer in answers]
        quality = {metric: vars(estimate(metric, counted(metric, texts, references))) for metric in task.metrics}
        found.append({"quality": quality, **{name: each[of] for name, of in _FIGURES.items()}})
    return found


def differences(task: Task, examples: Sequence[TaskExample], run: Comparison, other: Comparison) -> dict[str, Estimate]:
    """How much better ``run`` answers than ``other`` by every metric, over the examples that both answered."""
    ours, theirs = ({each.prompt: _text(each) for each in side.of(PLAIN)} for side in (run, other))
    both = [index for index in ours if index in theirs]
    references = [examples[index].references for index in both]
    found: dict[str, Estimate] = {}
    for metric in task.metrics if both else ():
        own, others = (counted(metric, [side[at] for at in both], references) for side in (ours, theirs))
        found[metric] = difference(metric, own, others)
    return found


def _text(sample: Sample) -> str:
    return sample.run.texts[0].strip()


def _plain_answer(sample: Sample) -> dict[str, Any]:
    return {
        "side": sample.contestant,
        "example": sample.prompt,
        "text": _text(sample),
        "tokens": sample.run.new_tokens,
        "passes": len(sample.run.passes),
        "seconds": sample.run.decode,
        "exact": sample.run.exact,
        "equal": bool(sample.equal),
    }
