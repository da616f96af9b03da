"""Supported versions: the metadata, the code, the lock file and the documentation agree. The matrix that tries them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from specstream.environment import TESTED, is_tested
from tools import matrix

ROOT = Path(__file__).parents[2]


def minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@pytest.mark.parametrize("package", TESTED)
def test_the_tested_releases_are_the_same_everywhere(package: str) -> None:
    low, high = TESTED[package]
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"^\| {package} \| ([^|]*) \|", page, re.MULTILINE | re.IGNORECASE)
    assert said.startswith(low)
    assert f"{high}.x" in said if high.isdigit() else high in said
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if package == "python":
        assert f'requires-python = ">={low}"' in project
        assert f'"Programming Language :: Python :: {high}"' in project
    else:
        assert f'"{package}>={low},' in project
        assert is_tested(package, matrix.locked(package.replace("_", "-")))


def test_the_lowest_transformers_is_the_same_everywhere() -> None:
    low, high = TESTED["transformers"]
    assert matrix.lower_bounds()["transformers"] == f"{low}.0"
    assert minor(low) <= minor(matrix.locked("transformers")) <= minor(high)
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"| transformers | {low} to {high}" in page
    assert f"| torch | {'.'.join(map(str, minor(matrix.lower_bounds()['torch'])))} to" in page
    assert f"`torch=={matrix.locked('torch')}`" in page


def test_no_dependency_is_held_to_one_version() -> None:
    (listed,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    needs = re.findall(r'^ +"(.*)",', listed, re.MULTILINE)
    assert len(needs) > 10
    assert [each for each in needs if not re.fullmatch(r"\w+>=[\d.]+,<\d+", each)] == []


def test_the_lock_file_names_versions_and_nothing_else() -> None:
    lines = [line for line in matrix.LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^@#]+)?", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert names >= {name.replace("_", "-") for name in matrix.lower_bounds()}
    assert names >= {"hatchling", "pytest", "setuptools"}


def test_constraints_leave_out_what_is_free() -> None:
    text = matrix.constraints(("torch", "nvidia-*"))
    assert not re.search("^(torch==|nvidia)", text, re.MULTILINE)
    assert re.search(
        "^numpy==.*\ntransformers==", re.sub("^(?!numpy|transformers).*\n", "", text, flags=re.MULTILINE), re.M
    )


REPORT = """<testsuites><testsuite>
<testcase classname="tests.contract.test_lossless" name="a[llama]"/>
<testcase classname="tests.contract.test_lossless" name="a[bloom]"><skipped message="no"/></testcase>
<testcase classname="tests.contract.test_lossless" name="a[phi]"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase classname="" name="tests.contract.test_server"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def row(tmp_path: Path) -> matrix.Row:
    (tmp_path / "junit.xml").write_text(REPORT, encoding="utf-8")
    parts, failures = matrix.tested(tmp_path / "junit.xml")
    return matrix.Row(
        name="newest", python="3.11", versions={"torch": "2.13.0"}, parts=parts, failures=failures, seconds=61.7
    )


def test_a_report_becomes_a_row(row: matrix.Row) -> None:
    assert row.parts == {"lossless": {"passed": 1, "skipped": 1, "failed": 1}, "server": {"failed": 1}}
    assert row.failures == ["lossless: a[phi]: assert 1 == 2", "server: tests.contract.test_server: collection failure"]
    assert not row.passed


def test_the_table_says_what_passed_and_what_did_not(row: matrix.Row) -> None:
    absent = matrix.Row(name="torch-9", python="3.11", reason="not installed: there is none", required=False)
    assert absent.passed
    assert not matrix.Row(name="newest", python="3.11", reason="not installed: no index").passed
    lines = matrix.table([row, absent]).splitlines()
    assert lines[0].endswith("| lossless | server | seconds |")
    assert lines[2].endswith("| 1 failed, 1 passed, 1 skipped | 1 failed | 62 |")
    assert lines[3].endswith("| not installed: there is none |  | 0 |")
    assert lines[5:] == [
        "- torch-9, Python 3.11: not installed: there is none",
        *(f"- newest, Python 3.11: {each}" for each in row.failures),
    ]


def test_an_unknown_combination_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        matrix.parse(["--only", "oldest"])
    assert "unknown combination oldest; known are lowest, locked, newest, torch-" in capsys.readouterr().err


def test_an_environment_sees_what_lies_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matrix, "BUILD", tmp_path)
    made = matrix.Environment(matrix.Combination(name="locked"), Path(sys.executable), "3", 1)
    made.prepare()
    first = made.python.stat().st_ctime_ns
    assert (
        made.versions()["torch"]
        == matrix.Environment(matrix.Combination(name="locked"), Path(sys.executable), "3", 1).versions()["torch"]
    )
    made.prepare()
    assert made.python.stat().st_ctime_ns == first, "what stands there is made once"


def test_what_cannot_be_installed_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matrix, "BUILD", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wanted = matrix.Combination(name="newest", wanted=("transformers==newest",), free=("transformers",))
    with pytest.raises(matrix.NotInstalled, match="not installed: No matching distribution found for transformers"):
        matrix.Environment(wanted, Path(sys.executable), "3", 1).prepare()
