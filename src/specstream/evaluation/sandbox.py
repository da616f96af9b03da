"""Runs one program under limits: a script of its own, started by ``execution.py``, never imported by it.

It reads a job from its standard input and says on a pipe what became of the program. Order matters: namespaces first,
while there is one thread; then limits; last the audit hook, which cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""Flags of unshare(2)."""

NO_NEW_PRIVILEGES = 38
"""Of prctl(2)."""

REFUSED = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.fork",
    "os.posix_spawn",
    "os.exec",
    "os.system",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "os.setxattr",
    "os.removexattr",
    "os.chown",
    "pty.",
    "signal.pthread_kill",
    "syslog.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "sqlite3.",
    "webbrowser.",
)
"""Events that are refused whatever they are about, by how their names begin."""

CHANGING = (
    "os.chdir",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.",
)
"""Events that change files: their arguments that are paths must lie in the program's own folder."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


def main() -> None:
    """Read the job, lock the door, run the program and say how it ended."""
    pipe = int(sys.argv[1])
    job = json.load(sys.stdin)
    isolation = [*leave_the_network(), limit(job["limits"]), "audit hook"]
    say(pipe, {"isolation": isolation})
    # Compiled before the hook is there: what is imported for an error message must not be refused.
    sys.addaudithook(hook(os.path.realpath(os.getcwd())))
    try:
        exec(compile(job["source"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        return
    except BaseException as error:
        say(pipe, {"error": f"{type(error).__name__}: {error}"[:300]})
        return
    say(pipe, {"proof": job["proof"]})


def say(pipe: int, what: dict[str, Any]) -> None:
    """One line to whoever started us."""
    os.write(pipe, json.dumps(what).encode() + b"\n")


def leave_the_network() -> list[str]:
    """Into a network namespace of its own, which has no connections; where the system does not let us, nothing."""
    library = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not hasattr(library, "unshare"):
        return []
    library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for flags, name in ((NEW_USER | NEW_NETWORK, "user and network namespace"), (NEW_NETWORK, "network namespace")):
        if library.unshare(flags) == 0:
            return [name]
    return []


def limit(limits: dict[str, Any]) -> str:
    """Lower what the process may use; never above what it was allowed already."""
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        # root is exempt from this one; the audit hook refuses new processes to everybody.
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in wanted.items():
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    return "resource limits"


def hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """What the interpreter asks before it does anything of note; an exception is a no."""
    real, join, separator, inside = os.path.realpath, os.path.join, os.sep, folder + os.sep

    def within(path: Any) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        place = real(text if text.startswith(separator) else join(folder, text))
        return place == folder or place.startswith(inside) or place == "/dev/null"

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & WRITING)
            if writes and not within(path):
                raise PermissionError(f"writing {path!r} is not allowed here")
        elif event.startswith(CHANGING) and not all(
            within(each) for each in arguments if isinstance(each, (str, bytes, os.PathLike))
        ):
            raise PermissionError(f"{event} is not allowed here")

    return refuse


if __name__ == "__main__":
    main()
