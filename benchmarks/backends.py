"""Systems as a worker loads them: ours and transformers. Nothing here is imported by the driver.

A backend takes the load request (see ``workers.py``) and offers ``generate(prompts, limit, ignore_eos)``. Everything it
does there is on the clock: tensors in, lists of tokens out, the prompt included.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

Request = dict[str, Any]
Tokens = list[list[int]]


class Backend(Protocol):
    """One loaded system."""

    versions: dict[str, str]

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        """New tokens of each prompt, and what else is worth keeping."""


class SpecStream:
    """Ours; ``mode`` is the drafter's name."""

    def __init__(self, request: Request) -> None:
        from dataclasses import replace

        from specstream import SpeculativeEngine
        from specstream.distribution import VERSION
        from specstream.models.architecture.checkpoint import CheckpointRules

        options = dict(request["options"])
        chain = options.pop("chain", False)
        settings: dict[str, Any] = {"drafter": request["mode"], "dtype": request["dtype"], "memory": False, **options}
        if request["k"]:
            settings.update(gamma=request["k"], max_speculation_depth=request["k"])
        self._engine = SpeculativeEngine(request["target"], draft_model=request["draft"], **settings)
        ends = frozenset(request["eos"])
        # The other systems are asked without the checkpoint's rules, such as its repetition penalty.
        self._parts = replace(self._engine.parts, eos_token_ids=ends, checkpoint=CheckpointRules())
        if chain:  # as vLLM drafts with heads, in place of a tree
            drafter: Any = self._parts.drafter
            nodes = request["k"] or drafter.depth
            self._parts = self._parts.with_drafter(type(drafter)(drafter.head, nodes=nodes, ranks=1))
        self.versions = {
            "specstream": VERSION,
            **_versions("torch", "transformers"),
            "runtime": self._engine.target.runtime.name,
        }

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        from specstream.config import GenerationConfig
        from specstream.engine.generation import Generation
        from specstream.engine.inventory import prepare

        config = GenerationConfig(max_new_tokens=limit, ignore_eos=ignore_eos)
        prepare(self._parts, len(prompts))  # as the engine does: without costs the policy would learn them as it goes
        generation = Generation(self._parts, prompts, config).run()
        stats = [row.stats for row in generation.rows]
        return [row.emitted for row in generation.rows], {
            "passes": sum(each.target_passes for each in stats),
            "drafted": sum(each.drafted for each in stats),
            "accepted": sum(each.accepted for each in stats),
            "prefill_seconds": generation.timings.prefill,
            "exact": generation.rows[0].exact,
        }


class Transformers:
    """``generate``, assisted generation, prompt lookup."""

    def __init__(self, request: Request) -> None:
        self._options: dict[str, Any] = dict(request["options"])
        request = {**request, "dtype": self._options.pop("dtype", request["dtype"])}
        self._model = load_transformers(request["target"], request)
        if request["mode"] == "assisted":
            self._options["assistant_model"] = draft = load_transformers(request["draft"], request)
            if request["k"]:
                draft.generation_config.num_assistant_tokens = request["k"]
        elif request["mode"] == "lookup":
            self._options["prompt_lookup_num_tokens"] = request["k"] or 10
        self._eos, self._pad = list(request["eos"]), request["pad"]
        self.versions = _versions("transformers", "torch")

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        torch = import_module("torch")
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = [[self._pad] * missing + prompt for missing, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * missing + [1] * len(prompt) for missing, prompt in zip(padding, prompts, strict=True)]
        # On the model's own settings, which were emptied: an assisted call hands them to the assistant as well.
        self._model.generation_config.eos_token_id = None if ignore_eos else self._eos
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=self._pad,
                **self._options,
            )
        ends = [] if ignore_eos else self._eos
        return [until_end(row[longest:].tolist(), ends) for row in output], {}


def load_transformers(name: str, request: Request) -> Any:
    """A model in eval mode that decodes greedily: none of its checkpoint's generation settings but the ends."""
    torch, transformers = import_module("torch"), import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, request["dtype"]))
    model.generation_config = transformers.GenerationConfig(eos_token_id=request["eos"], pad_token_id=request["pad"])
    return model.eval()


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to the first end, which is kept; batches are padded behind it."""
    first = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: first + 1])


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def load(request: Request) -> Backend:
    """The backend of a load request.

    Raises:
        ImportError: the engine is not installed in this environment.
    """
    from benchmarks import peer_backends

    engines: dict[str, type[Any]] = {
        "specstream": SpecStream,
        "transformers": Transformers,
        "vllm": peer_backends.VLLM,
        "llama.cpp": peer_backends.LlamaCpp,
        "economize": peer_backends.Economize,
        "flashspec": peer_backends.FlashSpec,
    }
    backend: Backend = engines[request["engine"]](request)
    return backend
