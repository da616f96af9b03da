"""The build hook behind ``make wheel``: it puts the kernels of each level of this architecture into the wheel.

Editable installs, sdists and plain wheels stay pure: without ``SPECSTREAM_WHEEL_LEVELS`` nothing happens here.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "SPECSTREAM_WHEEL_LEVELS"
"""``all``, or names of levels between commas."""

OLDEST_GLIBC = 17
"""Of the systems that wheels are made for, as the minor version."""


class KernelsHook(BuildHookInterface):
    """Compiled libraries in a wheel that would be pure without them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get(VARIABLE, "")
        if not wanted or version == "editable":
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from specstream.environment import LEVELS, architecture

        levels = {each.name: each for each in LEVELS if each.machine == architecture()}
        names = list(levels) if wanted == "all" else wanted.split(",")
        if not names or not set(names) <= set(levels):
            raise SystemExit(f"{VARIABLE} is {wanted!r}; give all, or some of: {', '.join(levels)}")
        libraries = {name: _library(levels[name], Path(self.root) / "build" / "kernels") for name in names}
        for name, library in libraries.items():
            build_data["force_include"][str(library)] = f"specstream/models/runtime/kernels/prebuilt/{name}.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(list(libraries.values()))}"


def _library(level: Any, folder: Path) -> Path:
    """From the user's cache, from the last build, or compiled: their names hold all that they are made of."""
    from specstream.models.runtime.compiled import NoKernelsError, compile_kernels, find_compiler, kept_for

    compiler = find_compiler()
    if compiler is None:
        raise SystemExit("no C++ compiler was found; install g++ or set CXX")
    kept = kept_for(compiler, level)
    made = folder / kept.name
    for library in (kept, made):
        if library.exists():
            return library
    folder.mkdir(parents=True, exist_ok=True)
    partial = made.with_suffix(".partial")
    try:
        compile_kernels(compiler, level, partial)
    except NoKernelsError as error:
        raise SystemExit(f"{level.name}: {error}") from error
    os.replace(partial, made)
    return made


def platform_tag(libraries: Sequence[Path]) -> str:
    """The oldest systems that these libraries load on, as wheels name them: by the newest glibc symbols in them."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    symbols = [int(minor) for each in libraries for minor in re.findall(rb"\bGLIBC_2\.(\d+)", each.read_bytes())]
    if not platform.startswith("linux") or not symbols:
        return platform
    return platform.replace("linux", f"manylinux_2_{max(OLDEST_GLIBC, *symbols)}")
