"""SpecStream: speculative decoding for Hugging Face causal language models, with the same output as the model alone.

Names are loaded when first used (PEP 562), so `import specstream` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from specstream.distribution import warn_of_other_distribution

if TYPE_CHECKING:
    from specstream.engine.engine import SpeculativeEngine
    from specstream.engine.functions import create_backend, custom_generate, speculative_decode
    from specstream.engine.results import GenerationResult
    from specstream.engine.routed import AdaptiveRouter
    from specstream.errors import SpecStreamError
    from specstream.heads.multistream import MultiStreamAttention
    from specstream.serving.deployment import DeploymentConfig
    from specstream.training.lora import LoRAAdapter

    __version__: str

__all__ = [
    "AdaptiveRouter",
    "DeploymentConfig",
    "GenerationResult",
    "LoRAAdapter",
    "MultiStreamAttention",
    "SpecStreamError",
    "SpeculativeEngine",
    "__version__",
    "create_backend",
    "custom_generate",
    "speculative_decode",
]

_MODULE_OF = {
    "AdaptiveRouter": "specstream.engine.routed",
    "DeploymentConfig": "specstream.serving.deployment",
    "GenerationResult": "specstream.engine.results",
    "LoRAAdapter": "specstream.training.lora",
    "MultiStreamAttention": "specstream.heads.multistream",
    "SpecStreamError": "specstream.errors",
    "SpeculativeEngine": "specstream.engine.engine",
    "create_backend": "specstream.engine.functions",
    "custom_generate": "specstream.engine.functions",
    "speculative_decode": "specstream.engine.functions",
}


warn_of_other_distribution()


def __getattr__(name: str) -> object:
    if name == "__version__":
        from specstream.distribution import VERSION

        return VERSION
    if name in _MODULE_OF:
        value: object = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
