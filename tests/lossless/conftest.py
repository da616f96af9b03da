from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models on several threads spend their time waiting for each other, and a busy machine makes it worse."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where this machine is lossless up to rounding only: no failure, but worth knowing."""
    reports = terminalreporter.stats.get("passed", [])
    found = [value for report in reports for name, value in report.user_properties if name == "rounding"]
    if found:
        terminalreporter.section('exact: "rounding" on this machine')
        terminalreporter.write_line("\n".join(found))
