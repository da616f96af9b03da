"""Systems as a worker loads them: those of others. Each is written to its own documentation's advice."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import Any

Request = dict[str, Any]
Tokens = list[list[int]]

_VLLM_COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts",
    "drafted": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


class VLLM:
    """vLLM's CPU build, in this process; prefix caching is off, because the rounds repeat their prompts."""

    def __init__(self, request: Request) -> None:
        vllm = import_module("vllm")
        settings: dict[str, Any] = {
            "model": request["target"],
            "dtype": request["dtype"],
            "seed": 0,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "generation_config": "vllm",  # not the checkpoint's, which may set a repetition penalty
            "skip_tokenizer_init": True,
            "disable_log_stats": False,  # its counters of drafted and accepted tokens
            "max_model_len": request["context"],
            "max_num_seqs": request["batch"],
            "gpu_memory_utilization": 0.3,
        }
        options = dict(request["options"])
        if (speculative := self._speculative(request, options)) is not None:
            settings["speculative_config"] = speculative
        self._engine = vllm.LLM(**{**settings, **options})
        self._parameters, self._eos = vllm.SamplingParams, list(request["eos"])
        self.versions = {"vllm": str(vllm.__version__), "torch": version("torch")}

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        parameters = self._parameters(
            temperature=0.0,
            max_tokens=limit,
            ignore_eos=ignore_eos,
            stop_token_ids=[] if ignore_eos else self._eos,
            detokenize=False,
        )
        before = self._counters()
        outputs = self._engine.generate([{"prompt_token_ids": each} for each in prompts], parameters, use_tqdm=False)
        counts = {name: value - before[name] for name, value in self._counters().items()}
        return [list(output.outputs[0].token_ids) for output in outputs], counts

    @staticmethod
    def _speculative(request: Request, options: Request) -> Request | None:
        """Its speculative config; options that belong there are taken out of the rest."""
        config: Request = {"method": request["mode"], "num_speculative_tokens": request["k"] or 3}
        if request["mode"] == "draft_model":
            return {**config, "model": request["draft"]}
        if request["mode"] in ("medusa", "eagle3", "dflash"):
            return {**config, "model": options.pop("heads")}
        if request["mode"] == "ngram":
            sizes = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
            return {**config, **{name: options.pop(name, size) for name, size in sizes.items()}}
        return None

    def _counters(self) -> dict[str, Any]:
        """Of all calls so far; empty where nothing is drafted."""
        found: dict[str, Any] = {metric.name: getattr(metric, "value", None) for metric in self._engine.get_metrics()}
        return {name: int(found[full]) for name, full in _VLLM_COUNTERS.items() if found.get(full) is not None}


class LlamaCpp:
    """llama.cpp through llama-cpp-python; its model is a GGUF file, so its weights may be of another precision."""

    def __init__(self, request: Request) -> None:
        llama_cpp = import_module("llama_cpp")
        if not request["gguf"]:
            raise ValueError("llama.cpp reads GGUF files; give one with --gguf PATH")
        draft = None
        if request["mode"] == "lookup":
            speculation = import_module("llama_cpp.llama_speculative")
            draft = speculation.LlamaPromptLookupDecoding(num_pred_tokens=request["k"] or 10)
        cores = len(os.sched_getaffinity(0))  # as many as everybody takes; its own default is half of them
        settings = {"n_threads": cores, "n_threads_batch": cores, "verbose": False, **request["options"]}
        self._model = llama_cpp.Llama(
            model_path=request["gguf"], n_ctx=request["context"], draft_model=draft, **settings
        )
        self._eos = list(request["eos"])
        self.versions = {"llama-cpp-python": str(llama_cpp.__version__)}

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        results = []
        for prompt in prompts:  # it takes one at a time
            self._model.reset()  # else it keeps what two prompts begin with
            tokens: list[int] = []
            for token in self._model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
                tokens.append(int(token))
                if len(tokens) == limit or (token in self._eos and not ignore_eos):
                    break
            results.append(tokens)
        return results, {}


class Economize:
    """economize: a cycle of N drafts N - 1 tokens."""

    def __init__(self, request: Request) -> None:
        economize = import_module("economize")
        torch = self._torch = import_module("torch")
        techniques = []
        if request["mode"] == "lookup":
            techniques.append(import_module("economize.techniques.lookup").LookupConfig())
        elif request["mode"] == "draft_model":
            config = import_module("economize.techniques.draft_model").DraftModelConfig
            techniques.append(config(model=request["draft"], dtype=request["dtype"]))
        base = import_module("transformers").AutoModelForCausalLM.from_pretrained(
            request["target"], dtype=getattr(torch, request["dtype"])
        )
        cycle = (request["k"] or 4) + 1 if techniques else 1
        self._decoding = economize.DecodeConfig(cycle_length=cycle, **request["options"])
        self._model = economize.apply(base.eval(), *techniques, decoding=self._decoding)
        self._eos = set(request["eos"])
        self.versions = {name: version(name) for name in ("economize", "transformers", "torch")}

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        stop = None if ignore_eos else self._eos
        tensors = [self._torch.tensor(prompt) for prompt in prompts]
        if len(tensors) == 1:
            results = [self._model.decode(tensors[0], limit, decoding=self._decoding, stop=stop)]
        else:
            results = self._model.decode_batch(tensors, limit, decoding=self._decoding, stop=stop)
        judged = [pair for result in results for pair in result.acceptance]
        counts = {"drafted": sum(drafted for drafted, _ in judged), "accepted": sum(kept for _, kept in judged)}
        return [result.tokens.tolist() for result in results], counts


class FlashSpec:
    """flashspec, one drafter and one arm; it has no plain decoding."""

    def __init__(self, request: Request) -> None:
        flashspec, engines = import_module("flashspec"), import_module("flashspec.engine")
        torch, transformers = import_module("torch"), import_module("transformers")
        device, dtype = torch.device("cpu"), getattr(torch, request["dtype"])

        def load(name: str) -> Any:
            return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()

        target = engines.TargetModel(request["target"], device, dtype, model=load(request["target"]))
        greedy = flashspec.SamplingConfig(temperature=0.0, gamma=request["k"] or 4)
        if request["mode"] == "draft_model":
            name = request["draft"]
            drafter = engines.HuggingFaceDrafter(name, device, dtype, temperature=0.0, model=load(name))
        else:
            drafter = engines.NgramDrafter()
        settings = {"drafter_strategy": "bandit", "bandit": flashspec.BanditConfig(n_arms=1), **request["options"]}
        config = flashspec.FlashSpecConfig(device="cpu", sampling=greedy, **settings)
        self._engine, self._tensor = flashspec.SpeculativeEngine(config, [drafter], target), torch.tensor
        self._eos = list(request["eos"])
        self.versions = {name: version(name) for name in ("flashspec", "transformers", "torch")}

    def generate(self, prompts: Tokens, limit: int, ignore_eos: bool) -> tuple[Tokens, dict[str, Any]]:
        results, ends = [], [] if ignore_eos else self._eos
        for prompt in prompts:  # its batches need prompts of one length
            output = self._engine.generate(self._tensor([prompt]), max_new_tokens=limit, eos_token_ids=ends)
            results.append([token for token in output.output_ids[0].tolist() if token >= 0])
        return results, {}
