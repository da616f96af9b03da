"""What a router believes beyond its table, and the file that keeps it: safetensors, nothing that executes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specstream.errors import UsageError, one_line
from specstream.files.tensors_file import keep_tensors

FARTHEST = 3.0
"""Deviations of what is believed that one measurement may be off and still be believed as it is."""

MOST_DOUBT = 25.0
"""How many times the variance that the table's errors were taken to have they may turn out to have."""

SURPRISE_WEIGHT = 1 / 8
"""Of a new measurement in the running mean of how far the table is off."""


class Beliefs:
    """The residual of each drafter's log ratio beyond the table's: a normal distribution over a linear function.

    How much the table is doubted is measured too: ``surprise`` is the mean square of how far it was off, in deviations
    of noise and doubt, and scales the prior of every drafter: where one turned out to be overrated, those that it was
    preferred to may be underrated. It stays while the table is wrong about what is chosen, whether that is known by
    now or not: what was not tried since is tried.

    Args:
        names: the drafters; the first is plain decoding, whose residual is 0.
        router: fingerprint of the table.
        hidden: width of the table's hidden layer.
        noise: standard deviation of a measured log ratio, of each drafter but the first.
        doubt: standard deviation of the residuals before anything was measured.
        memory: measurements after which what was learned has faded to 1/e.
        plain: tokens per second of plain decoding, as far as known.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        router: str,
        hidden: int,
        noise: Sequence[float],
        doubt: float,
        memory: float,
        plain: float,
    ) -> None:
        size = 1 + hidden
        self.names = list(names)
        self._metadata = {"kind": "router state", "router": router, "drafters": ", ".join(names)}
        self.plain = plain
        self.surprise = 1.0
        self._noise = torch.tensor(noise, dtype=torch.float64)
        self._keep = math.exp(-1 / memory)
        # As much doubt in a constant as in everything that depends on the prompt.
        shares = torch.tensor([1.0, *[1 / hidden] * hidden], dtype=torch.float64)
        self._prior = torch.diag(1 / (doubt**2 * shares / 2))
        arms = len(self.names) - 1
        self.evidence = torch.zeros(arms, size, size, dtype=torch.float64)
        self.weighted = torch.zeros(arms, size, dtype=torch.float64)
        self._solve()

    def about(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every drafter's residual, ``[drafters]`` float32 each, at ``hidden``."""
        inputs = _inputs(hidden)
        means = self._means @ inputs
        deviations = ((self._covariances @ inputs) @ inputs).clamp(min=0).sqrt()
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.cat([zero, means]).float(), torch.cat([zero, deviations]).float()

    def learn(self, hidden: Tensor, table: Tensor, drafter: str, tokens_per_second: float, plain: float | None) -> None:
        """One measurement.

        Args:
            hidden: the table's hidden layer at the prompt, ``[hidden]``.
            table: its log ratios, ``[drafters]``.
            drafter: whose speed it is.
            tokens_per_second: of decoding.
            plain: of plain decoding; None takes what is known.
        """
        arm = self.names.index(drafter) - 1
        if plain is not None or arm < 0:
            self.plain = tokens_per_second if plain is None else plain
        self.evidence *= self._keep
        self.weighted *= self._keep
        if arm >= 0:
            inputs = _inputs(hidden)
            residual = math.log(tokens_per_second / self.plain) - float(table[arm + 1])
            noise = float(self._noise[arm]) ** 2
            expected = float(inputs @ torch.linalg.solve(self._prior, inputs)) + noise
            self.surprise += SURPRISE_WEIGHT * (min(residual**2 / expected, MOST_DOUBT) - self.surprise)
            self.surprise = max(self.surprise, 1.0)
            believed = float(self._means[arm] @ inputs)
            most = FARTHEST * math.sqrt(float(inputs @ self._covariances[arm] @ inputs) + noise)
            residual = believed + max(-most, min(most, residual - believed))
            self.evidence[arm] += torch.outer(inputs, inputs) / noise
            self.weighted[arm] += inputs * residual / noise
        self._solve()

    def tensors(self) -> dict[str, Tensor]:
        """All that is to be kept."""
        scalars = torch.tensor([self.plain, self.surprise], dtype=torch.float64)
        return {"evidence": self.evidence, "weighted": self.weighted, "scalars": scalars}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take what ``tensors`` gave.

        Raises:
            ValueError: they are none of such; nothing is changed.
        """
        own = self.tensors()
        for name, tensor in own.items():
            given = tensors.get(name)
            if given is None or given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise ValueError(f"{name} is missing or of another shape")
            if not bool(torch.isfinite(given).all()):
                raise ValueError(f"{name} holds NaN or infinity")
        evidence = tensors["evidence"]
        plain, surprise = tensors["scalars"].tolist()
        if plain <= 0 or not 1 <= surprise <= MOST_DOUBT:
            raise ValueError(f"scalars are {plain} and {surprise}")
        failures = torch.linalg.cholesky_ex(self._prior / surprise + evidence)[1]
        if not torch.allclose(evidence, evidence.mT) or bool(failures.any()):
            raise ValueError("evidence is no covariance")
        self.evidence, self.weighted = evidence.clone(), tensors["weighted"].clone()
        self.plain, self.surprise = plain, surprise
        self._solve()

    def _solve(self) -> None:
        self._covariances = torch.linalg.inv(self._prior / self.surprise + self.evidence)
        self._means = (self._covariances @ self.weighted[:, :, None])[:, :, 0]

    def save(self, path: str | Path, name: str) -> None:
        """Write them into a file, which is whole or as it was.

        Args:
            path: the file.
            name: of the argument, for the error.

        Raises:
            UsageError: the file cannot be written, or holds something else than these.
        """
        keep_tensors(path, name, self.tensors(), self._metadata)

    def load(self, path: str | Path, name: str, instead: str) -> None:
        """Take what ``save`` wrote.

        Args:
            path: the file.
            name: of the argument, for the error.
            instead: what to give.

        Raises:
            UsageError: it cannot be read, is damaged, or belongs to another router; nothing is changed then.
        """
        if Path(path).is_dir():
            raise UsageError(f"{name} is {str(path)!r}, which is a folder; give {instead}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            for key, own in self._metadata.items():
                if metadata.get(key) != own:
                    raise ValueError(f"its {key} is {metadata.get(key)!r} and the router's {own!r}")
            self.restore(tensors)
        except (OSError, SafetensorError, ValueError) as error:
            raise UsageError(f"{name} {str(path)!r} is not this router's: {one_line(error)}; give {instead}") from error


def _inputs(hidden: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), hidden.double()])
