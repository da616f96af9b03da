"""Choosing a drafter for a prompt, and learning from what it turned out to be worth: a contextual bandit.

The trained table says what to expect of each drafter. What it does not know, such as that this machine is another one,
is a residual of its own for each drafter: Bayesian linear regression over the table's hidden layer, with a normal
prior around 0. The choice is Thompson sampling (Thompson 1933; Agrawal and Goyal, arXiv 1209.3352): a drafter's worth
is drawn from what is believed of it, and the largest is taken, so that it is tried as often as it may be the best.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from specstream.errors import UsageError, is_number, must_be, shown
from specstream.files.atomic import path_of
from specstream.models.architecture.families import require_model
from specstream.routing.config import DrafterSpec, RouterConfig, check_drafters, router_config
from specstream.routing.features import HINTS, Features
from specstream.routing.model import RouterModel
from specstream.routing.state import Beliefs

_log = logging.getLogger("specstream.routing")


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What was chosen, and why.

    Attributes:
        drafter: its name.
        expected: what each drafter was expected to be worth, as its speed over plain decoding's.
        seconds: that the choice took, features included.
        features: of the prompts, ``[rows, features]``.
        router: that chose, and learns of it.
    """

    drafter: str
    expected: dict[str, float]
    seconds: float
    features: Tensor
    router: Router = field(repr=False)

    def learn(self, tokens_per_second: float, *, plain: float) -> None:
        """Tell the router what the drafter was worth on these prompts; see ``Router.observe``."""
        if len(self.features) > 1:
            count = len(self.features)
            raise UsageError(f"the choice is of {count} prompts, and a router learns of one; choose for each")
        self.router.observe(self.features, self.drafter, tokens_per_second, plain=plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a result."""
        return {"drafter": self.drafter, "seconds": self.seconds, "expected": self.expected}


class Router:
    """Chooses among the drafters that it was trained with.

    Args:
        model: the trained table.
        config: how to go on learning.
        generator: the source of chance.
    """

    def __init__(self, model: Any = None, config: Any = None, generator: Any = None) -> None:
        if not isinstance(model, RouterModel) or not isinstance(config, RouterConfig):
            raise UsageError(
                f"a router is made of {type(model).__name__} and {type(config).__name__}; "
                "give its folder: AdaptiveRouter.from_config({'router': FOLDER})"
            )
        self.model, self.config = model, config
        self._generator = generator
        self._features: Features | None = None
        self._tokenizer: Any = None
        self._beliefs = Beliefs(
            names=model.names,
            router=model.fingerprint,
            hidden=model.network.hidden.out_features,
            noise=[model.noise[name] for name in model.names[1:]],
            doubt=config.doubt,
            memory=config.memory,
            plain=model.plain_tokens_per_second,
        )
        if config.state is not None and Path(config.state).exists():
            self._beliefs.load(config.state, "router_state", "a new name, to begin anew")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError("a router cannot be pickled or copied; save_state(FILE), and make one where it is needed")

    @classmethod
    def from_config(cls, config: RouterConfig | Mapping[str, Any] | str | Path) -> Self:
        """A router from its configuration: an object, its fields, or a YAML file of them.

        Raises:
            UsageError: an unknown key, fewer than two drafters, or a state that does not belong to this router.
            ModelNotFoundError: there is no router in the folder.
        """
        config = router_config(config)
        return cls(RouterModel.load(config.router), config, torch.Generator().manual_seed(config.seed))

    @property
    def drafters(self) -> Mapping[str, DrafterSpec]:
        """What it chooses from."""
        return self.model.drafters

    def bind(self, target: Any, tokenizer: Any = None) -> None:
        """Take the target whose prompts these will be.

        Args:
            target: the transformers model.
            tokenizer: its tokenizer; only mpnet's embedding and prompts given as text need it.

        Raises:
            UnsupportedModelError: the target is no transformers model.
            HeadMismatchError: the router was trained for another target.
        """
        require_model(target)
        self._features, self._tokenizer = self.model.features(target, tokenizer), tokenizer

    def features(self, prompt: Any) -> Tensor:
        """Of one prompt, ``[features]`` float32.

        Raises:
            UsageError: no target is bound yet, or a prompt that cannot be used.
        """
        if self._features is None:
            raise UsageError("the router knows no target yet; call bind(target, tokenizer) first")
        return self._features(self._tokens(prompt))

    def _tokens(self, prompt: Any) -> Sequence[int]:
        """The token ids of a prompt; here they are what is given."""
        ids: Sequence[int] = prompt
        return ids

    def choose(self, prompt: Any, *, among: Collection[str] | None = None, settled: bool = False) -> Choice:
        """The drafter for one prompt; see ``choose_for``."""
        return self.choose_for([prompt], among=among, settled=settled)

    def choose_for(
        self, prompts: Sequence[Any], *, among: Collection[str] | None = None, settled: bool = False
    ) -> Choice:
        """One drafter for all prompts of a batch: that with the best mean over the rows.

        Args:
            prompts: token ids of each.
            among: only these; None for all.
            settled: go by the trained table alone, without chance and without what was learned since.

        Raises:
            UsageError: fewer than two drafters, or one that the router does not know.
        """
        started = time.perf_counter()
        names = self.model.names
        given: Any = [] if among is None else among
        listed = isinstance(given, Collection) and all(isinstance(each, str) for each in given)
        must_be(listed and not isinstance(given, str), "among", given, f"a list of some of {', '.join(names)}")
        must_be(isinstance(settled, bool), "settled", settled, "True or False")
        if strange := sorted(set(among or ()) - set(names)):
            raise UsageError(f"drafter {strange[0]!r} is not the router's; give some of {', '.join(names)}")
        allowed = [name for name in names if among is None or name in among]
        check_drafters(dict.fromkeys(allowed))
        features = torch.stack([self.features(prompt) for prompt in prompts])
        ratios, hidden = self.model.predict(features)
        expected = drawn = ratios.mean(0)
        if not settled:
            shifts, deviations = self._beliefs.about(hidden.mean(0))
            chance = torch.randn(len(names), generator=self._generator) * self.config.explore
            expected = expected + shifts
            drawn = expected + deviations * chance
        best = max(allowed, key=lambda name: float(drawn[names.index(name)]))
        worth = {name: float(value.exp()) for name, value in zip(names, expected, strict=True) if name in allowed}
        seconds = time.perf_counter() - started
        return Choice(drafter=best, expected=worth, seconds=seconds, features=features, router=self)

    def observe(self, features: Tensor, drafter: str, tokens_per_second: float, *, plain: float | None = None) -> None:
        """Learn what a drafter was worth on a prompt, and save it where the configuration says, if that can be done.

        Args:
            features: of the prompt, ``[features]`` or ``[1, features]``.
            drafter: its name.
            tokens_per_second: of decoding.
            plain: of plain decoding in the same process; None takes what was last known of it.

        Raises:
            UsageError: a drafter that the router does not know, or a speed that is none.
        """
        if drafter not in self.model.names:
            raise UsageError(f"drafter {shown(drafter)} is not the router's; give one of {', '.join(self.model.names)}")
        size = len(HINTS) + len(self.model.network.mean)
        given: Any = features
        fits = isinstance(given, Tensor) and given.dtype == torch.float32 and given.numel() == size
        if isinstance(given, Tensor) and given.ndim == 2 and len(given) > 1 and given.shape[1] == size:
            raise UsageError(f"features are of {len(given)} prompts, and a router learns of one; give one row of them")
        must_be(
            fits and bool(features.isfinite().all()),
            "features",
            features,
            f"those of choose(prompt).features, {size} numbers",
        )
        for name, speed in (("tokens_per_second", tokens_per_second), ("plain", 1.0 if plain is None else plain)):
            must_be(is_number(speed) and speed > 0, name, speed, "a positive number")
        if not self.config.learn:
            return
        ratios, hidden = self.model.predict(features.reshape(1, -1))
        self._beliefs.learn(hidden[0], ratios[0], drafter, tokens_per_second, plain)
        if self.config.state is None:
            return
        try:
            self._beliefs.save(self.config.state, "router_state")
        except UsageError as error:  # a disk that is full costs nobody an answer; it is kept in memory
            _log.warning("%s", error)

    def save_state(self, path: str | Path) -> None:
        """Write what was learned since training into a file, which is whole or as it was.

        Raises:
            UsageError: the file cannot be written, or holds something else than an earlier state of this router.
        """
        self._beliefs.save(path_of("path", path, "a file"), "path")

    def load_state(self, path: str | Path) -> None:
        """Go on from what ``save_state`` wrote.

        Raises:
            UsageError: the file cannot be read, is damaged, or belongs to another router; nothing is changed then.
        """
        if not path_of("path", path, "a file of save_state").is_file():
            raise UsageError(f"path is {str(path)!r}, where no file is; give one that save_state wrote")
        self._beliefs.load(path, "path", "a file that save_state of this router wrote")
