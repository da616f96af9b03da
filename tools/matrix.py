"""The contract suite (tests/contract) with other releases: one environment each, and a table of what passed.

An environment is a thin layer over the one that runs this: a venv that sees the packages below it and holds only what
differs. So one of another transformers takes seconds and some megabytes. A torch from the index brings CUDA along,
5 to 6 GB; its environment is removed once its tests have run, unless ``--keep`` is given.

Run it by `make matrix`, or `make contract` for the newest transformers alone. It needs the standard library only.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
PROJECT = ROOT / "pyproject.toml"
BUILD = ROOT / "build" / "matrix"
SUITE = "tests/contract"

TORCH = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "newest")
SHOWN = ("torch", "transformers", "huggingface_hub", "tokenizers", "numpy")
ROOM_GB = 15
"""Free space below which no torch is installed: twice what one takes, its download included."""

_OF_TRANSFORMERS = ("transformers", "huggingface-hub", "tokenizers", "hf-xet", "httpx2", "httpcore2", "click")
_OF_TORCH = ("torch", "triton", "nvidia-*", "cuda-*", "setuptools")


class NotInstalled(Exception):
    """An environment that cannot be made here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What an environment holds beyond the lock file.

    Attributes:
        wanted: what pip is asked for. ``name==newest`` is the newest that the index has.
        free: patterns of the packages that need not be the locked ones.
        of_torch: whether it is another torch, which takes gigabytes: not everybody can install it.
    """

    name: str
    wanted: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    of_torch: bool = False


@dataclass(kw_only=True)
class Row:
    """A line of the table; ``required``: whether it is a failure if it cannot be installed."""

    name: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    required: bool = True

    @property
    def passed(self) -> bool:
        return not self.failures and (bool(self.parts) or not self.required)


def combinations() -> list[Combination]:
    """The lowest, the locked and the newest of transformers, and each build of torch that is not the locked one."""
    bounds = lower_bounds()
    lowest = tuple(f"{name}=={bounds[name]}" for name in ("transformers", "huggingface_hub"))
    newest = tuple(f"{name}==newest" for name in ("transformers", "huggingface_hub"))
    torches = [each for each in TORCH if each != locked("torch")]
    return [
        Combination(name="lowest", wanted=lowest, free=_OF_TRANSFORMERS),
        Combination(name="locked"),
        Combination(name="newest", wanted=newest, free=_OF_TRANSFORMERS),
        *(
            Combination(name=f"torch-{each}", wanted=(f"torch=={each}",), free=_OF_TORCH, of_torch=True)
            for each in torches
        ),
    ]


def lower_bounds() -> dict[str, str]:
    """Of each package that SpecStream needs, the lowest release that it admits."""
    listed = PROJECT.read_text(encoding="utf-8").partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
    found = re.finditer(r'^    "([\w-]+)>=([\w.]+)', listed, re.MULTILINE)
    bounds = {match[1].replace("-", "_"): match[2] for match in found}
    return {name: bound if bound.count(".") > 1 else f"{bound}.0" for name, bound in bounds.items()}


def locked(package: str) -> str:
    """The version of the lock file; the last one, where it names several for several Pythons."""
    found: list[str] = re.findall(rf"^{package}==([^ ;\n]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return found[-1]


def constraints(free: Sequence[str]) -> str:
    """The lock file without the packages that match a pattern."""
    lines = LOCK.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not any(fnmatch.fnmatch(line.partition("==")[0], each) for each in free))


class Environment:
    """A venv over another one, for one combination.

    Args:
        base: the interpreter of the environment below.
        python: its version, such as ``3.11``.
    """

    def __init__(self, combination: Combination, base: Path, python: str, minutes: float) -> None:
        self._combination, self._base, self._seconds = combination, base, minutes * 60
        self.folder = BUILD / f"{combination.name}-py{python}"
        self.python = self.folder / "bin" / "python"
        self._limits = BUILD / f"{self.folder.name}.txt"

    def prepare(self) -> None:
        """Make it, unless it stands there as it would be made now.

        Raises:
            NotInstalled: pip cannot, in the time that it has and the space that there is.
        """
        BUILD.mkdir(parents=True, exist_ok=True)
        limits = constraints(self._combination.free)
        self._limits.write_text(limits, encoding="utf-8")
        wanted = tuple(map(self._newest, self._combination.wanted))
        stamp, made_of = self.folder / "stamp.json", json.dumps([str(self._base), limits, wanted])
        if _read(stamp) == made_of:
            return
        self._create()
        if self._combination.of_torch:
            self._has_room()
        if wanted:
            self._pip(self.python, "install", *wanted)
        self._imports()
        stamp.write_text(made_of, encoding="utf-8")

    def _create(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([self._base, "-m", "venv", self.folder], check=True)
        below = _answer(self._base, "import sysconfig; print(sysconfig.get_path('purelib'))")
        own = Path(_answer(self.python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
        (own / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")

    def _newest(self, wanted: str) -> str:
        """The release that ``newest`` means; what is installed is left aside, as it would do where no index answers."""
        name, _, version = wanted.partition("==")
        if version != "newest":
            return wanted
        report = self._pip(self._base, "install", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", name)
        (item,) = json.loads(report)["install"]
        return f"{name}=={item['metadata']['version']}"

    def _pip(self, python: Path, *words: str) -> str:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **_within(self._limits)},
                capture_output=True,
                text=True,
                timeout=self._seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed within {self._seconds / 60:.0f} minutes") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise NotInstalled(f"not installed: {errors[-1].removeprefix('ERROR: ')}")
        return done.stdout

    def _has_room(self) -> None:
        free = shutil.disk_usage(self.folder).free / 1e9
        if free < ROOM_GB:
            raise NotInstalled(f"not installed: {free:.0f} GB are free, and a torch needs up to {ROOM_GB}")

    def _imports(self) -> None:
        done = subprocess.run(
            [self.python, "-c", "import torch, transformers"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotInstalled(f"installed, not importable: {done.stderr.strip().splitlines()[-1]}")

    def versions(self) -> dict[str, str]:
        code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
        return dict(json.loads(_answer(self.python, code)))

    def run(self) -> tuple[Path, float]:
        """The suite's report and its time. Warnings fail no test: a release may announce what is to change."""
        report = self.folder / "junit.xml"
        report.unlink(missing_ok=True)
        models = {"SPECSTREAM_MODELS": str(self.folder / "models")}  # converted by this transformers, not another
        command = [str(self.python), "-m", "pytest", SUITE, "-q", "-n", "auto", "--dist", "worksteal", "-W", "default"]
        start = time.monotonic()
        subprocess.run([*command, f"--junit-xml={report}"], cwd=ROOT, env={**os.environ, **models}, check=False)
        return report, time.monotonic() - start


def tested(report: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Of a report: by part of the suite, how many tests passed, failed and were skipped; and which failed, and why."""
    parts: dict[str, Counter[str]] = {}
    failures = []
    for case in ElementTree.parse(report).iter("testcase"):
        where = case.get("classname") or case.get("name") or ""  # a file that cannot be imported is a name alone
        part = where.rpartition(".test_")[2].partition(".")[0]
        problem = next((each for each in (case.find("failure"), case.find("error")) if each is not None), None)
        result = "failed" if problem is not None else "skipped" if case.find("skipped") is not None else "passed"
        parts.setdefault(part, Counter())[result] += 1
        if problem is not None:
            message = (problem.get("message") or "").strip().splitlines()
            failures.append(f"{part}: {case.get('name')}: {message[0] if message else 'no message'}")
    return {name: dict(counts) for name, counts in sorted(parts.items())}, failures


def measure(combination: Combination, base: Path, python: str, arguments: argparse.Namespace) -> Row:
    """Make an environment, run the suite in it, and say how it went."""
    row = Row(name=combination.name, python=python, required=not combination.of_torch)
    environment = Environment(combination, base, python, arguments.minutes)
    try:
        environment.prepare()
        row.versions = environment.versions()
        print(f"\n{row.name}, Python {python}: {row.versions}", flush=True)
        report, row.seconds = environment.run()
        row.parts, row.failures = tested(report) if report.exists() else ({}, ["the suite ended without a report"])
    except NotInstalled as error:
        row.reason = str(error)
        print(f"\n{row.name}, Python {python}: {error}", flush=True)
    if combination.of_torch and not arguments.keep:
        shutil.rmtree(environment.folder, ignore_errors=True)
    return row


def bases(pythons: Sequence[str], minutes: float) -> Iterator[tuple[str, Path, bool]]:
    """Locked environments to build on: this one, or one for each Python that is named, which is removed in the end."""
    if not pythons:
        yield f"{sys.version_info.major}.{sys.version_info.minor}", Path(sys.executable), False
    for each in pythons:
        found = shutil.which(each) or shutil.which(f"python{each}")
        if found is None:
            raise SystemExit(f"error: no Python {each!r} was found; give a version that is on the path, or a file")
        version = _answer(Path(found), "import sys; print('%d.%d' % sys.version_info[:2])")
        folder = BUILD / f"base-py{version}"
        yield version, _locked_base(Path(found), folder, minutes), True


def _locked_base(python: Path, folder: Path, minutes: float) -> Path:
    """An environment with what the lock file names, as `make test` makes it."""
    made, stamp = folder / "bin" / "python", folder / "stamp.json"
    if _read(stamp) != LOCK.read_text(encoding="utf-8"):
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        command = [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{ROOT}[test]"]
        subprocess.run(command, env={**os.environ, **_within(LOCK)}, check=True, timeout=minutes * 60)
        stamp.write_text(LOCK.read_text(encoding="utf-8"), encoding="utf-8")
    return made


def table(rows: Iterable[Row]) -> str:
    """Markdown: a line for each combination, a column for each part of the suite; below it, what failed."""
    rows = list(rows)
    parts = sorted({part for row in rows for part in row.parts})
    head = ["combination", "Python", *SHOWN, *parts, "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        versions = [row.versions.get(name, "") for name in SHOWN]
        cells = [_cell(row.parts.get(part, {})) for part in parts]
        if row.reason:
            cells = [row.reason, *[""] * (len(parts) - 1)][: len(parts)]
        lines.append([row.name, row.python, *versions, *cells, f"{row.seconds:.0f}"])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    unmade = [f"- {row.name}, Python {row.python}: {row.reason}" for row in rows if row.reason]
    failed = [f"- {row.name}, Python {row.python}: {each}" for row in rows for each in row.failures]
    return "\n\n".join(filter(None, [text, "\n".join([*unmade, *failed])])) + "\n"


def _cell(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[each]} {each}" for each in ("failed", "passed", "skipped") if counts.get(each)) or "-"


def _within(limits: Path) -> dict[str, str]:
    """What holds pip to a file of constraints, in place of the machine's own: the Makefile says why it is two names."""
    return {"PIP_CONSTRAINT": str(limits), "PIP_BUILD_CONSTRAINT": str(limits)}


def _answer(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [each.name for each in combinations()]
    parser.add_argument("--only", nargs="+", metavar="NAME", default=names, help=f"some of: {', '.join(names)}")
    parser.add_argument("--python", nargs="+", metavar="PYTHON", default=[], help="versions or files; default this one")
    parser.add_argument("--minutes", type=float, default=15, help="what one installation may take")
    parser.add_argument("--keep", action="store_true", help="keep the environments that hold a CUDA build of torch")
    arguments = parser.parse_args(words)
    if unknown := set(arguments.only) - set(names):
        parser.error(f"unknown combination {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if a test failed, or if a combination that has to be there could not be installed."""
    arguments = parse(words)
    rows = []
    for python, base, own in bases(arguments.python, arguments.minutes):
        rows += [measure(each, base, python, arguments) for each in combinations() if each.name in arguments.only]
        if own and not arguments.keep:
            shutil.rmtree(base.parents[1], ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "table.md").write_text(table(rows), encoding="utf-8")
    (BUILD / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    print(f"\n{table(rows)}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
