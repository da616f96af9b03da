"""What a run is asked for; every part's process is given the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked for.

    Attributes:
        output: the folder of the results.
        device: ``cuda`` or ``cpu``.
        tiny: small shapes and few repeats: for a test of this benchmark itself.
        smollm2: a folder with the weights of SmolLM2-135M; None for random weights of that shape.
        large: the same of Qwen2.5-1.5B.
        heads: folders of heads that were trained for the weights in ``smollm2``.
        seconds: the budget of the whole run.
    """

    output: Path
    device: str = "cuda"
    tiny: bool = False
    smollm2: str | None = None
    large: str | None = None
    heads: tuple[str, ...] = ()
    seconds: float = 480.0

    @property
    def arguments(self) -> list[str]:
        """The same as a command line."""
        given = {"--output": self.output, "--device": self.device, "--seconds": self.seconds}
        folders = {"--smollm2": self.smollm2, "--model-1.5b": self.large}
        found = {**given, **{name: folder for name, folder in folders.items() if folder is not None}}
        pairs = [*found.items(), *(("--heads", folder) for folder in self.heads)]
        return [*(str(each) for pair in pairs for each in pair), *(["--tiny"] if self.tiny else [])]

    @property
    def captured(self) -> str:
        """The runtime of captured passes; on a CPU the same passes without capturing."""
        return "graphs" if self.device == "cuda" else "static"

    @property
    def repeats(self) -> int:
        return 3 if self.tiny else 20

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
