"""A draft model for a target: next tokens on a domain's text, or distillation from what the target says there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from specstream.drafters.draft_model import DraftModelDrafter
from specstream.errors import UsageError, VocabularyMismatchError
from specstream.models.architecture.blocks import called, source_of, unquantised
from specstream.models.architecture.compat import text_config
from specstream.models.hub.load import load_model
from specstream.models.hub.vocabulary import cut_head, read_part, write_part
from specstream.models.target.hf import HuggingFaceTarget
from specstream.training.cards import MADE
from specstream.training.config import DistillationSection, DraftSection, TrainConfig
from specstream.training.data import Batch
from specstream.training.distillation import Teacher, distance
from specstream.training.live_evaluation import Live
from specstream.training.trainee import Goal


class TrainedDraft:
    """A draft model in float32, by its name, with its head cut where it says some tokens only."""

    def __init__(self, name: str, train: str, device: str) -> None:
        self.model, self.tokenizer = load_model(name, dtype="float32", device=device)
        if (source := source_of(self.model)) is not None:
            raise UsageError(
                f"draft_model is {name!r}, {called(source)}, which cannot be trained; give {unquantised(source)}"
            )
        self._folder = Path(self.model.config.name_or_path)
        self._dtype = AutoConfig.from_pretrained(self._folder, trust_remote_code=False).dtype or torch.float32
        part = read_part(self._folder)
        self.model.requires_grad_(True)
        self._whole: Any = None
        if part is not None:
            self._whole = cut_head(self.model, part)
            if train == "all":  # its head goes its own way from here
                self._whole.weight = nn.Parameter(self._whole.weight.detach().clone(), requires_grad=False)
                text_config(self.model).tie_word_embeddings = False
        if train == "layers":
            for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                module.requires_grad_(False)
        self.part = None if part is None else part.to(self.model.device)
        size = int(self.model.get_input_embeddings().num_embeddings)
        self._rows = torch.arange(size) if part is None else torch.full((size,), -1)
        if part is not None:
            self._rows[part] = torch.arange(len(part))
        self._rows = self._rows.to(self.model.device)

    def rows(self, tokens: Tensor) -> Tensor:
        """Which rows of the head are these tokens' (of any shape, int64); -1 where none is."""
        return self._rows[tokens]

    def tokens(self, rows: Tensor) -> Tensor:
        """Which tokens are these rows of the head."""
        return rows if self.part is None else self.part[rows]

    def logits(self, batch: Batch) -> Tensor:
        """Where the batch has a token to be predicted, row by row: ``[positions, size]``."""

        def select(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (given[0][:, :-1][batch.mask[:, 1:]],)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            logits: Tensor = self.model(input_ids=batch.tokens, use_cache=False).logits
            return logits
        finally:
            hook.remove()

    def save(self, folder: Path) -> None:
        """As a plain folder in the dtype it came in, whole at both ends."""
        cut = self.model.get_output_embeddings()
        if self._whole is not None:
            if cut.weight.requires_grad:
                assert self.part is not None
                with torch.no_grad():
                    for name, parameter in cut.named_parameters():
                        getattr(self._whole, name)[self.part] = parameter
            self.model.set_output_embeddings(self._whole)
        try:
            deepcopy(self.model).to(self._dtype).save_pretrained(folder)
        finally:
            self.model.set_output_embeddings(cut)
        self.tokenizer.save_pretrained(folder)
        if self.part is not None:
            write_part(folder, self.part)
        if (self._folder / MADE).is_file():
            shutil.copyfile(self._folder / MADE, folder / MADE)


class DraftTrainee:
    """A draft that learns to be accepted; the teacher judges it, and is learnt from where that is asked for."""

    def __init__(
        self,
        draft: TrainedDraft,
        teacher: Teacher,
        settings: tuple[DraftSection, DistillationSection],
        live: Live,
        vocab_size: int,
    ) -> None:
        self._draft, self._teacher, self._live = draft, teacher, live
        self._section, self._distillation = settings
        self.goal = Goal(figure=self._section.goal)
        drafting = HuggingFaceTarget(draft.model, runtime="eager", exact=False)  # others keep copies of weights
        self._drafter = DraftModelDrafter(
            drafting, gamma=self._section.live_depth, vocab_size=vocab_size, part=draft.part
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        return [each for each in self._draft.model.parameters() if each.requires_grad]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, settings = self._draft.logits(batch), self._distillation
        following = self._draft.rows(batch.tokens[:, 1:][batch.mask[:, 1:]])
        entropy = _cross_entropy(logits, following)
        if not settings.enabled:
            return entropy, {}
        said = self._teacher.says(batch)
        apart = distance(settings.loss, logits, said, self._draft.rows(said.tokens), settings.temperature)
        weight = settings.cross_entropy_weight
        return (1 - weight) * apart + weight * entropy, {settings.loss: apart, "cross_entropy": entropy}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How the draft fares against the target on held-out text, and in decoding itself.

        ``acceptance`` is the mean of the sum of min(p, q) over the target's top-k tokens, the rate at which sampled
        drafts are accepted; ``agreement`` that of greedy ones, both finding the same token likeliest.
        """
        sums, count, prompts = torch.zeros(3, dtype=torch.float64), 0, list[list[int]]()
        for batch in batches:
            logits, said = self._draft.logits(batch).float(), self._teacher.says(batch)
            places = self._draft.rows(said.tokens)
            q = torch.where(places >= 0, logits.softmax(-1).gather(1, places.clamp_min(0)), 0.0)
            accepted = torch.minimum(q, said.probabilities).sum(-1)
            hits = self._draft.tokens(logits.argmax(-1)) == said.tokens[:, 0]
            following = self._draft.rows(batch.tokens[:, 1:][batch.mask[:, 1:]])
            entropy = _cross_entropy(logits, following) * len(logits)
            sums += torch.stack([accepted.sum(), hits.sum(), entropy]).double().cpu()
            count += len(logits)
            prompts += batch.prompts
        acceptance, agreement, loss = (sums / max(1, count)).tolist()
        figures = {"acceptance": acceptance, "agreement": agreement, "loss": loss}
        return {**figures, **self._live.figures(self._drafter, self._section.live_depth, prompts)}

    def save(self, folder: Path) -> None:
        self._draft.save(folder)


def prepare(config: TrainConfig, device: str) -> tuple[DraftTrainee, Any]:
    """The draft that is named, beside its target."""
    section, distillation = config.draft, config.distillation
    if config.model.draft_model is None:
        raise UsageError(
            "model.draft_model is missing; give a small model of the target's tokenizer, or make one: "
            "specstream make-draft"
        )
    target, tokenizer = load_model(config.model.target_model, dtype=config.model.dtype_on(device), device=device)
    target.requires_grad_(False)
    draft = TrainedDraft(config.model.draft_model, section.train, device)
    if tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise VocabularyMismatchError(
            f"model.draft_model {config.model.draft_model!r} has another tokenizer than {config.model.target_model!r}; "
            "give a draft of the same, or make one: specstream make-draft"
        )
    torch.manual_seed(config.training.seed)
    teacher = Teacher(
        target,
        top_k=distillation.top_k,
        temperature=distillation.temperature,
        folder=config.model.states_dir,
        most_gb=config.model.states_gb,
    )
    live = Live(target, tokenizer, section.live_prompts, section.live_tokens)
    size = int(target.get_input_embeddings().num_embeddings)
    return DraftTrainee(draft, teacher, (section, distillation), live, size), tokenizer


def _cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean over the tokens that the draft can say."""
    total = nn.functional.cross_entropy(logits.float(), rows, ignore_index=-1, reduction="sum")
    return total / (rows >= 0).sum().clamp_min(1)
