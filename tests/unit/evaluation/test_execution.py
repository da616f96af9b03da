"""Programs that loop, eat, fork, write, connect, leave early and flood: none passes, and none does harm."""

from __future__ import annotations

import sys
import textwrap

import pytest

from specstream.evaluation import execution
from specstream.evaluation.execution import Limits, run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's")

# A machine that is busy starts a process late: only the endless programs get a short time.
PATIENT = Limits(wall_seconds=240, cpu_seconds=20)


def outcome(source, limits=PATIENT):
    return run_program(textwrap.dedent(source), limits)


def test_a_program_that_ends_passes_and_one_that_raises_does_not():
    passed = outcome("def add(a, b):\n    return a + b\nassert add(1, 2) == 3\n")
    assert (passed.passed, passed.reason) == (True, "")
    assert {"resource limits", "audit hook"} <= set(passed.isolation)
    failed = outcome("assert 1 == 2, 'so it is'\n")
    assert (failed.passed, failed.reason) == (False, "AssertionError: so it is")
    assert outcome("def f(:\n").reason.startswith("SyntaxError")


@pytest.mark.parametrize(
    "leave",
    [
        "import sys; sys.exit(0)",
        "exit()",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_to_leave_before_the_asserts_is_not_to_pass(leave):
    assert not outcome(f"{leave}\nassert False\n").passed


def test_an_endless_loop_is_stopped_by_its_processor_time():
    found = outcome("while True:\n    pass\n", Limits(cpu_seconds=1, wall_seconds=240))
    assert (found.passed, found.reason) == (False, "timeout")


def test_waiting_for_ever_is_stopped_by_the_clock():
    found = outcome("import time\nwhile True:\n    time.sleep(1)\n", Limits(wall_seconds=4))
    assert (found.passed, found.reason) == (False, "timeout")


def test_what_held_a_program_is_known_even_if_it_was_killed():
    found = execution._outcome(b'{"isolation": ["resource limits"]}\nnoise\n', "timeout", "proof", -9)
    assert (found.passed, found.reason, found.isolation) == (False, "timeout", ("resource limits",))
    late = execution._outcome(b'{"proof": "proof"}\n', "timeout", "proof", -9)
    assert not late.passed


def test_a_memory_bomb_is_a_memory_error():
    found = outcome("held = []\nwhile True:\n    held.append(bytearray(1 << 26))\n")
    assert (found.passed, found.reason.partition(":")[0]) == (False, "MemoryError")


@pytest.mark.parametrize(
    "start",
    [
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_no_process_is_started(start):
    found = outcome(start)
    assert (found.passed, found.reason.partition(":")[0]) == (False, "PermissionError")


def test_a_program_writes_in_its_own_folder_only(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("here", encoding="utf-8")
    for source in (
        f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        f"import os; os.open({str(tmp_path / 'new.txt')!r}, os.O_CREAT | os.O_WRONLY)",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'mine.txt')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.symlink({str(tmp_path)!r}, 'way'); open('way/new.txt', 'w')",
        f"import os; os.chdir({str(tmp_path)!r}); open('new.txt', 'w')",
    ):
        assert outcome(source).reason.startswith("PermissionError"), source
    assert [each.name for each in tmp_path.iterdir()] == ["victim.txt"]
    assert outcome("open('mine.txt', 'w').write('x')\nassert open('mine.txt').read() == 'x'\n").passed
    assert outcome("open('mine.txt', 'w').write('x' * (2 << 20))\n").passed is False, "a file has a size"


def test_no_socket_is_opened():
    found = outcome("import socket\nsocket.socket()\n")
    assert found.reason.startswith("PermissionError: socket.")
    found = outcome("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')\n")
    assert not found.passed
    assert "PermissionError" in found.reason


def test_a_namespace_is_said_to_be_used_only_where_it_is():
    """The devices of the network that a program sees: none but its own loopback."""
    devices = "open('/proc/self/net/dev').read().splitlines()[2:]"
    alone = outcome(f"assert len({devices}) <= 1\n")
    if any("network" in each for each in alone.isolation):
        assert alone.passed
    else:
        pytest.skip("this system lends no namespaces; the audit hook alone refuses sockets")


def test_a_flood_of_output_is_thrown_away():
    assert outcome("for _ in range(2000):\n    print('x' * 10000)\n").passed


def test_a_flood_of_the_pipe_is_cut_and_proves_nothing():
    flood = (
        "import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'x' * 200000)\n    except OSError: pass\n"
    )
    found = outcome(flood)
    assert (found.passed, found.reason) == (False, "flooded the report")
    claim = 'import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b\'{"proof": ""}\\n\')\n'
    assert not outcome(claim + "    except OSError: pass\nassert False\n").passed
