"""What the loop needs of a target and of a drafter, and the values that pass between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from specstream.core.prefix_cache import PrefixCache
from specstream.core.sampling import Finder, Sampling
from specstream.core.tree import TokenTree
from specstream.errors import UsageError, must_be

if TYPE_CHECKING:
    from typing_extensions import Self


# Requests and verdicts are made for every row of every round: to set the attributes of frozen ones takes three times as
# long. Nobody changes them once they are passed on.
@dataclass(kw_only=True, slots=True)
class Verdict:
    """What verification decided for one row.

    Attributes:
        path: accepted nodes of the tree, the root first.
        tokens: the tokens this pass emits: the accepted drafts, then one of the target's own (the bonus
            after a fully accepted path, the correction after a rejection; none after an accepted end).
        choices: the token of the largest logit after every node, accepted or not, for a drafter that learns from them;
            ``NO_CHOICE`` where the logits hold NaN or infinity, and beyond the tree meaningless. Nobody pays for what
            is not asked for; ask before the next pass.
        likeliest: the same with k tokens of the largest logits, ordered, after every node of ``path`` only.
        error: why the row cannot go on, with no token then; None if it can.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    choices: Callable[[], Sequence[int]] = field(default=tuple, compare=False, repr=False)
    likeliest: Callable[[int], Sequence[Sequence[int]]] = field(default=lambda k: (), compare=False, repr=False)
    error: Exception | None = field(default=None, compare=False)

    @property
    def accepted(self) -> int:
        """How many drafted tokens were accepted."""
        return len(self.path) - 1


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank changes to linear layers of a model (LoRA, Hu et al., arXiv 2106.09685): ``y += up @ (down @ x)``.

    Attributes:
        changes: ``down`` ``[rank, inputs]`` and ``up`` ``[outputs, rank]`` by the linear layer's name: the index of its
            decoder layer, a dot and its name in there, such as ``24.self_attn.q_proj``.
    """

    changes: Mapping[str, tuple[Tensor, Tensor]]


class HiddenStates(Protocol):
    """What goes into the layers of a target during the passes of one session, for drafters that live on it."""

    def tap(self, layers: Collection[int]) -> None:
        """From the next pass on, keep what goes into these decoder layers besides those asked for before.

        Layers count from 0; their number stands for the language-model head, into which the final, normed state goes.
        A session that nobody taps keeps nothing, and to tap changes no bit of the logits.
        """

    def states(self, layer: int) -> Tensor:
        """What went into a tapped layer at every node of the last pass, before its commit or after.

        Returns:
            ``[rows, width, hidden]`` in the model's dtype; beyond a row's own tree it is meaningless. Rows are numbered
            as in that pass, and the next pass may overwrite it.
        """

    def tap_prompts(self, layers: Collection[int]) -> None:
        """Keep what goes into these layers while prompts are read; to ask before the first of them is.

        Layers are those of ``tap``, but not the head.
        """

    def prompt_states(self, row: int, layers: Sequence[int]) -> Tensor:
        """What went into some of those layers at the committed tokens of a row's prompt, until the first pass.

        Returns:
            ``[tokens, layers, hidden]`` in the model's dtype; no tokens where nobody asked in time.
        """

    def descend(self, trees: Sequence[TokenTree], layer: int) -> Tensor:
        """Begin a pass over these trees, as far as ``layer``.

        The next ``score`` goes on from there. Its trees are parts of these, with the same roots: what is left out never
        reaches the layers above. Nothing else may come between.

        Returns:
            What goes into ``layer`` at every node, as ``states`` would say.
        """

    def branch(self, hidden: Tensor, layer: int, adapter: Adapter, rows: Sequence[int] | None = None) -> Tensor:
        """Run a chain of nodes behind rows' committed tokens through the layers from ``layer`` on, and forget it.

        The nodes see the committed tokens, by the keys and values that are there already, and the nodes before them;
        their own keys and values do not outlive the call.

        Args:
            hidden: what goes into ``layer``, ``[rows, nodes, hidden]`` in the model's dtype. The first node stands at
                the position behind the last committed token.
            layer: as in ``tap``.
            adapter: changes to linear layers from ``layer`` on, for these nodes alone. Sessions remember what they
                made of an adapter, so take another object for other changes.
            rows: whose nodes these are, in increasing order; None for every row's.

        Returns:
            The final, normed states, those that go into the language-model head, ``[rows, nodes, hidden]``.
        """


PromptWatcher = Callable[[Tensor, int], None]
"""``(logits [n, vocab] behind n tokens of a prompt, the place of the first of these)``, pass by pass, in order; the
prompt's last token is in none of them."""


class TargetSession(Protocol):
    """One batch being decoded: the keys and values of each row's committed tokens.

    Rows are numbered 0..n-1; after ``keep`` they are numbered anew in the order kept.

    Attributes:
        prefixes: where keys and values outlive the session; None where they do not.
        chains_only: whether a pass cannot score a tree with branches.
    """

    prefixes: PrefixCache | None = None
    chains_only: bool = False

    def reuse(self, prefixes: PrefixCache) -> None:
        """From now on, begin texts with the keys and values that this cache has of them, and leave it those read.

        Before the first ``read``. A target that cannot do so bit by bit does nothing.
        """

    def watch(self, row: int, watch: PromptWatcher) -> None:
        """Show the logits of a row's prompt as it is read; then nothing of it is reused. Before the first ``read``.

        Raises:
            UsageError: this target does not show them.
        """
        raise UsageError("this target does not show the logits of prompts; ask for none")

    def cached(self, row: int) -> int:
        """Tokens of the row's prompt whose keys and values were reused."""
        return 0

    def retain(self, row: int, tokens: Sequence[int]) -> None:
        """Leave the row's keys and values to ``prefixes``, if there are some.

        Args:
            row: which.
            tokens: of its text, of which some at the end may not be committed.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where passes run."""

    @property
    def ragged(self) -> bool:
        """Whether a pass costs by the nodes of all rows together, not by those of the largest tree for every row."""
        return False

    @property
    def hidden_states(self) -> HiddenStates | None:
        """What goes into the layers during its passes; None if this target does not show that."""
        return None

    @abstractmethod
    def read(self, most: int) -> bool:
        """Read on in the prompts of a session from ``begin_reading``: one pass of up to ``most`` tokens.

        Returns:
            Whether something is left; until then nothing can be scored.
        """

    @abstractmethod
    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        """Logits ``[rows, width, vocab]`` after every node of every row's tree, in one forward pass.

        ``width`` is at least the size of the largest tree; what lies beyond a row's own tree is meaningless.
        """

    @property
    def finder(self) -> Finder:
        """What looks for the tokens with the largest logits."""
        return Finder()

    @abstractmethod
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep each row's path of the trees just scored (the root first) and forget their other nodes."""

    @abstractmethod
    def rollback(self, lengths: Sequence[int]) -> None:
        """Keep only the first ``lengths[row]`` tokens of each row."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row that is not named."""

    @abstractmethod
    def join(self, other: Self) -> None:
        """Take in the rows of another session of the same target, behind these. The other is of no use afterwards.

        The hidden states of the last pass, and who may be asked for them, stay as they are: the newcomers were not in
        it.
        """

    @property
    @abstractmethod
    def exact(self) -> str:
        """``"bits"`` if every row committed so far is bit-equal to plain decoding's, else ``"rounding"``."""

    @abstractmethod
    def exact_of(self, row: int) -> str:
        """The same of one row, which others that joined it do not make worse."""


class Target(Protocol):
    """A causal language model; one that is written anew may inherit what it does not say."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """The most tokens a sequence may have, None if the model sets no limit."""

    @property
    def rereads_at(self) -> int | None:
        """The length behind which the model reads a text anew, so that no tree may reach across; None for never."""
        return None

    def prepare(self, rows: int = 1, nodes: int = 0) -> None:
        """Test itself before anything is timed, where it has to be tested at all.

        Args:
            rows: sequences of the batch to come.
            nodes: tokens of its largest tree.
        """

    @abstractmethod
    def begin(self, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        """Start a batch whose rows have these tokens committed (a prefix may be empty)."""

    @abstractmethod
    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        """The same, where ``TargetSession.read`` reads them."""

    def begin_idle(self, rows: int, length: int) -> TargetSession:
        """A session to time passes in: rows whose first ``length`` tokens count as committed, whatever they are.

        Nobody need have read them: their keys and values may be anything finite.
        """
        return self.begin([[0] * length] * rows)


class DraftModel(Target, Protocol):
    """A target that drafts for another one."""

    @property
    def model(self) -> Any:
        """The model; it is the other's own where that drafts for itself."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that its passes read."""


class TrainedHeads(Protocol):
    """What draft heads state of themselves."""

    @property
    def nbytes(self) -> int:
        """Bytes of their weights."""

    @property
    def extra_parameters(self) -> int:
        """How many parameters there are beside the target's."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a drafter drafts with beside the target, each once.

    Attributes:
        heads: trained modules on the target's hidden states.
        models: draft models.
    """

    heads: tuple[TrainedHeads, ...] = ()
    models: tuple[DraftModel, ...] = ()

    @classmethod
    def union(cls, several: Iterable[Components]) -> Components:
        """Those of several drafters, which may share some."""
        listed = list(several)
        heads = {id(each): each for own in listed for each in own.heads}
        models = {id(each): each for own in listed for each in own.models}
        return cls(heads=tuple(heads.values()), models=tuple(models.values()))


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a drafter could draft for a row now. To make it costs next to nothing; to take it may not.

    Attributes:
        source: whose drafts these are and, behind a slash, how far they are to be trusted where that is known: drafts
            of one source are accepted alike.
        depth: the deepest tree, at least 1.
        branches: nodes at each depth, where neither ``tree`` nor ``ranked`` says it.
        tree: the tree itself, if it is known without drafting; None if it takes the drafter time.
        unread: tokens of the row that such a drafter has to read before its first step.
        counts: nodes of the tree at depth 1, 2, ..., ``depth``; empty where ``tree`` or ``branches`` says them.
        beside: nodes that the pass has besides those, however deep it is taken.
        ranked: of a drafter that estimates by itself: depth, and how likely it is accepted, of every node that its best
            trees are extended by, in that order. Empty where the policy is to estimate.
        cuts: whether it ends a draft where that has become too unlikely; see ``DraftRequest.threshold``.
    """

    source: str
    depth: int
    branches: int = 1
    tree: TokenTree | None = None
    unread: int = 0
    counts: tuple[int, ...] = ()
    beside: int = 0
    ranked: tuple[tuple[int, float], ...] = ()
    cuts: bool = False

    @property
    def drafter(self) -> str:
        """The drafter that made it, by the name that begins ``source``."""
        return self.source.partition("/")[0]

    @cached_property
    def per_depth(self) -> tuple[int, ...]:
        """Nodes that its tree has at depth 1, 2, ..., ``depth``; not of one that is ``ranked``."""
        if self.counts or self.tree is None:
            return self.counts or (self.branches,) * self.depth
        found = [0] * self.depth
        for deep in self.tree.depths[1:]:
            found[deep - 1] += 1
        return tuple(found)


@dataclass(kw_only=True, slots=True)
class DraftRequest:
    """One row's turn to be drafted for.

    Attributes:
        tokens: the row's tokens so far, the root of its next tree last.
        depth: the deepest tree worth drafting; 0 asks for the root alone.
        generator: the row's own source of chance, on the CPU.
        offer: the one of the session's offers that is taken; None before that, and where there is no choice.
        nodes: most drafted nodes of a tree that its drafter ranks; 0 for as many as it prefers.
        planned: how many of those are expected to be verified.
        threshold: a drafter that cuts ends the draft before a token with which it would be accepted less often than
            this, by its own estimate: the confidence threshold.
        prices: what a node more costs a pass of 1, 2, ... nodes, in tokens: it may then propose whatever else it has
            seen on the way, as long as that is accepted more often. Nothing where they end.
        calibrations: what the policy keeps of the row, for as long as it is decoded; changed in place.
    """

    tokens: Sequence[int]
    depth: int
    generator: torch.Generator
    offer: Offer | None = None
    nodes: int = 0
    planned: int = 0
    threshold: float = 0.0
    prices: tuple[float, ...] = ()
    calibrations: dict[tuple[str, bool], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def drafter(self) -> str | None:
        """Whose offer is taken."""
        return None if self.offer is None else self.offer.drafter

    def declined(self) -> DraftRequest:
        """The same for the root alone."""
        if not self.depth:
            return self
        return DraftRequest(tokens=self.tokens, depth=0, generator=self.generator, calibrations=self.calibrations)


class DrafterChoice(Protocol):
    """Which drafter was chosen for a batch, where a drafter chooses among others."""

    @property
    def drafter(self) -> str:
        """Its name."""

    @property
    def expected(self) -> Mapping[str, float]:
        """What each drafter was expected to be worth, as its speed over plain decoding's."""

    @property
    def seconds(self) -> float:
        """That the choice took."""

    def learn(self, tokens_per_second: float, *, plain: float) -> None:
        """Take note of what came of it: the speed of decoding, and that of plain decoding in the same process."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a result."""


class DraftSession(Protocol):
    """A drafter at work on one batch, to inherit from. Rows are numbered as in the target's session.

    While the policy pauses, rounds are made of which it hears nothing. In the next one it is asked for the roots alone,
    with all tokens that came meanwhile, and observes; from then on its last tree was in the target's last pass again.

    Attributes:
        choice: which drafter was chosen for this batch; None where there was no choice.
    """

    choice: DrafterChoice | None = None

    def read(self, most: int) -> bool:
        """Read on in the prompts, for a drafter with a model of its own; see ``TargetSession.read``."""
        return False

    def expect(self, row: int, text: Sequence[int]) -> None:
        """Take note of a text that the row may come to say, before its first draft.

        Args:
            row: which.
            text: tokens, those that end its prompt first.
        """
        return

    @abstractmethod
    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        """What could be drafted for each row, no deeper than it asks for; the one to prefer unseen comes first."""

    @abstractmethod
    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """A tree for every row; its root is the row's last token."""

    @abstractmethod
    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """Learn what became of the trees just proposed."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row that is not named."""

    @abstractmethod
    def join(self, other: Self) -> None:
        """Take in the rows of another session of the same drafter, behind these, when its target's session has joined.

        From then on both work on this one's target session. The other is of no use afterwards.
        """


class Drafter(Protocol):
    """A source of drafts, to inherit from.

    Attributes:
        name: what users choose it by.
        joinable: whether rows that began in another batch may join.
    """

    name: str
    joinable: bool = True

    @property
    def nodes(self) -> int:
        """Drafted nodes of the largest tree, where the depth alone does not say it; else 0."""
        return 0

    @property
    def components(self) -> Components:
        """What it drafts with beside the target."""
        return Components()

    @property
    def reads(self) -> Collection[int]:
        """Layers of the target whose inputs it needs at every token of a prompt (``HiddenStates.tap_prompts``)."""
        return ()

    @property
    def limits(self) -> Mapping[str, int]:
        """Depths that it drafts no deeper than, whatever is asked of it, by what sets each of them, in words."""
        return {}

    @property
    def members(self) -> tuple[Drafter, ...]:
        """The drafters that it is made of; itself where it is made of none."""
        return (self,)

    def fixed_tree(self, nodes: int) -> Drafter | None:
        """The same with one tree of so many drafted nodes in every round; None if it makes no trees of a given size."""
        return None

    @abstractmethod
    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> DraftSession:
        """Start on a batch of prompts.

        Args:
            prompts: tokens of each row, the root of its first tree last.
            samplings: how the target chooses each row's tokens.
            session: the target at work on this batch; ``hidden_states_of`` gives a drafter that lives on the target's
                hidden states what it taps. Scoring, committing and dropping rows are the loop's.
        """


def begun(
    drafter: Drafter, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
) -> DraftSession:
    """What a drafter begins with; the arguments are those of its ``begin``.

    Raises:
        UsageError: it returned something else, as one of somebody's own may.
    """
    drafts = drafter.begin(prompts, samplings, session)
    made = callable(getattr(drafts, "propose", None))
    must_be(made, f"what {drafter.name} begins with", drafts, "a DraftSession, returned by its begin")
    return drafts


def hidden_states_of(session: TargetSession, drafter: str) -> HiddenStates:
    """The hidden states that the drafter of this name needs.

    Raises:
        UsageError: the target does not show them.
    """
    if session.hidden_states is None:
        raise UsageError(
            f"drafter is {drafter!r}, which needs the target's hidden states, and this target shows none; "
            "give one that needs none, such as 'lookup'"
        )
    return session.hidden_states
