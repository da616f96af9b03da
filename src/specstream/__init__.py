"""SpecStream: speculative decoding for Hugging Face causal language models, with the same output as the model alone.

Names are loaded when first used (PEP 562), so `import specstream` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from specstream.distribution import warn_of_other_distribution

if TYPE_CHECKING:
    from specstream.engine import SpeculativeEngine
    from specstream.errors import SpecStreamError
    from specstream.functions import create_backend, custom_generate, speculative_decode
    from specstream.heads.multistream import MultiStreamAttention
    from specstream.lora import LoRAAdapter
    from specstream.results import GenerationResult
    from specstream.routed import AdaptiveRouter
    from specstream.serving.deployment import DeploymentConfig

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
    "AdaptiveRouter": "specstream.routed",
    "DeploymentConfig": "specstream.serving.deployment",
    "GenerationResult": "specstream.results",
    "LoRAAdapter": "specstream.lora",
    "MultiStreamAttention": "specstream.heads.multistream",
    "SpecStreamError": "specstream.errors",
    "SpeculativeEngine": "specstream.engine",
    "create_backend": "specstream.functions",
    "custom_generate": "specstream.functions",
    "speculative_decode": "specstream.functions",
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
