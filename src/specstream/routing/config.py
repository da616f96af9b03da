"""What a router chooses from, and how it goes on learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from specstream.errors import UsageError
from specstream.files.atomic import path_of
from specstream.files.yaml_file import Configuration, Section, read_document, validated

NONE = "none"
"""The name of plain decoding among the drafters: what the others are measured against."""


class DrafterSpec(Section):
    """One of the drafters that are chosen from.

    Attributes:
        drafter: its kind, as ``SpeculativeEngine(drafter=)`` has it.
        draft: the draft model, where it needs one.
        heads: the folder of its heads, where it has some that are not shipped.
        gamma: most passes of the draft model a round; only where it drafts with one.
        draft_quantization: of the draft model's weights.
    """

    drafter: str
    draft: str | None = None
    heads: str | None = None
    gamma: int | None = Field(default=None, ge=1)
    draft_quantization: Literal["auto", "none", "int8", "int4"] = "auto"


class RouterConfig(Configuration):
    """A trained router at work.

    Attributes:
        router: the folder that ``specstream router train`` wrote.
        state: the file in which what was learned since is kept; None keeps it in memory.
        learn: go on learning from what was measured.
        explore: how much chance there is in the choice: 1 is Thompson sampling, 0 always takes what looks best.
        doubt: how far the trained table may be off, as a share of a speed, before anything contradicts it.
        memory: generations after which what was learned has faded to a third.
        seed: of the choices.
    """

    router: str
    state: str | None = None
    learn: bool = True
    explore: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    doubt: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    memory: float = Field(default=200.0, ge=1, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**63)


def router_config(config: RouterConfig | Mapping[str, Any] | str | Path) -> RouterConfig:
    """A configuration from itself, from its fields, or from a YAML file of them.

    Raises:
        UsageError: a file that cannot be read, an unknown key, a value outside its range.
    """
    if isinstance(config, RouterConfig):
        return config
    if not isinstance(config, Mapping):
        if path_of("config", config, "{'router': FOLDER}, or a YAML file").is_dir():
            raise UsageError(
                f"config is the folder {str(config)!r}; give {{'router': {str(config)!r}}}, or a YAML file"
            )
        try:
            document = read_document(config, (), "explore=0")
        except UsageError:
            if Path(config).name != "config.json":
                raise
            said = f"config {str(config)!r} is that of a router's folder; give"
            raise UsageError(f"{said} {{'router': {str(Path(config).parent)!r}}}") from None
        return validated(RouterConfig, document.values, document=document)
    if isinstance(config.get("router"), Mapping) or "draft_models" in config:
        given = "draft_models is given" if "draft_models" in config else "router is a mapping"
        raise UsageError(
            f"{given}; a router is trained before it is used: specstream router collect, then "
            "specstream router train with this file, then give router, the folder that it wrote"
        )
    return validated(RouterConfig, config)


def check_drafters(drafters: Mapping[str, Any]) -> None:
    """Refuse what there is nothing to choose from.

    Raises:
        UsageError: fewer than two drafters, or plain decoding under another name.
    """
    if len(drafters) < 2:
        raise UsageError(
            f"the router has {len(drafters)} drafter{'s' * (len(drafters) != 1)} to choose from"
            f"{''.join(f' ({name})' for name in drafters)}; give it at least two, '{NONE}' being one"
        )
