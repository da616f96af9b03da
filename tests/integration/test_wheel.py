"""The wheel of ``make wheel``, installed where there is no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from specstream.environment import GENERIC, level
from specstream.models.runtime.compiled import find_compiler
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler to build the wheel with"),
    pytest.mark.skipif(level() == GENERIC, reason="no wheel holds kernels for this processor"),
    # This machine's level only, from the user's cache; a machine that has never compiled it takes a minute.
    pytest.mark.timeout(900),
]


def pip(*words: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(folder: Path, levels: str) -> Path:
    pytest.importorskip("hatchling")
    words = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    pip(*words, SPECSTREAM_WHEEL_LEVELS=levels)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), level().name)


def libraries(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


def test_it_holds_kernels_and_says_for_which_systems(wheel: Path) -> None:
    assert libraries(wheel) == [f"specstream/models/runtime/kernels/prebuilt/{level().name}.so"]
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    if sys.platform == "linux":
        assert "linux" in wheel.name


def test_without_being_asked_the_wheel_is_pure(tmp_path: Path) -> None:
    pure = build(tmp_path, "")
    assert pure.name.endswith("-py3-none-any.whl") and not libraries(pure)


def test_it_runs_natively_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    home, model = tmp_path / "home", tmp_path / "model"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    # The other packages are those of this environment; its own specstream, installed as a link, is not seen through.
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(packages, "others.pth").write_text("\n".join(sorted(paths)))
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)

    # An empty search path holds no compiler, and an empty cache no kernels.
    environ = {name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHONPATH")}
    environ |= {"PATH": str(home / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "SPECSTREAM_CPU": level().name}
    words = ["generate", "the cat", "--model", str(model), "--no-chat", "-n", "8", "--json"]
    done = subprocess.run(
        [home / "bin" / "specstream", *words], env=environ, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["runtime"], result["cpu_level"]) == ("native", level().name)
    assert "compil" not in done.stderr
    assert not (tmp_path / "cache" / "specstream" / "kernels").exists()
    where = subprocess.run(
        [python, "-c", "from specstream.models.runtime import native; print(native.kernels().state, native.__file__)"],
        env=environ,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    ).stdout.split()
    assert where[0] == "prebuilt" and Path(where[1]).is_relative_to(home)
