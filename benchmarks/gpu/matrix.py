"""Losslessness on the device: family x dtype x runtime x drafter x rows, against ``generate`` or our own plain."""

from __future__ import annotations

import importlib
import itertools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import begin, reference, target_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.records import Records
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.drafters.block import BlockDrafter
from specstream.drafters.dflash import DFlashDrafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.eagle import EagleDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.recycling import RecyclingDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.heads.block import BlockConfig, BlockHead
from specstream.heads.dflash import DFlashHead
from specstream.heads.eagle import EagleHead
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.target.hf import HuggingFaceTarget

FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"),
    *("phi", "gpt2", "gpt_neox", "opt", "bloom"),
)
LENGTHS = (21, 5, 12)
GAMMA, NEW_TOKENS = 3, 24
SPECULATION = Speculation(max_depth=GAMMA)
DRAFTERS: dict[str, Callable[[HuggingFaceTarget, HuggingFaceTarget], Drafter]] = {
    "none": lambda target, draft: NoDrafter(),
    "lookup": lambda target, draft: LookupDrafter(min_ngram=1),
    "lookup-tree": lambda target, draft: LookupDrafter(min_ngram=1, branches=3),
    "draft_model": lambda target, draft: DraftModelDrafter(draft, gamma=GAMMA),
    "draft_model-tree": lambda target, draft: DraftModelDrafter(draft, gamma=GAMMA, branches=2),
    "lookahead": lambda target, draft: LookaheadDrafter(window=3, ngram=3, guesses=3),
    "medusa": lambda target, draft: MedusaDrafter(MedusaHeads(target.model, num_heads=GAMMA)),
    "mixed": lambda target, draft: MixedDrafter(LookupDrafter(min_ngram=2), DraftModelDrafter(draft, gamma=GAMMA)),
    "streams": lambda target, draft: StreamsDrafter(_streams(target.model), nodes=6, most=6, ranks=4),
    "recycling": lambda target, draft: RecyclingDrafter(),
    "block": lambda target, draft: BlockDrafter(_block(target.model)),
    "eagle3": lambda target, draft: EagleDrafter(EagleHead.fresh(target.model, (), GAMMA, None)),
    "dflash": lambda target, draft: DFlashDrafter(_dflash(target.model)),
}

FEW = ("none", "lookup-tree", "draft_model", "mixed", "block", "eagle3")


def family_matrix(family: str, records: Records, options: Options) -> None:
    """All of one family, captured passes first."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    dtypes = (torch.float32,) if options.tiny else (torch.float32, torch.bfloat16)
    for runtime, dtype in itertools.product(dict.fromkeys((options.captured, "eager", "static")), dtypes):
        column = _Column(family, dtype, runtime, options)
        for name, rows in itertools.product(*_asked(runtime, options)):
            label = f"{family} {str(dtype).removeprefix('torch.')} {runtime} {name} rows {rows}"
            records.measure(label, partial(column.cell, name, rows))


def _asked(runtime: str, options: Options) -> tuple[Sequence[str], Sequence[int]]:
    """Drafters and rows: all with captured passes, a few with the others."""
    if options.tiny:
        return ("none", "lookup", "streams", "block", "eagle3", "dflash"), (3,)
    return (tuple(DRAFTERS), (3,)) if runtime == options.captured else (FEW, (3,))


class _Column:
    """Everything of one family, dtype and runtime; made when it is first needed."""

    def __init__(self, family: str, dtype: torch.dtype, runtime: str, options: Options) -> None:
        self._fields = {"family": family, "dtype": str(dtype).removeprefix("torch."), "runtime": runtime}
        self._family, self._dtype, self._runtime, self._device = family, dtype, runtime, options.device
        self._pair: tuple[HuggingFaceTarget, HuggingFaceTarget] | None = None
        self._expected: list[list[int]] = []
        self._warnings: list[str] = []

    def cell(self, name: str, rows: int) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            target, draft = self._begin()
            drafter = DRAFTERS[name](target, draft)
            ours = begin(target, drafter, self._prompts[:rows], NEW_TOKENS, SPECULATION).run().rows
        self._warnings += [str(each.message) for each in caught if "CUDA graph" in str(each.message)]
        unequal = [row for row in ours if row.emitted != self._expected[row.index]]
        return {
            **self._fields,
            "drafter": name,
            "rows": rows,
            "against": self._against,
            "equal": len(ours) - len(unequal),
            "unequal": len(unequal),
            "exact": [row.exact for row in ours],
            "drafted": sum(row.stats.drafted for row in ours),
            "accepted": sum(row.stats.accepted for row in ours),
            "ran": target.runtime.name,
            "draft_ran": draft.runtime.name,
            "warnings": self._warnings[:3],
            "differences": [self._difference(row.index, row.emitted) for row in unequal],
        }

    @property
    def _against(self) -> str:
        return "transformers generate" if self._dtype == torch.float32 else "our plain decoding, row by row"

    def _begin(self) -> tuple[HuggingFaceTarget, HuggingFaceTarget]:
        if self._pair is None:
            families = importlib.import_module("tests.lossless.families")
            self._prompts: list[list[int]] = [families.prompt(length, seed) for seed, length in enumerate(LENGTHS)]
            model = families.build(self._family, self._dtype).to(self._device)
            draft = families.build(self._family, self._dtype, noise=0.01).to(self._device)
            pair = target_of(model, self._runtime), target_of(draft, self._runtime, exact=False)
            if self._dtype == torch.float32:
                self._expected = [reference(model, [prompt], NEW_TOKENS)[0] for prompt in self._prompts]
            else:
                alone = [begin(pair[0], NoDrafter(), [each], NEW_TOKENS, SPECULATION) for each in self._prompts]
                self._expected = [each.run().rows[0].emitted for each in alone]
            self._pair = pair
        return self._pair

    def _difference(self, index: int, emitted: list[int]) -> dict[str, Any]:
        """Where a row first says something else, and by how much the model's own logits prefer what was expected."""
        assert self._pair is not None
        expected = self._expected[index]
        at = next((at for at, pair in enumerate(zip(expected, emitted, strict=False)) if pair[0] != pair[1]), -1)
        tokens = [*self._prompts[index], *expected[:at]]
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._device)
            logits = self._pair[0].model(input_ids=ids, use_cache=False).logits[0, -1].float()
        gap = float(logits[expected[at]] - logits[emitted[at]])
        return {"row": index, "at": at, "expected": expected[at], "got": emitted[at], "gap": gap}


def _streams(model: Any) -> Streams:
    return Streams(model, StreamsConfig(gamma=GAMMA, layers=1, rank=4, start="linear", chain_rank=4))


def _block(model: Any) -> BlockHead:
    return BlockHead(model, BlockConfig(gamma=GAMMA, layers=1, chain_rank=4, window=8))


def _dflash(model: Any) -> DFlashHead:
    heads = importlib.import_module("tests.published_heads")
    with tempfile.TemporaryDirectory() as folder:
        return DFlashHead.from_pretrained(heads.write_dflash(Path(folder), model, "authors", taps=(0, 1)), model)
