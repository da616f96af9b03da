"""Fitting a router's table to what was measured: small data, so few directions, one hidden layer, and early stopping.

When to stop is found by cross-validation, and the residuals of the held-out folds are the noise that the online part
reckons with. The table itself is then fitted to all of the data for that many epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import huber_loss

from specstream.files.yaml_file import Section
from specstream.routing.features import HINTS
from specstream.routing.model import Network

LEAST_NOISE = 0.02
"""Nothing is measured better than this: a noise of 0 would have the first look decide."""


class FitSection(Section):
    """How the table is fitted.

    Attributes:
        hidden: width of the hidden layer.
        reduced: main directions that are kept of the embedding.
        epochs: most passes over the data.
        patience: epochs without a better held-out loss after which a fold ends.
        folds: of the cross-validation.
        learning_rate: Adam's.
        weight_decay: AdamW's.
        seed: of the first weights and of the folds.
    """

    hidden: int = Field(default=24, ge=1)
    reduced: int = Field(default=16, ge=0)
    epochs: int = Field(default=400, ge=1)
    patience: int = Field(default=40, ge=1)
    folds: int = Field(default=5, ge=2)
    learning_rate: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**63)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What was measured of some prompts.

    Attributes:
        features: ``[n, features]`` float32.
        ratios: log of each drafter's speed over plain decoding's, ``[n, outputs]``.
        weights: what is at stake: seconds of plain decoding, ``[n]``.
    """

    features: Tensor
    ratios: Tensor
    weights: Tensor

    def take(self, rows: Tensor) -> Samples:
        """Some of the prompts."""
        return Samples(features=self.features[rows], ratios=self.ratios[rows], weights=self.weights[rows])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A table, and how good it is on prompts that it was not fitted to.

    Attributes:
        network: the table.
        epochs: it was fitted for.
        noise: standard deviation of the held-out folds' residuals, of each output.
        held_out_loss: mean over the folds, at the epoch where each was best.
    """

    network: Network
    epochs: int
    noise: list[float]
    held_out_loss: float


def fit(samples: Samples, section: FitSection) -> Fitted:
    """A table for the samples; chance is ``section.seed``'s alone."""
    generator = torch.Generator().manual_seed(section.seed)
    order = torch.randperm(len(samples), generator=generator)
    folds = [fold for fold in order.chunk(section.folds) if len(fold)]
    epochs, losses = [], []
    residuals = torch.zeros_like(samples.ratios)
    for number, fold in enumerate(folds if len(folds) > 1 else []):
        rest = torch.cat([other for at, other in enumerate(folds) if at != number])
        epoch, loss, residuals[fold] = _stopped_early(samples.take(rest), samples.take(fold), section)
        epochs.append(epoch)
        losses.append(loss)
    count = int(median(epochs)) if epochs else section.epochs
    network, step = _begin(samples, section)
    for _ in range(count):
        step()
    noise = residuals.square().mean(0).sqrt().clamp(min=LEAST_NOISE).tolist()
    loss = sum(losses) / len(losses) if losses else float("nan")
    return Fitted(network=network.eval(), epochs=count, noise=noise, held_out_loss=loss)


def _stopped_early(samples: Samples, held_out: Samples, section: FitSection) -> tuple[int, float, Tensor]:
    """The best epoch of a fold, its held-out loss and its residuals."""
    network, step = _begin(samples, section)
    inputs = network.standardise(held_out.features)
    best = (0, math.inf, held_out.ratios)
    for epoch in range(1, section.epochs + 1):
        step()
        with torch.no_grad():
            ratios, _ = network(inputs)
        loss = float(_loss(ratios, held_out))
        if epoch == 1 or loss < best[1]:
            best = (epoch, loss, held_out.ratios - ratios)
        elif epoch - best[0] >= section.patience:
            break
    return best


def _begin(samples: Samples, section: FitSection) -> tuple[Network, Callable[[], None]]:
    """A network that knows the features' scale and nothing else, and what fits it by one epoch."""
    embedding = samples.features[:, len(HINTS) :]
    reduced = min(section.reduced, embedding.shape[1], max(len(samples) - 1, 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        network = Network(
            embedding=embedding.shape[1], reduced=reduced, hidden=section.hidden, outputs=samples.ratios.shape[1]
        )
    with torch.no_grad():
        if reduced:
            network.mean.copy_(embedding.mean(0))
            _, _, directions = torch.linalg.svd(embedding - network.mean, full_matrices=False)
            network.basis.copy_(directions[:reduced].T)
        inputs = network.standardise(samples.features)
        network.centre.copy_(inputs.mean(0))
        deviation = inputs.std(0, unbiased=False)
        network.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))
        # The output begins as the mean of what was measured: what to believe of a prompt that nothing is known of.
        weights = samples.weights[:, None] / samples.weights.sum()
        network.output.weight.zero_()
        network.output.bias.copy_((samples.ratios * weights).sum(0))
    return network, _stepper(network, samples, section)


def _stepper(network: Network, samples: Samples, section: FitSection) -> Callable[[], None]:
    """What fits the network by one epoch: all of the samples at once."""
    inputs = network.standardise(samples.features)
    decayed = [network.hidden.weight, network.output.weight]
    rest = [network.hidden.bias, network.output.bias]
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=section.learning_rate)

    def step() -> None:
        ratios, _ = network(inputs)
        optimizer.zero_grad()
        _loss(ratios, samples).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _loss(ratios: Tensor, samples: Samples) -> Tensor:
    each = huber_loss(ratios, samples.ratios, reduction="none", delta=0.3).mean(1)
    return (each * samples.weights).sum() / samples.weights.sum()
