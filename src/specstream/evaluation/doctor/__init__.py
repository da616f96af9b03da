"""`specstream doctor`: what this machine runs, how fast, what is to be mended. Works where something is broken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from specstream.environment import level
from specstream.errors import UsageError, reason_of
from specstream.evaluation.doctor import facts, findings
from specstream.evaluation.doctor.facts import Caches, Gpus, Passes, Processor, Version, Widths
from specstream.evaluation.doctor.findings import Finding

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found. A section is None where it was left out or could not be examined; then a finding says so.

    Attributes:
        speed: a ``Speed`` as plain values: its module needs torch.
        pass_costs: see ``speed.pass_costs``; predicted from the speed.
        findings: what to mend.
        notes: what is worth knowing and nothing to mend.
    """

    versions: tuple[Version, ...] | None
    processor: Processor | None
    passes: Passes | None
    gpus: Gpus | None
    caches: Caches | None
    widths: Widths | None
    speed: dict[str, Any] | None
    pass_costs: dict[str, Any] | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; seconds and bytes."""
        return {"healthy": not self.findings, **asdict(self)}


@dataclass
class _Sections:
    """Examines one section after another, whatever happens to those before."""

    failed: dict[str, list[str]] = field(default_factory=dict)

    def examine(self, name: str, look: Callable[[], T]) -> T | None:
        """What ``look`` returns; None if it fails. A wrong call is the caller's to hear of."""
        try:
            return look()
        except UsageError:
            raise
        except Exception as error:  # a broken package may raise anything
            self.failed.setdefault(reason_of(error), []).append(name)
            return None

    @property
    def findings(self) -> list[Finding]:
        remedy = "install anew what that names, or report it with the output of this command"
        return [
            Finding(about=names[0], problem=f"{', '.join(names)} could not be examined: {reason}", remedy=remedy)
            for reason, names in self.failed.items()
        ]


def examine(
    model: str | None,
    *,
    measure: bool = True,
    hush: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Report:
    """Look at everything.

    Args:
        model: whose batch-invariant widths and costs are wanted; None for none. It is never downloaded.
        measure: take five seconds to measure memory and arithmetic, and measure costs that are not kept.
        hush: silences libraries while the model is loaded.

    Raises:
        UsageError: ``SPECSTREAM_CPU`` cannot be followed.
        ModelNotFoundError: nothing answers to the model's name.
    """
    level()
    sections = _Sections()
    versions = sections.examine("versions", facts.versions)
    processor = sections.examine("processor", facts.processor)
    passes = sections.examine("passes", facts.passes)
    gpus = sections.examine("gpu", facts.gpus)
    widths = None if model is None else sections.examine("widths", lambda: facts.widths(model, hush, measure=measure))
    caches = sections.examine("caches", facts.caches)
    speed, costs = (sections.examine("speed", lambda: _measured(widths)) if measure else None) or (None, None)
    found = [
        *findings.of_versions(versions or ()),
        *(findings.of_processor(processor) if processor else ()),
        *(findings.of_passes(passes) if passes else ()),
        *(findings.of_gpus(gpus) if gpus else ()),
        *(findings.of_caches(caches) if caches else ()),
        *(findings.of_widths(widths) if widths else ()),
        *sections.findings,
    ]
    return Report(
        versions=versions,
        processor=processor,
        passes=passes,
        gpus=gpus,
        caches=caches,
        widths=widths,
        speed=speed,
        pass_costs=costs,
        findings=tuple(found),
        notes=tuple(findings.notes(processor, widths)),
    )


def _measured(widths: Widths | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The speed of this machine, and what passes cost of the model that was looked at, else of the default one."""
    import torch

    from specstream.evaluation.doctor.speed import pass_costs, speed
    from specstream.models.hub.catalog import DEFAULT_MODEL, catalog
    from specstream.models.runtime.capabilities import capabilities

    device = facts.default_device()
    if widths is not None and widths.parameters and widths.bytes and widths.dtype:
        measured = speed(device, getattr(torch, widths.dtype))
        return asdict(measured), pass_costs(widths.model, widths.parameters, widths.bytes, measured)
    # The models of the catalog read all that they have in every pass: the head is the embedding.
    entry = catalog().get(widths.model if widths else DEFAULT_MODEL) or catalog()[DEFAULT_MODEL]
    dtype = capabilities(device, torch.bfloat16).dtype.value
    measured = speed(device, dtype)
    costs = pass_costs(entry.name, entry.parameters, entry.parameters * dtype.itemsize, measured)
    return asdict(measured), costs
