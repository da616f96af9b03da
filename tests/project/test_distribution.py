"""One name for pip, said once, and what happens where the other project of the package's name is installed too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specstream
from specstream.distribution import DISTRIBUTION, VERSION, install_line, other_distribution

ROOT = Path(__file__).parents[2]
TEXTS = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "configs").glob("*.yaml"),
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "pyproject.toml", "Makefile")),
]


def other(folder: Path, record: str = "specstream/__init__.py,sha256=abc,1087\n") -> Path:
    """A folder with the other project's metadata in it."""
    information = folder / "specstream-1.0.0.dist-info"
    information.mkdir(parents=True)
    (information / "RECORD").write_text(record, encoding="utf-8")
    return folder


def imported(*paths: Path) -> str:
    """What importing the package says, with these folders on the path."""
    path = os.pathsep.join(map(str, [ROOT / "src", *paths]))
    command = [sys.executable, "-c", "import specstream, specstream; specstream.__version__"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return done.stderr


def test_the_project_file_has_the_name_and_reads_the_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nname = "{DISTRIBUTION}"\n' in project
    assert '\ndynamic = ["version"]\n' in project and 'path = "src/specstream/distribution.py"' in project
    assert specstream.__version__ == VERSION
    assert set(re.findall(r'"(specstream[\w-]*)\[', project)) == {DISTRIBUTION}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_line_for_pip_names_the_other_project(file: Path) -> None:
    lines = re.findall(r"pip install[^`\n]*", file.read_text(encoding="utf-8"))
    named = [line for line in lines if re.search(r"(?<![\w./-])specstream(?![\w-])", line)]
    assert named == [] or file.name == "quickstart.md"  # which says what that line installs


def test_an_extra_is_installed_from_where_the_project_is() -> None:
    assert "pip install '.[serve]'" in install_line("serve") and DISTRIBUTION in install_line("serve")


def test_the_other_project_beside_this_one_is_said_once(tmp_path: Path) -> None:
    said = imported(other(tmp_path))
    assert said.count("another project's 'specstream'") == 1
    assert str(tmp_path) in said and "pip uninstall specstream" in said and DISTRIBUTION in said


def test_without_it_nothing_is_said(tmp_path: Path) -> None:
    assert "another project" not in imported(tmp_path, tmp_path / "nowhere", ROOT / "README.md")


def test_a_distribution_without_files_of_the_package_is_no_clash(tmp_path: Path) -> None:
    assert other_distribution([str(other(tmp_path / "a", "_editable_impl_specstream.pth,,\n"))]) is None
    (tmp_path / "b" / "specstream_decoding-0.1.0.dist-info").mkdir(parents=True)
    (tmp_path / "c" / "specstream-1.0.0.dist-info").mkdir(parents=True)
    assert other_distribution([str(tmp_path / "b"), str(tmp_path / "c")]) is None


def test_looking_for_it_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    code = "import sys, specstream; print(sorted({'importlib.metadata', 'email', 'pathlib'} & set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{other(tmp_path)}"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
