from __future__ import annotations

import subprocess
import sys

import pytest

import specstream

PUBLIC = [
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


def test_the_public_names_are_these_and_no_others() -> None:
    assert specstream.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(specstream))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(specstream, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = specstream.nothing


@pytest.mark.parametrize(
    "statement",
    [
        "import specstream",
        "import specstream.models.hub.catalog",
        "from specstream.cli import build_app; build_app()",
        "import specstream; specstream.SpecStreamError; specstream.__version__",
    ],
)
def test_importing_loads_no_heavy_package(statement: str) -> None:
    heavy = {"torch", "transformers", "huggingface_hub", "scipy"}
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
