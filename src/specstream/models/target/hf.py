"""A Hugging Face causal language model as a target: tree masks, positions, one forward pass per round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import RLock
from typing import Any

from specstream.core.ports import TargetSession
from specstream.errors import UnsupportedModelError
from specstream.models.architecture import compat
from specstream.models.architecture.families import Family, describe, require_model
from specstream.models.architecture.rotary import require_own_lengths, rotate_by_own_length
from specstream.models.architecture.view import Stamp, view_of
from specstream.models.cache import PADDING, capacity_for
from specstream.models.invariance.reading import reads_alike
from specstream.models.invariance.selftest_cache import SelfTestCache, cache_of, once
from specstream.models.invariance.widths import Exactness
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import Quantization, RuntimeName
from specstream.models.runtime.runtime import Runtime
from specstream.models.target.chains import ChainSession
from specstream.models.target.graphs import CudaCapture, StaticPasses
from specstream.models.target.passes import ModelPasses
from specstream.models.target.session import HuggingFaceSession
from specstream.models.target.tree_check import check_tree


class HuggingFaceTarget(ModelPasses):
    """Any decoder-only transformers model, unmodified: passes run on a view of it (``view.py``).

    The model may be changed between generations: each begins with a look at it. Threads may share a target: its passes
    run one after another.

    Args:
        model: a ``PreTrainedModel`` with a language-model head, in eval mode.
        runtime: how passes run; see ``Runtime``.
        exact: find, by a self-test before the first pass, the widths whose rows are bit-equal, and pad narrower
            passes up to them. False pads nothing (a draft's bits do not matter), nor does a mixture of experts.
        quantization, head: see ``Runtime``.

    Raises:
        UnsupportedModelError: a model whose cache or attention cannot carry token trees.
    """

    def __init__(
        self,
        model: Any,
        *,
        runtime: RuntimeName = "auto",
        exact: bool = True,
        quantization: Quantization = "none",
        head: Quantization | None = None,
    ) -> None:
        require_model(model)
        self.model, self.revision, self.lock = model, 0, RLock()
        self._wanted, self._quantization, self._head, self._exact = runtime, quantization, head, exact
        self._may_change = runtime == "auto" and quantization == "none"
        self._build()

    def _build(self) -> None:
        """All that is made of the model as it is now."""
        model = self.model
        stamp, view = Stamp(model), view_of(model)
        family = describe(view)
        require_own_lengths(view)
        rotate_by_own_length(view)
        runtime = self._runtime_of(view, family)
        # From here on nothing is refused: a model that was is looked at anew, and all that was made of it stays.
        self._stamp = stamp
        self.view, self.family, self.runtime = view, family, runtime
        self._forget("layers", "num_parameters", "_selftest_cache", "measured", "invariant")
        self._embedding = self._embedding_kind()
        self.vocab_size = int(self._embedding[0][0])
        fixed = self._exact and not (family.routed or family.chains_only)
        self.exactness = self._exactness() if fixed else None
        if family.chains_only and runtime.static:
            runtime.uncaptured()
            runtime.static = False
        self.passes = self._static_passes() if runtime.static else None
        self.long_after = compat.long_after(view)
        self.rereads_at = self.long_after if compat.rereads_long_texts(view) else None
        self._checked = False

    def _runtime_of(self, view: Any, family: Family) -> Runtime:
        return Runtime(view, self._wanted, family.layer_windows, self._quantization, self._head)

    def _forget(self, *properties: str) -> None:
        for name in properties:
            self.__dict__.pop(name, None)

    def refresh(self) -> int:
        """Look whether the model is still what it was, and make everything anew where it is not.

        Returns:
            The revision, which rises where the model is another one.

        Raises:
            UnsupportedModelError: it cannot be a target any more.
        """
        with self.lock:
            if self._stamp is not None and not self._stamp.fits(self.model):
                self._build()
                self.revision += 1
            elif self.runtime.outdated:  # other values in the same weights: only copies of them are of no use any more
                self.runtime = self._runtime_of(self.view, self.family)
            return self.revision

    def release(self, *, head: bool = True) -> None:
        """Give back the memory of weights that were quantised; only for a model that nobody else has.

        The arguments are those of ``Runtime.release``.
        """
        _ = self.num_parameters, self._selftest_cache  # they need the weights
        self.runtime.release(head=head)
        self._stamp = None

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return int(self.model.num_parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that its passes read."""
        return self.runtime.nbytes

    def prepare(self, rows: int = 1, nodes: int = 0) -> None:
        """Run the self-tests, if they have not run yet; ``begin`` does so too.

        Args:
            rows: sequences of the batch to come.
            nodes: tokens of its largest tree. Shapes beyond these are tried when they first occur.

        Raises:
            UnsupportedModelError: the model does not follow a tree's mask and positions.
        """
        with self.lock:
            self._check()
            if self.exactness is not None:
                self.exactness.calibrate(nodes)
                branched = self.runtime.exact_branches
                self.exactness.certify(rows, nodes, branched=branched)
                if rows > 1 and self.runtime.ragged:  # such a pass is of one row, with the nodes of all
                    self.exactness.certify(1, rows * nodes, branched=branched)
                _ = self.invariant

    @cached_property
    def invariant(self) -> bool:  # type: ignore[override]
        """See ``ModelPasses``: where all passes run our kernels, and a test finds no bit that differs."""
        runtime, widest = self.runtime, native.MOST_ROWS
        own = runtime.own_attention(1, widest) and runtime.alike(1, widest) and not self.family.routed
        if self.family.chains_only or not own or any(map(compat.keeps_length, self.view.modules())):
            return False
        with self.lock:
            if (known := self.measured.get("reading")) is None:
                known = reads_alike(self)
                self.measured.keep("reading", known)
        return bool(known)

    def _check(self) -> None:
        """Whether the model follows a tree: asked once."""
        if not self._checked:
            try:
                once(self._selftest_cache, "tree", lambda: check_tree(self))
            except UnsupportedModelError:
                if not self._may_change or self.runtime.name == "eager":
                    raise
                self._run_eagerly()
            self._checked = True

    def _run_eagerly(self) -> None:
        """Our runtime does not fit how this model, or this release of transformers, calls its layers.

        Raises:
            UnsupportedModelError: the model as it is does not follow a tree either.
        """
        name, self.runtime = self.runtime.name, Runtime(self.view, "eager", self.family.layer_windows)
        self.passes, self.exactness = None, None if self.exactness is None else self._exactness()
        self._forget("_selftest_cache", "measured", "invariant")
        once(self._selftest_cache, "tree", lambda: check_tree(self))
        problem = f"the runtime {name} does not fit the forward of {self.family.name}, which runs eagerly"
        compat.warn_once(problem + compat.advice_if_untested())

    def ready(self) -> HuggingFaceTarget:
        """Itself, of the model as it is now and tested."""
        self.refresh()
        self.prepare()
        return self

    def begin(self, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        """See ``Target.begin``."""
        if self.ready().family.chains_only:
            return ChainSession(self, prefixes)
        return HuggingFaceSession(self, prefixes, self.exactness)

    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        """See ``Target.begin_reading``."""
        if self.ready().family.chains_only:
            return ChainSession(self, prefixes, unread=True)
        return HuggingFaceSession(self, prefixes, self.exactness, unread=True)

    def begin_idle(self, rows: int, length: int) -> TargetSession:
        """See ``Target.begin_idle``: one token is read, and its keys and values are repeated.

        Raises:
            ValueError: more tokens than the model's context holds.
        """
        if length < 1:
            return self.begin([[]] * rows)
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"length is {length} and the model's context holds {self.context_length}; give fewer")
        if self.ready().family.chains_only:
            session = ChainSession(self, [[PADDING] * length])
            session.repeat(rows)
            return session
        return HuggingFaceSession(self, [[PADDING]], self.exactness).fork(rows, length, capacity_for(length))

    def begin_from_cache(self, session: TargetSession, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        """The same, with a copy of the KV cache of a session over these prefixes, if that runs this very model.

        A copy in fewer bits that drafts for its model need not read prompts anew: the model's own keys and values are
        what its own come near to.
        """
        if not isinstance(session, HuggingFaceSession) or session._target.model is not self.model:
            return self.begin_reading(prefixes)
        if self.passes is not None or session.cache.lengths != [len(prefix) for prefix in prefixes]:
            return self.begin_reading(prefixes)
        return session.copy(self.ready())

    def begin_unpadded(self, prefixes: Sequence[Sequence[int]], *, unread: bool = False) -> HuggingFaceSession:
        """The same without the self-tests and without padding.

        Args:
            prefixes: see ``begin``.
            unread: where ``read`` reads them.
        """
        return HuggingFaceSession(self, prefixes, None, unread=unread)

    def _static_passes(self) -> StaticPasses:
        capture = CudaCapture(self.model.device) if self.runtime.name == "graphs" else None
        return StaticPasses(self.forward, self.model.device, capture, self.runtime.uncaptured)

    @cached_property
    def _selftest_cache(self) -> SelfTestCache | None:
        """What earlier self-tests found, opened with the first."""
        return cache_of(self.model, self.runtime.name)

    @cached_property
    def measured(self) -> SelfTestCache:
        """What was measured of this model's passes and of drafts for it: kept where self-tests are, else in memory."""
        return self._selftest_cache or SelfTestCache(None)

    def _exactness(self) -> Exactness:
        text = compat.text_config(self.model)
        return Exactness(
            self.begin_unpadded,
            self.vocab_size,
            self.context_length,
            dtype=self.model.dtype,
            activations=text.num_hidden_layers * text.hidden_size,
            simple=self.runtime.own_attention,
            alike=self.runtime.alike,
            one_width=self.runtime.static,
            cache=lambda: self._selftest_cache,
        )
