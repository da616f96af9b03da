"""Decoding with tiny models: the loop as the engine runs it, and every committed row's logits on record."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter, HiddenStates, Target, TargetSession
from specstream.core.rows import Row, start_rows
from specstream.core.sampling import Finder, Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.suffix_index import SEPARATOR, SuffixIndex
from specstream.core.tree import TokenTree
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
from specstream.heads.block_loss import block_loss
from specstream.heads.dflash import DFlashHead
from specstream.heads.eagle import EagleHead
from specstream.heads.eagle_loss import eagle_loss
from specstream.heads.medusa import MedusaHeads
from specstream.heads.published import Memory, PublishedHead
from specstream.heads.stream_loss import stream_loss
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.architecture.hidden_states import States, decoder_layers, tapped
from specstream.models.hub.vocabulary import cut_head
from specstream.models.runtime.capabilities import Quantization
from specstream.models.target.hf import HuggingFaceTarget
from specstream.routing.config import DrafterSpec, RouterConfig
from specstream.routing.drafter import RoutedDrafter
from specstream.routing.features import CLASSES, Features, no_embedding
from specstream.routing.model import Network, RouterModel
from specstream.routing.router import Router
from specstream.training.data import Batch
from specstream.training.recipes.block import TappedStates
from tests.lossless.drafters import Priced
from tests.lossless.families import VOCAB, build, generated, prompt
from tests.published_heads import write_dflash, write_eagle

DRAFTERS = (
    "none",
    "lookup",
    "lookup-tree",
    "lookup-memory",
    "lookahead",
    "recycling",
    "medusa",
    "streams",
    "streams-learned",
    "streams-pruned",
    "block",
    "block-learned",
    "eagle3",
    "eagle3-learned",
    "dflash-learned",
    "draft_model",
    "draft_model-tree",
    "draft_model-part",
    "draft_model-priced",
    "mixed",
    "mixed-tree",
    "mixed-streams",
    "router",
)
GAMMA = 3
PROMPTS = (prompt(21), prompt(5, seed=1), prompt(12, seed=2))
"""What the greedy matrix decodes, and what heads learn from: they are right often there, and on other texts seldom."""
LESSON, STEPS = 57, 21
"""Tokens of a text that heads learn from, its prompt included, and how many times they look at one."""

_SEEDS = count()

Published = TypeVar("Published", bound=PublishedHead)

QUANTIZED: dict[str, Quantization] = {"self:int8": "int8", "self:int4": "int4"}
"""The target as its own draft, in fewer bits. They go through their own linear layers, in every runtime."""


def make_drafter(name: str, family: str, **draft: Any) -> Drafter:
    """A new drafter of this name; ``-tree`` gives it more than one candidate. ``draft`` goes to ``build``.

    Drafters learn from what they see, so that each is new. Their heads and draft models do not, and are made once.
    """
    kind, branching = name.partition("-")[::2]
    if name in QUANTIZED:
        return DraftModelDrafter(quantized_target(QUANTIZED[name], family, **draft), gamma=GAMMA)
    if kind in ("none", "lookup", "lookahead", "recycling"):
        return of_the_text_alone(name, family, **draft)
    if kind == "medusa":  # untrained heads say what the model says next: seldom right, one token too early
        return MedusaDrafter(medusa_heads(family, **draft))
    headed: dict[str, tuple[Any, Any]] = {
        "block": (BlockDrafter, block_head),
        "eagle3": (EagleDrafter, eagle_head),
        "dflash": (DFlashDrafter, dflash_head),
    }
    if kind in headed:
        drafting, head = headed[kind]
        learning: Drafter = drafting(head(branching == "learned", family, **draft), nodes=6, most=6, ranks=4)
        return learning
    if kind in ("streams", "router"):
        return streams_drafter(branching, family, **draft) if kind == "streams" else routed_drafter(family, **draft)
    if kind == "mixed" and branching == "streams":
        return MixedDrafter(LookupDrafter(min_ngram=2), streams_drafter("learned", family, **draft))
    if branching == "part":
        return draft_of_a_part(family, **draft)
    branches = 2 if branching == "tree" else 1
    drafter = DraftModelDrafter(draft_target(family, **draft), gamma=GAMMA, branches=branches)
    if kind == "mixed":  # a lookup that matches often, and not always
        return MixedDrafter(LookupDrafter(min_ngram=2, branches=2 if branching else 1), drafter)
    return Priced(drafter) if branching == "priced" else drafter


@cache
def quantized_target(bits: Quantization, family: str, **model: Any) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family, **model), exact=False, quantization=bits)


@cache
def draft_target(family: str, **draft: Any) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family, noise=0.01, **draft), runtime="eager", exact=False)


@cache
def medusa_heads(family: str, **model: Any) -> MedusaHeads:
    return MedusaHeads(build(family, **model), num_heads=GAMMA)


def of_the_text_alone(name: str, family: str, **model: Any) -> Drafter:
    """A drafter that needs neither heads nor a draft model."""
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": NoDrafter,
        "lookup": lambda: LookupDrafter(min_ngram=1),
        "lookup-tree": lambda: LookupDrafter(min_ngram=1, branches=3),
        "lookup-memory": lambda: LookupDrafter(min_ngram=2, branches=2, memory=half_right(family, **model)),
        "lookahead": lambda: LookaheadDrafter(window=3, ngram=3, guesses=3),
        "recycling": RecyclingDrafter,
    }
    return drafters[name]()


def half_right(family: str, **model: Any) -> SuffixIndex:
    """An earlier answer of the model to one of the prompts of these tests, every seventh token of it another."""
    said = lessons(build(family, **model))[2][0, 12:].tolist()
    index = SuffixIndex(1, 8, capacity=48)
    index.extend([*prompt(12, seed=2), *((each + (at % 7 == 6)) % VOCAB for at, each in enumerate(said)), SEPARATOR])
    return index


@cache
def lessons(model: Any) -> list[Tensor]:
    """Each prompt and what the model says behind it: ``[1, LESSON]``."""
    said = [generated(model, tokens, LESSON - len(tokens), eos_token_id=None) for tokens in PROMPTS]
    return [torch.tensor([[*tokens, *answer]]) for tokens, answer in zip(PROMPTS, said, strict=True)]


def draft_of_a_part(family: str, **draft: Any) -> Drafter:
    """Two candidates of three in four tokens, on the kernels of drafts."""
    model, part = model_of_a_part(family, **draft)
    return DraftModelDrafter(model, gamma=GAMMA, branches=2, vocab_size=VOCAB, part=part)


@cache
def model_of_a_part(family: str, **draft: Any) -> tuple[HuggingFaceTarget, Tensor]:
    part = torch.tensor([token for token in range(VOCAB) if token % 4 != 1])
    some = copy.deepcopy(build(family, noise=0.01, **draft))
    cut_head(some, part)
    return HuggingFaceTarget(some, exact=False, quantization="int8"), part


def routed_drafter(family: str, **draft: Any) -> Drafter:
    """Some of the others, with a router that takes another nearly each time."""
    names = ("draft_model", "mixed-tree")
    drafters = {name: make_drafter(name, family, **draft) for name in names}
    return RoutedDrafter(drafters, undecided_router(("none", *names)))


def undecided_router(names: Sequence[str]) -> Router:
    """It knows nothing, and so leaves it to chance."""
    model = RouterModel(
        network=Network(embedding=0, reduced=0, hidden=2, outputs=len(names) - 1),
        table=torch.zeros(VOCAB, 1 + len(CLASSES), dtype=torch.uint8),
        drafters={name: DrafterSpec(drafter=name) for name in names},
        noise=dict.fromkeys(names, 0.1),
        base={},
        embedding={"name": "none"},
        plain_tokens_per_second=1.0,
    )
    router = Router(model, RouterConfig(router="", doubt=100.0), torch.Generator().manual_seed(next(_SEEDS)))
    router._features = Features(model.table, no_embedding)
    return router


def streams_drafter(which: str, family: str, **model: Any) -> Drafter:
    """Streams as they are made, or ones that learned what the model says to some prompts, or with an early exit."""
    # Random models are rarely sure: every exit's threshold is near what a token gets by chance.
    pruning = 1 / 160 if which == "pruned" else None
    return StreamsDrafter(streams_of(which == "learned", family, **model), nodes=6, most=6, ranks=4, pruning=pruning)


@cache
def streams_of(learned: bool, family: str, **model: Any) -> Streams:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        start: Any = "linear" if learned else "identity"
        shape = StreamsConfig(
            gamma=GAMMA, layers=1, rank=4, pruning_rank=2, start=start, chain_rank=4 if learned else 0
        )
        streams = Streams(build(family, **model), shape)
    if learned:
        teach(streams, lambda tokens: stream_loss(streams, tokens, torch.ones_like(tokens, dtype=torch.bool))[0])
    return streams


@cache
def block_head(learned: bool, family: str, **model: Any) -> BlockHead:
    """A block head as it is made, or one that learned what the model says, with a window that is soon full."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        head = BlockHead(build(family, **model), BlockConfig(gamma=GAMMA, layers=1, chain_rank=4, window=8))
    if learned:
        states = TappedStates(head.model, head.config.taps)
        every = torch.ones(1, LESSON, dtype=torch.bool)
        teach(
            head,
            lambda tokens: block_loss(head, states.of(Batch(tokens=tokens, mask=every, size=LESSON)), tokens, every)[0],
        )
    return head


@cache
def eagle_head(learned: bool, family: str, **model: Any) -> EagleHead:
    """An EAGLE-3 head of chance in others' layout, or one of ours that learned what the model says."""
    base = build(family, **model)
    if not learned:
        with tempfile.TemporaryDirectory() as folder:
            taps = (0, len(decoder_layers(base)) - 1)
            return EagleHead.from_pretrained(write_eagle(Path(folder), base, taps=taps, gamma=GAMMA), base)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        head = EagleHead.fresh(base, (), GAMMA, torch.arange(0, VOCAB, 2))
    states, every = TappedStates(base, head.taps), torch.ones(1, LESSON, dtype=torch.bool)

    def loss_of(tokens: Tensor) -> Tensor:
        batch = Batch(tokens=tokens, mask=every, size=LESSON)
        return eagle_loss(head, states.of(batch), tokens, every)[0]

    return taught(head, loss_of)


@cache
def dflash_head(learned: bool, family: str, **model: Any) -> DFlashHead:
    """A DFlash head of chance, or one that learned what the model says."""
    base = build(family, **model)
    taps = (0, len(decoder_layers(base)) - 1)
    with tempfile.TemporaryDirectory() as folder:
        head = DFlashHead.from_pretrained(write_dflash(Path(folder), base, "authors", taps=(1, 1)), base)
    head.taps = taps

    @cache
    def states_of(tokens: Tensor) -> Tensor:
        return tapped_states(base, taps, tokens)[0]

    def loss_of(tokens: Tensor) -> Tensor:
        states, losses = states_of(tokens), []
        for at in range(12, 46, 6):
            memories = [[Memory() for _ in head.layers]]
            head.read(memories, [at], states[:at], torch.arange(at))
            logits = head.logits(tokens[0, at : at + 1], torch.tensor([at]), memories, GAMMA)[0]
            losses.append(functional.cross_entropy(logits, tokens[0, at + 1 : at + 1 + GAMMA]))
        return torch.stack(losses).mean()

    return taught(head, loss_of) if learned else head


def tapped_states(base: Any, taps: tuple[int, ...], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """At all tokens but the last, and what the model says behind the next ones."""
    states = States(dict.fromkeys(taps))
    with torch.no_grad(), tapped(base, decoder_layers(base), states, fused=False):
        wanted = base(input_ids=tokens, use_cache=False).logits[0, 1:].argmax(-1)
    return torch.stack([states[tap][0, :-1] for tap in taps], 1), wanted  # type: ignore[index]


def taught(head: Published, loss_of: Callable[[Tensor], Tensor]) -> Published:
    """A published head that learned as ``teach`` does."""
    teach(head.train().requires_grad_(True), loss_of)
    return head.eval().requires_grad_(False)


def teach(head: Any, loss_of: Callable[[Tensor], Tensor]) -> None:
    """A few steps on what the base itself says behind the prompts: enough to be right now and then."""
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-2)
    for tokens in islice(cycle(lessons(head.model)), STEPS):
        loss = loss_of(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Row]:
    """Greedy decoding of a batch."""
    rows = start_rows(
        prompts,
        [0] * len(prompts),
        target.context_length,
        sampling=Sampling(),
        stopping=Stopping(max_new_tokens=max_new_tokens),
    )
    rounds = decode(
        target,
        drafter,
        rows,
        speculation=Speculation(max_depth=GAMMA),
        timings=Timings(),
    )
    for _ in rounds:
        pass
    return rows


@dataclass
class Recorded:
    """A target that remembers, for every row, the logits after each token that it committed."""

    target: HuggingFaceTarget
    rereads_at = None

    @property
    def context_length(self) -> int | None:
        return self.target.context_length

    def begin(self, prefixes: Sequence[Sequence[int]]) -> RecordedSession:
        self.logits: list[list[Tensor]] = [[] for _ in prefixes]
        return RecordedSession(self.target.begin(prefixes), list(self.logits))

    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> RecordedSession:
        self.logits = [[] for _ in prefixes]
        return RecordedSession(self.target.begin_reading(prefixes), list(self.logits))


class RecordedSession:
    ragged = False
    chains_only = False

    def __init__(self, session: TargetSession, logits: list[list[Tensor]]) -> None:
        self._session = session
        self._logits = logits
        self._scored: Tensor

    @property
    def exact(self) -> str:
        return self._session.exact

    def read(self, most: int) -> bool:
        return self._session.read(most)

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        self._scored = self._session.score(trees)
        return self._scored

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for record, scored, path in zip(self._logits, self._scored, paths, strict=True):
            record.extend(scored[node].clone() for node in path)
        self._session.commit(paths)

    def exact_of(self, row: int) -> str:
        return self._session.exact_of(row)

    def join(self, other: RecordedSession) -> None:
        self._session.join(other._session)
        self._logits.extend(other._logits)

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._session.hidden_states

    @property
    def device(self) -> torch.device:
        return self._session.device

    @property
    def finder(self) -> Finder:
        return self._session.finder

    def rollback(self, lengths: Sequence[int]) -> None:
        raise AssertionError("the loop never rolls a target back")

    def keep(self, rows: Sequence[int]) -> None:
        self._session.keep(rows)
        self._logits = [self._logits[row] for row in rows]
