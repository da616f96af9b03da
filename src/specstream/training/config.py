"""The configuration of a training run, read from YAML. An unknown key is an error that names the known ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from specstream.environment import level
from specstream.errors import UsageError
from specstream.evaluation.tasks.task import read_task
from specstream.files.yaml_file import Configuration, Document, Section, read_document, validated

Recipe = Literal["streams", "medusa", "block", "eagle3", "lora", "shared", "draft"]

SECTIONS = {
    "streams": {"streams"},
    "medusa": {"medusa"},
    "block": {"block"},
    "eagle3": {"eagle3"},
    "lora": {"lora"},
    "shared": {"streams", "lora"},
    "draft": {"draft", "distillation"},
}
"""The sections of each recipe, besides those that all have."""


class ModelSection(Section):
    """The models.

    Attributes:
        target_model: a catalog name, a folder or a hub id.
        draft_model: the model that is trained to draft for it, where the recipe trains one.
        dtype: of the frozen weights; ``auto`` is the checkpoint's, or float32 on a CPU that would emulate it.
        device: ``auto`` is the GPU if there is one.
        states_dir: keep there what the frozen target computes at every example, so that it is computed once for all
            epochs, runs and recipes: a few kB for a token. None computes it each time.
        states_gb: that ``states_dir`` holds at most; what does not fit is computed each time. None is no limit.
    """

    target_model: str = "smollm2-135m"
    draft_model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    states_dir: str | None = None
    states_gb: float | None = Field(default=None, ge=0)

    def dtype_on(self, device: str) -> str:
        """The dtype on a device; training runs the library's kernels, not ours, which have bf16 at every level."""
        emulated = device.startswith("cpu") and not level().bf16
        return "float32" if self.dtype == "auto" and emulated else self.dtype


class DataSection(Section):
    """What is trained on.

    Attributes:
        domain: what the texts are, for the model card: code, chat, reasoning, ...
        dataset_name: a data set of the hub, or a local file; besides ``files``.
        dataset_split: of a data set of the hub.
        task: a task's name or YAML file (``specstream/tasks``), which then says how all local files are read.
        files: local files: answers of ``specstream distill-data``, prompts with answers, chats, or plain text.
        exclude: files of prompts that must not be trained on; examples that share one, or 13 words in a row with one,
            are left out. ``specstream distill-data`` has the same for answers.
        eval_files: held out; without any, ``eval_examples`` are taken from the others and not trained on.
        eval_examples: examples that an evaluation looks at, at most.
        limit: examples to read at most, from all files together.
        max_length: tokens of an example at most; longer ones are cut.
        prompt_loss: learn the prompts too, not only the answers.
        chat: put prompts through the chat template; None does where there is one, and for a task as that says.
    """

    domain: str = "chat"
    dataset_name: str | None = None
    dataset_split: str = "train"
    task: str | None = None
    files: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    eval_files: list[str] = Field(default_factory=list)
    eval_examples: int = Field(default=64, ge=0)
    limit: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=512, ge=8)
    prompt_loss: bool = False
    chat: bool | None = None


class TrainingSection(Section):
    """How it is trained. Names are those of transformers' ``TrainingArguments``.

    Attributes:
        num_train_steps: optimizer steps.
        per_device_batch_size: examples of one pass of one process.
        gradient_accumulation_steps: passes of one step.
        learning_rate: its peak.
        lr_scheduler_type: how it falls after the warm-up.
        warmup_steps: over which it rises.
        weight_decay: AdamW's.
        adam_beta1: AdamW's.
        adam_beta2: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        mixed_precision: passes in bf16 or fp16 under autocast; the trained weights stay float32.
        seed: of the order of examples and of dropout.
        output_dir: where checkpoints, the best of them and the logs go.
        resume: go on from the last checkpoint there; False sets an earlier run's folder aside and starts anew.
        max_seconds: stop after this time with a checkpoint that the same command goes on from.
        save_steps: steps between checkpoints.
        save_total_limit: checkpoints to keep, besides the best.
        eval_steps: steps between evaluations on held-out examples.
        logging_steps: steps between lines of the log.
    """

    num_train_steps: int = Field(default=1000, ge=1)
    per_device_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = Field(default=0, ge=0, lt=2**63)
    output_dir: str = "runs/train"
    resume: bool = True
    max_seconds: float | None = Field(default=None, gt=0)
    save_steps: int = Field(default=200, ge=1)
    save_total_limit: int = Field(default=2, ge=1)
    eval_steps: int = Field(default=200, ge=1)
    logging_steps: int = Field(default=10, ge=1)


class LoggingSection(Section):
    """Where figures go besides the files in ``output_dir``.

    Attributes:
        use_wandb: to Weights & Biases.
        project: its project.
        plot: draw the curves at the end, where matplotlib is installed.
    """

    use_wandb: bool = False
    project: str = "specstream"
    plot: bool = True


class LoRASection(Section):
    """Low-rank adapters inside the target, which make it a new model.

    Attributes:
        r: their rank.
        alpha: their scale is alpha / r.
        dropout: on their inputs.
        target_modules: the linear layers that get one, by the ends of their names. None takes those of the attention's
            queries, values and output, as the model's family calls them.
    """

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | None = Field(default=None, min_length=1)


class LoRATrainingSection(LoRASection):
    """The recipe ``lora``, and the part of ``shared`` that changes the base.

    Attributes:
        merge: write the whole new model too, in bfloat16, besides the adapters; ``shared`` always does.
    """

    merge: bool = False


class LiveSection(Section):
    """Decoding with what is trained, in every evaluation.

    Attributes:
        live_prompts: held-out prompts that are decoded, 0 for none; not in ``shared``, whose model always changes.
        live_tokens: of each answer to them.
    """

    live_prompts: int = Field(default=8, ge=0)
    live_tokens: int = Field(default=48, ge=1)


class StreamsSection(LiveSection):
    """The recipe ``streams``: speculative streams of a frozen target; in ``shared`` it is fine-tuned with them.

    Attributes:
        train: ``all`` of it, or the ``early_exit`` alone, on top of the streams of ``start_from``.
        gamma: streams of a position.
        layers: at the top of the target, that they run through.
        rank: of their changes to linear layers.
        alpha: those are scaled by alpha / rank.
        targets: the linear layers that are changed, by the ends of their names; none for all.
        start: what streams start from: the ``identity``, as in the paper's experiments, or a ``linear`` map that knows
            the token behind, too, which begins as the best one by least squares.
        pruning_rank: of the early exit's adapter; 0 for none.
        chain_rank: of the map by which the token drafted before changes what a stream says; 0 for none.
        chain_gate: let a stream's state decide how much each rank of that map counts.
        vocabulary: streams draft this many tokens, the most frequent ones of the data; None for all.
        soften: how much of a stream's target is the base's distribution, the rest is the token.
        fit_examples: of the data, that the linear start is fitted to.
        start_from: a folder of streams to go on from with other data, or ``shipped``: those that come with the
            package; None for new ones. A ``gamma`` beside it may ask for more streams than it has, a ``chain_rank`` or
            ``pruning_rank`` for a chain or an early exit that it lacks.
        weight: of each stream's loss beside the next token's, where both are learned.
    """

    train: Literal["all", "early_exit"] = "all"
    gamma: int = Field(default=4, ge=1)
    layers: int = Field(default=6, ge=1)
    rank: int = Field(default=16, ge=0)
    alpha: float = Field(default=32.0, gt=0)
    targets: list[str] = Field(default_factory=list)
    start: Literal["identity", "linear"] = "identity"
    pruning_rank: int = Field(default=0, ge=0)
    chain_rank: int = Field(default=0, ge=0)
    chain_gate: bool = False
    vocabulary: int | None = Field(default=None, ge=1)
    soften: float = Field(default=0.0, ge=0, le=1)
    fit_examples: int = Field(default=100, ge=1)
    start_from: str | None = None
    weight: float = Field(default=0.1, gt=0, allow_inf_nan=False)


class MedusaSection(LiveSection):
    """The recipe ``medusa``: Medusa-1 heads of a frozen target.

    Attributes:
        num_heads: tokens drafted beyond the next.
        num_layers: of each residual block.
        vocabulary: heads draft this many tokens, the most frequent ones of the data; None for all.
    """

    num_heads: int = Field(default=4, ge=1)
    num_layers: int = Field(default=1, ge=1)
    vocabulary: int | None = Field(default=None, ge=1)


class BlockSection(LiveSection):
    """The recipe ``block``: a block head of a frozen target.

    Attributes:
        gamma: tokens drafted in one pass of the head.
        layers: draft layers.
        window: the latest positions whose states the head reads, at most.
        chain_rank: of the map by which the token drafted before changes what is drafted behind it; 0 for none.
        chain_gate: let the head's state decide how much each rank of that map counts.
        vocabulary: the head drafts this many tokens, the most frequent ones of the data; None for all.
        anchors: positions of an example, drawn anew each time, whose blocks a step trains on; None for all.
        fit_examples: of the data, that the linear start is fitted to.
        start_from: a folder of a block head to go on from, whose settings are kept; or of streams of the same base, or
            ``shipped`` ones, whose vocabulary and token-to-token map a new head takes, and their linear start where it
            is of the same layer. None for a new head.
    """

    gamma: int = Field(default=4, ge=1)
    layers: int = Field(default=2, ge=1)
    window: int = Field(default=128, ge=1)
    chain_rank: int = Field(default=128, ge=0)
    chain_gate: bool = True
    vocabulary: int | None = Field(default=8192, ge=1)
    anchors: int | None = Field(default=None, ge=1)
    fit_examples: int = Field(default=100, ge=1)
    start_from: str | None = None


class EagleSection(LiveSection):
    """The recipe ``eagle3``: an EAGLE-3 head of a frozen target.

    Attributes:
        gamma: the deepest draft; as many steps are unrolled in training.
        taps: the target's layers whose inputs the head reads, from 0; none for the authors' choice: 2, the middle one
            and the third from the top.
        vocabulary: the head drafts this many tokens, the most frequent ones of the data; None for all.
        start_from: a folder or hub id of an EAGLE-3 head to go on from, whose settings are kept. None for a new head.
    """

    gamma: int = Field(default=4, ge=1)
    taps: list[int] = Field(default_factory=list)
    vocabulary: int | None = Field(default=8192, ge=1)
    start_from: str | None = None


class DraftSection(LiveSection):
    """The recipe ``draft``: a draft model for a target, on text or by ``distillation``.

    Attributes:
        train: ``all`` of it, or its ``layers``, while the embeddings and the head stay as they are.
        goal: the held-out figure of the best checkpoint: the ``acceptance`` of sampled drafts, the ``agreement`` of
            greedy ones, or ``live_accepted_length``.
        live_depth: tokens drafted a round there.
    """

    train: Literal["all", "layers"] = "all"
    goal: Literal["acceptance", "agreement", "live_accepted_length"] = "acceptance"
    live_depth: int = Field(default=4, ge=1)


class DistillationSection(Section):
    """Of the recipe ``draft``: learning from the target's distribution.

    Attributes:
        enabled: do; without, the draft learns the next token of the text.
        loss: how far the draft is from the target: a name of ``training/distillation.py``.
        temperature: softens both distributions.
        cross_entropy_weight: how much of the loss is the text's next token instead.
        top_k: tokens of the target's distribution that are looked at, and kept in ``model.states_dir``.
    """

    enabled: bool = False
    loss: Literal["forward_kl", "reverse_kl", "jsd", "tv"] = "forward_kl"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cross_entropy_weight: float = Field(default=0.0, ge=0, le=1)
    top_k: int = Field(default=64, ge=1)


class TrainConfig(Configuration):
    """One run: which recipe, and its sections. Left out, the recipe is the one whose sections are given."""

    recipe: Recipe
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    logging: LoggingSection = LoggingSection()
    lora: LoRATrainingSection = LoRATrainingSection()
    streams: StreamsSection = StreamsSection()
    medusa: MedusaSection = MedusaSection()
    block: BlockSection = BlockSection()
    eagle3: EagleSection = EagleSection()
    draft: DraftSection = DraftSection()
    distillation: DistillationSection = DistillationSection()


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from a YAML file.

    Args:
        path: the file.
        overrides: ``section.key=value``, the value in YAML; they replace what the file says.

    Raises:
        UsageError: a file that cannot be read, an unknown key, a value outside its range.
    """
    document = read_document(path, overrides, "training.num_train_steps=100")
    return train_config(document.values, document)


def _recipe_of(values: dict[str, Any]) -> str | None:
    """The recipe whose sections are given; with none of them ``draft``, if a draft model is."""
    given = set().union(*SECTIONS.values()) & set(values)
    fitting = [name for name, own in SECTIONS.items() if given and given <= own]
    if not given and isinstance(values.get("model"), dict) and values["model"].get("draft_model"):
        return "draft"
    return min(fitting, key=lambda name: len(SECTIONS[name]), default=None)


def train_config(values: dict[str, Any], document: Document | None = None) -> TrainConfig:
    """Values as a configuration.

    Args:
        values: by sections.
        document: the file that they stand in, for the lines of errors.

    Raises:
        UsageError: an unknown key, a value outside its range, a section of another recipe, a task that cannot be read.
    """
    values = {name: value for name, value in values.items() if value is not None}  # a section without lines
    if "recipe" not in values and (found := _recipe_of(values)) is not None:
        values["recipe"] = found
    config = validated(TrainConfig, values, document=document)
    if config.draft.goal == "live_accepted_length" and not config.draft.live_prompts:
        raise UsageError("draft.goal is 'live_accepted_length' and draft.live_prompts is 0; give some prompts")
    _check_early_exit(config)
    if config.model.states_gb is not None and config.model.states_dir is None:
        raise UsageError(
            f"model.states_gb is {config.model.states_gb:g} and model.states_dir is missing; give a folder"
        )
    others = set().union(*SECTIONS.values()) - SECTIONS[config.recipe]
    if strange := sorted(others & set(values)):
        raise UsageError(f"section {strange[0]!r} is given and recipe is {config.recipe!r}; leave one of them out")
    if config.data.task is not None:
        read_task(config.data.task)  # before a model is loaded for nothing
    return config


def _check_early_exit(config: TrainConfig) -> None:
    """Refuse to train an early exit alone where there would be no streams below it, or no exit."""
    section = config.streams
    if section.train != "early_exit":
        return
    if config.recipe != "streams":
        raise UsageError(f"streams.train is 'early_exit' and recipe is {config.recipe!r}; give recipe: streams")
    if section.start_from is None:
        raise UsageError("streams.train is 'early_exit' and streams.start_from is missing; give 'shipped' or a folder")
    if not section.pruning_rank:
        raise UsageError("streams.train is 'early_exit' and streams.pruning_rank is 0; give a rank, such as 8")
    used = {"train", "start_from", "pruning_rank", "soften", "live_prompts", "live_tokens"}
    given, usual = section.model_dump(exclude=used), StreamsSection().model_dump(exclude=used)
    if idle := [name for name, value in given.items() if value != usual[name]]:
        raise UsageError(f"streams.train is 'early_exit' and streams.{idle[0]} is given; leave it out: streams stay")
