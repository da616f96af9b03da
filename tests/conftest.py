from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator

import pytest

from specstream.environment import limit_libraries

# Before torch is imported: on a machine that does other work too, threads that wait by spinning hold up the very
# threads they wait for, by whole time slices for every small operation.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["SPECSTREAM_NO_SELFTEST_CACHE"] = "1"  # tests break kernels on purpose: nobody shall remember it
limit_libraries()  # SPECSTREAM_CPU=x86-64-v3 runs the tests as on a smaller machine
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores out among them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

MOST_WORKERS = 8
WORKER_BYTES = 2 << 30
"""Memory that a worker is given room for, the default model in float32 included."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use, as far as the memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // WORKER_BYTES, MOST_WORKERS))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--first-cases", action="store_true", help="Of each losslessness test, run only the first of its cases."
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: no garbage collection looks through it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    refuse_unsteady_names(items)
    if config.getoption("--first-cases"):
        later = later_cases(items)
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in set(later)]


def later_cases(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of the tests of losslessness, all cases but the first of each function."""
    seen, later = set[str](), []
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function.startswith("tests/lossless/") and function in seen:
            later.append(item)
        seen.add(function)
    return later


def refuse_unsteady_names(items: list[pytest.Item]) -> None:
    """A test's name is the same in every process: pytest-xdist ends where its workers' lists differ.

    A set is shown in the order of its hashes, another one in each process; many objects are shown by their address.
    """
    for item in items:
        values = getattr(item, "callspec", None)
        given = values.params.values() if values else ()
        sets = [str(value) for value in given if isinstance(value, (set, frozenset)) and len(value) > 1]
        if re.search(r"0x[0-9a-f]{6}", item.name) or any(text in item.name for text in sets):
            raise pytest.UsageError(f"{item.nodeid}: its name changes from process to process; give the value an id")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where this machine is lossless up to rounding only: no failure, but worth knowing."""
    reports = terminalreporter.stats.get("passed", [])
    found = [value for report in reports for name, value in report.user_properties if name == "rounding"]
    if found:
        terminalreporter.section('exact: "rounding" on this machine')
        terminalreporter.write_line("\n".join(sorted(found)))


@pytest.fixture(scope="session")
def default_model_path() -> str:
    """The folder of the embedded default, fetched once if this machine does not have it yet."""
    from specstream.models.hub.catalog import DEFAULT_MODEL, resolve

    return resolve(DEFAULT_MODEL, progress=False)
