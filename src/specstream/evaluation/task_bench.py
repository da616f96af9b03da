"""A fine-tuned model and a shared-mode one on a task: quality beside each other, and what streams save of the passes.

Quality is compared between the two models on the same examples, in pairs. Passes and speed are compared inside one
model, where plain decoding and its streams generate each example in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specstream.config import GenerationConfig, engine_config
from specstream.engine.contestants import PLAIN
from specstream.evaluation.benchmark.experiments import PLAIN_ARM, Arm, Group
from specstream.evaluation.benchmark.folder import Samples
from specstream.evaluation.benchmark.prompts import Prompt
from specstream.evaluation.benchmark.run import Progress, measure
from specstream.evaluation.benchmark.summary import arms_of, side_of, told
from specstream.evaluation.quality import Estimate, counted, difference, estimate
from specstream.evaluation.tasks.task import Task, TaskExample

CONTROLLED = "streams, controller"
"""The contestant for which the controller decides how far to draft."""

_ALIASES = {
    "call_reduction": "mean_accepted_length",
    "speedup": "ratio",
    "speedup_interval": "ratio_interval",
    "middle_speedup": "middle_ratio",
    "answers": "outputs",
}
"""What records called these figures, and call them for one release more."""


def streams_beside(heads: str | None, nodes: Sequence[int]) -> list[Arm]:
    """Plain decoding; with streams, trees of fixed sizes, and the controller's choice.

    Args:
        heads: a folder of streams of the model.
        nodes: drafted nodes of the fixed trees.
    """
    found = [PLAIN_ARM]
    for size in () if heads is None else (*nodes, None):
        config = engine_config({"drafter": "streams", "heads": heads, "adaptive": size is None})
        name = CONTROLLED if size is None else f"streams, {size} nodes"
        found.append(Arm(name=name, config=config, fixed_tree=size))
    return found


def answer_all(
    engine: Any, arms: Sequence[Arm], task: Task, examples: Sequence[TaskExample], on_progress: Progress
) -> Samples:
    """Every arm answers every example, greedily; an example that fails is noted.

    Args:
        engine: of the model.
        arms: from ``streams_beside``.
        task: how prompts are put and where answers end.
        examples: what is asked.
        on_progress: told how far it came.

    Raises:
        HeadMismatchError: heads of another model.
    """
    config = GenerationConfig(max_new_tokens=task.max_new_tokens, stop=list(task.stop))
    prompts = [Prompt(category="", text=each.prompt, chat=task.chat) for each in examples]
    group = Group(experiment="task", generation=config, arms=tuple(arms))
    return measure(engine, group, prompts, on_progress, errors="keep")


def record(run: Samples, task: Task, examples: Sequence[TaskExample], provenance: dict[str, Any]) -> dict[str, Any]:
    """What one model did, as plain values that JSON can hold."""
    errors = {each["item"]: each["error"] for each in reversed(run.samples) if each["error"] is not None}
    answered = run.answered()
    return {
        "model": provenance["model"],
        "figures": figures(answered, task, examples),
        "answers": [
            {
                "example": each["item"],
                "text": each["texts"][0].strip(),
                "tokens": len(each["tokens"][0]),
                "passes": len(each["passes"]),
                **told(each, answered),
            }
            for each in answered.samples
        ],
        "failures": [
            {"example": index, "where": examples[index].where, "error": errors[index]} for index in sorted(errors)
        ],
        "provenance": provenance,
    }


def figures(run: Samples, task: Task, examples: Sequence[TaskExample]) -> list[dict[str, Any]]:
    """Of every arm; none if nothing was answered. ``quality`` is every metric of the task, from 0 to 100."""
    found = []
    for each in arms_of(run):
        side, texts = side_of(each), _texts(run, each["arm"])
        references = [examples[index].references for index in texts]
        quality = {
            metric: vars(estimate(metric, counted(metric, list(texts.values()), references))) for metric in task.metrics
        }
        found.append({"quality": quality, **side, **{name: side[of] for name, of in _ALIASES.items()}})
    return found


def differences(task: Task, examples: Sequence[TaskExample], run: Samples, other: Samples) -> dict[str, Estimate]:
    """How much better ``run`` answers than ``other`` by every metric, over the examples that both answered."""
    ours, theirs = (_texts(side.answered(), PLAIN) for side in (run, other))
    both = [index for index in ours if index in theirs]
    references = [examples[index].references for index in both]
    found: dict[str, Estimate] = {}
    for metric in task.metrics if both else ():
        own, others = (counted(metric, [side[at] for at in both], references) for side in (ours, theirs))
        found[metric] = difference(metric, own, others)
    return found


def _texts(run: Samples, arm: str) -> dict[int, str]:
    """The answers of an arm, by example."""
    return {each["item"]: each["texts"][0].strip() for each in run.samples if each["arm"] == arm}
