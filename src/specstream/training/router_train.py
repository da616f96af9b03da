"""A router from collections: split by prompt, features, the table, and what it is worth on prompts held out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from specstream.environment import provenance
from specstream.errors import HeadMismatchError, UsageError
from specstream.files.atomic import write_json
from specstream.files.yaml_file import validated
from specstream.heads.folder import describe_base
from specstream.models.hub.load import load_model
from specstream.reporting import announce
from specstream.routing.config import NONE, DrafterSpec, RouterConfig, check_drafters
from specstream.routing.features import Features, make_embedding, token_table
from specstream.routing.figures import RouterTable, router_table, speed
from specstream.routing.learn import Samples, fit
from specstream.routing.model import RouterModel
from specstream.routing.records import Collected, read_collected
from specstream.routing.router import Router
from specstream.training.answers import drawn, files_sha256
from specstream.training.checkpoints import check_replaceable, replace_folder
from specstream.training.router_config import DataSection, RouterTrainConfig, TargetSection

_FIGURES = "figures.json"
"""What a training leaves beside the router: a folder without it holds something else."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to.

    Attributes:
        prompts: fitted to, held out, and failed in the collection.
        epochs: that the table was fitted for.
        held_out_loss: of the cross-validation.
        table: on the prompts held out.
    """

    prompts: dict[str, int]
    epochs: int
    held_out_loss: float
    table: RouterTable


def train_router(config: RouterTrainConfig) -> Trained:
    """Fit a router to collections and write it into ``output_dir``.

    Raises:
        UsageError: collections that cannot be read or do not go together, or too few prompts.
        HeadMismatchError: they are of another target.
    """
    output = Path(config.output_dir).absolute()
    check_replaceable(Path(config.output_dir), _FIGURES, "output_dir")
    training, held_out, failed = _split(config)
    metas = [_meta(file) for file in (*config.data.files, *config.data.held_out_files)]
    drafters = _drafters(metas, config.data)
    training, held_out = ([each.of(drafters) for each in part] for part in (training, held_out))
    target, tokenizer = load_model(config.target.model, dtype=config.target.dtype, device=config.target.device)
    _check_base(metas, describe_base(target))
    table = token_table(tokenizer, int(target.get_input_embeddings().num_embeddings))
    embedding = make_embedding(config.embedding.name, config.embedding.model, target, tokenizer)
    outputs = [name for name in drafters if name != NONE]
    if config.fit.folds > len(training):
        announce(f"fit.folds is {config.fit.folds} and there are {len(training)} prompts, so each is a fold")
    fitted = fit(_samples(training, Features(table, embedding), outputs), config.fit)
    router = RouterModel(
        network=fitted.network,
        table=table,
        drafters=drafters,
        noise=dict(zip(outputs, fitted.noise, strict=True)),
        base=describe_base(target),
        embedding=config.embedding.model_dump(),
        plain_tokens_per_second=speed([run for each in training for run in each.runs[NONE]]),
        details=_details(config),
    )
    trained = Trained(
        table=judge(router, held_out, target, tokenizer),
        prompts={"fitted": len(training), "held_out": len(held_out), "failed": failed},
        epochs=fitted.epochs,
        held_out_loss=fitted.held_out_loss,
    )

    def fill(folder: Path) -> None:
        router.save(folder)
        write_json(folder / _FIGURES, asdict(trained))

    replace_folder(output, fill)
    return trained


def evaluate_router(folder: str, files: Sequence[str], target: TargetSection, *, learn: bool = False) -> RouterTable:
    """The table of a router on collections, of its drafters at least, that it was not fitted to; see ``judge``.

    Raises:
        UsageError: collections that cannot be read, or in which a drafter of the router is missing.
        HeadMismatchError: the router is another target's.
    """
    router = RouterModel.load(folder)
    collected, _ = read_collected(files)
    if not set(collected[0].runs) >= set(router.names):
        raise UsageError(
            f"the collection is of {', '.join(sorted(collected[0].runs))} and the router of "
            f"{', '.join(sorted(router.names))}; collect with the same drafters"
        )
    fitted = router.details.get("data", {}).get("files", {}).values()
    for file, digest in files_sha256(files).items():
        if digest in fitted:
            announce(f"{file!r} has prompts that the router was fitted to, on which it looks better than it is")
    model, tokenizer = load_model(target.model, dtype=target.dtype, device=target.device)
    return judge(router, [each.of(router.names) for each in collected], model, tokenizer, learn=learn)


def judge(
    model: RouterModel, collected: Sequence[Collected], target: Any, tokenizer: Any, *, learn: bool = False
) -> RouterTable:
    """What a router chooses for prompts that were measured, and what the choices cost here.

    With ``learn`` it draws by what is believed and learns from each choice; otherwise the table alone decides, at the
    same cost.
    """
    config = RouterConfig(router="", learn=learn, explore=1.0 if learn else 0.0)
    router = Router(model, config, torch.Generator().manual_seed(config.seed))
    router.bind(target, tokenizer)
    router.choose(collected[0].token_ids)  # the first call loads what the others find there
    chosen, seconds = [], []
    for each in collected:
        choice = router.choose(each.token_ids)
        chosen.append(choice.drafter)
        seconds.append(choice.seconds)
        if learn:
            plain = speed(each.runs[NONE])
            router.observe(choice.features, choice.drafter, speed(each.runs[choice.drafter]), plain=plain)
    return router_table(collected, chosen, seconds)


def _split(config: RouterTrainConfig) -> tuple[list[Collected], list[Collected], int]:
    """Prompts to fit to, prompts to judge by, and how many failed."""
    data = config.data
    collected, failures = read_collected(data.files)
    failed = len(failures)
    if data.held_out_files:
        held_out, others = read_collected(data.held_out_files)
        failed += len(others)
        known = {each.prompt for each in held_out}
        training = [each for each in collected if each.prompt not in known]
        if training and set(training[0].runs) != set(held_out[0].runs):
            raise UsageError("data.held_out_files were measured with other drafters; collect with the same")
    else:
        held_out = []
        for domain in dict.fromkeys(each.domain for each in collected):
            own = [each for each in collected if each.domain == domain]
            own.sort(key=lambda each: drawn(data.seed, each.prompt))
            held_out += own[: round(len(own) * data.held_out)]
        taken = {each.prompt for each in held_out}
        training = [each for each in collected if each.prompt not in taken]
    if len(training) < 2 or not held_out:
        raise UsageError(
            f"{len(training)} prompts are left to fit to and {len(held_out)} are held out; "
            "give another data.held_out, or collect more of them"
        )
    return training, held_out, failed


def _samples(collected: Sequence[Collected], features: Features, outputs: Sequence[str]) -> Samples:
    plain = [speed(each.runs[NONE]) for each in collected]
    ratios = [
        [math.log(speed(each.runs[name]) / base) for name in outputs]
        for each, base in zip(collected, plain, strict=True)
    ]
    weights = [mean(run.seconds for run in each.runs[NONE]) for each in collected]
    return Samples(
        features=torch.stack([features(each.token_ids) for each in collected]),
        ratios=torch.tensor(ratios),
        weights=torch.tensor(weights),
    )


def _meta(file: str) -> Mapping[str, Any]:
    """The record beside a collection."""
    path = Path(file.removesuffix(".partial") + ".meta.json")
    try:
        record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["drafters"], record["base"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file!r} has no record beside it: {error}; keep {path.name}, which its collection wrote"
        ) from None
    return record


def _drafters(metas: Sequence[Mapping[str, Any]], data: DataSection) -> dict[str, DrafterSpec]:
    """What was collected with, as far as it is to be chosen from."""
    measured = metas[0]["drafters"]
    for meta in metas:
        if meta["drafters"] != measured:
            raise UsageError(f"the collections have other drafters than {data.files[0]!r}; collect them with the same")
    wanted = list(measured) if data.drafters is None else data.drafters
    if NONE not in wanted:
        raise UsageError(f"data.drafters is {', '.join(wanted)}; add '{NONE}', the measure of all")
    if unknown := [name for name in wanted if name not in measured]:
        raise UsageError(f"data.drafters has {unknown[0]!r}, which was not measured; take of {', '.join(measured)}")
    chosen = {name: spec for name, spec in measured.items() if name in wanted}
    check_drafters(chosen)
    return {name: validated(DrafterSpec, spec, f"drafters.{name}.") for name, spec in chosen.items()}


def _check_base(metas: Sequence[Mapping[str, Any]], own: Mapping[str, str]) -> None:
    for meta in metas:
        base = meta["base"]
        if base["fingerprint"] != own["fingerprint"]:
            raise HeadMismatchError(
                f"the collection is of {base['name']} ({base['fingerprint']}) and target.model is {own['name']} "
                f"({own['fingerprint']}); give that model, or collect with this one"
            )


def _details(config: RouterTrainConfig) -> dict[str, Any]:
    data = config.data
    return {
        "target": config.target.model_dump(),
        "fit": config.fit.model_dump(),
        "data": {"files": files_sha256(data.files), "held_out_files": files_sha256(data.held_out_files)},
        "provenance": provenance(config.target.device, config.target.dtype),
    }
