"""What a new developer reads first, and what a hosting site reads: paths, links, forms, versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from specstream.distribution import VERSION

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
FORMS = sorted(file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.name != "config.yml")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WHERE = "## Where things are"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def loaded(name: str) -> Any:
    return yaml.safe_load(read(name))


def section(page: str, heading: str) -> str:
    return page.partition(f"{heading}\n")[2].partition("\n## ")[0]


def paths_of(text: str) -> list[str]:
    """The paths of the repository that a text names in code."""
    return re.findall(r"`((?:src|tests|docs|configs|benchmarks|tools)/[^`\s]*)`", text)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def recipe(target: str) -> str:
    """The lines of a target of the Makefile."""
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, target
    return found[1]


PATHS = sorted(set(paths_of(section(read("CONTRIBUTING.md"), WHERE))))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_table_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_only_the_table_names_modules() -> None:
    page = read("CONTRIBUTING.md")
    table = section(page, WHERE)
    assert len(PATHS) >= 25
    assert [path for path in paths_of(page.replace(table, "")) if path.startswith("src/")] == []


@pytest.mark.parametrize(
    "question",
    [
        "Where is a drafted token accepted?",
        "How do I add a drafter?",
        ".. a family of models?",
        ".. a kernel?",
        ".. a task?",
        ".. an option of the server?",
        "Why did it not speculate here?",
    ],
)
def test_the_table_answers_a_question_with_a_module_and_its_test(question: str) -> None:
    row = re.search(rf"^\| {re.escape(question)} \| (.+) \| (.+) \|$", section(read("CONTRIBUTING.md"), WHERE), re.M)
    assert row
    assert any(path.startswith("src/") for path in paths_of(row[1]))
    assert all(path.startswith("tests/") for path in paths_of(row[2])) and paths_of(row[2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_name_targets_of_the_makefile() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"(?:`| {4})make ([\w-]+)", page.read_text(encoding="utf-8"))
    }
    assert {"test", "check", "wheel-install"} <= named
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony and named - set(phony[1].split()) == set()


def test_the_workflow_has_the_pythons_of_the_project() -> None:
    jobs = loaded(".github/workflows/ci.yml")["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in pythons)  # 3.10 without quotes is 3.1
    assert pythons == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert f'requires-python = ">={pythons[0]}"' in PROJECT
    used = {step["with"]["python-version"] for job in jobs.values() for step in job["steps"] if "with" in step}
    assert used - {"${{ matrix.python }}"} <= set(pythons)


def test_the_workflow_only_calls_make() -> None:
    workflow = loaded(".github/workflows/ci.yml")
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make test", "make wheel-install", "make docs"} <= set(commands)
    for command in commands:
        assert re.fullmatch(r"make [\w-]+", command)
        recipe(command.removeprefix("make "))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True]["push"] == {"branches": ["main"]}  # YAML 1.1 reads `on` as true


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    (repository,) = loaded(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"] for hook in repository["hooks"]]
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe("check").splitlines()]
    assert hooks == [check for check in checks if check != "$(MKDOCS)"]
    assert len({hook["id"] for hook in repository["hooks"]}) == len(hooks)


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_has_what_the_site_asks_for(file: Path) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"textarea", "input"}
    identifiers = [field["id"] for field in fields]
    assert identifiers and len(set(identifiers)) == len(identifiers)
    assert all(field["attributes"]["label"] and isinstance(field["validations"]["required"], bool) for field in fields)
    assert all("value" in field["attributes"] for field in form["body"] if field["type"] == "markdown")


def test_the_forms_ask_for_commands_that_exist() -> None:
    import typer

    from specstream.cli import build_app

    commands = set(typer.main.get_command(build_app()).commands)
    asked = {name for file in FORMS for name in re.findall(r"`specstream ([\w-]+)", file.read_text(encoding="utf-8"))}
    assert {"doctor", "audit"} <= asked and asked <= commands


def test_the_citation_has_the_fields_of_the_format() -> None:
    citation = loaded("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == VERSION
    assert f'license = "{citation["license"]}"' in PROJECT
    assert all(set(author) in ({"name"}, {"family-names", "given-names"}) for author in citation["authors"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["authors"][0]["family-names"] == "Bhendawade"
    assert paper["url"] == "https://arxiv.org/abs/2402.11131"


def test_the_changelog_keeps_its_form() -> None:
    lines = read("CHANGELOG.md").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_what_the_tests_read_is_in_the_source_distribution() -> None:
    included = re.search(r"sdist\]\ninclude = \[(.*?)\]", PROJECT, re.DOTALL)
    assert included
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", ".github", "mkdocs.yml", "Makefile"):
        assert f'"{name}"' in included[1]
        assert (ROOT / name).exists()
