"""`specstream demo`: a page that shows plain and speculative decoding side by side."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from specstream.cli import options
from specstream.models.hub.catalog import check, on_disk

_Models = Annotated[
    options.Texts, typer.Option("--model", "-m", help="As in generate; may be repeated, and the page lets choose.")
]
_Host = Annotated[str, typer.Option("--host", help="Where to listen; 127.0.0.1 is this machine only.")]
_Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Likewise; 0 takes a free one.")]


def demo(
    model: _Models = None,
    draft: options.Draft = None,
    drafter: options.Drafter = "auto",
    heads: options.HeadsFolder = None,
    router: options.RouterFolder = None,
    max_new_tokens: options.MaxNewTokens = 100,
    k: options.Depth = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    host: _Host = "127.0.0.1",
    port: _Port = 7860,
) -> None:
    """Open a page on which a model answers with and without drafts: who proposed which token, and how fast."""
    from specstream.environment import require

    options.check_drafter(drafter)
    models = model or ["smollm2-135m"]
    for each in models:
        on_disk(each)  # refuses what is no model
    shown: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    drafting: dict[str, Any] = {
        "drafter": drafter,
        "heads": heads,
        "router": router,
        "gamma": k,
        "max_speculation_depth": k,
        "dtype": dtype,
        "device": device,
        "runtime": runtime,
    }
    from specstream.config import engine_config

    settings = engine_config({**shown, **drafting}).generation  # type: ignore[typeddict-item]
    options.check_draft(draft, models[0])
    _check_models(models, heads, router)
    from specstream.cli.loading import quiet
    from specstream.demo import run
    from specstream.reporting import step

    port = run.free_port(host, port)
    require("gradio", "demo", "specstream demo")
    with step("starting the page"):  # Gradio and torch take ten seconds to import
        from specstream.demo.offered import OfferedModels
        from specstream.demo.page import build_page

    offered = OfferedModels(models, draft, **drafting)
    with quiet():
        page = build_page(offered, settings)
    if options.open_to_others(host):
        print(f"warning: {host} is open to others and the page asks for no key", file=sys.stderr)
    print(f"the demo is on http://{host}:{port}", file=sys.stderr, flush=True)
    run.listen(page, host, port)


def _check_models(models: list[str], heads: str | None, router: str | None) -> None:
    """Refuse models and routers that are not there, and heads of another model, before the page is imported."""
    if router is not None:
        from specstream.routing.model import RouterModel

        RouterModel.load(router)
    if heads is not None:
        from specstream.heads.folder import check_base_name

        check_base_name(heads, models[0])
    for each in models if heads is None else models[:1]:  # heads for several models are refused with the page
        check(each)
