"""The map of the package: modules, lines, layers, arrows and circles. Run `python -m tools.structure [FOLDER ...]`.

A folder's parts are its modules and its subfolders. The floor of a part is one above the highest of the parts that it
imports. An arrow says how many imports go from one part to another; imports for type checking only count too.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import grimp

PACKAGE = "specstream"
SOURCE = Path(__file__).resolve().parents[1] / "src"

Arrows = Mapping[tuple[str, str], int]
"""(importing part, imported part) -> imports"""


def arrows_between(graph: grimp.ImportGraph, folder: str) -> Counter[tuple[str, str]]:
    """The arrows between the parts of one folder, such as ``specstream.core``."""
    found = Counter[tuple[str, str]]()
    parts = graph.find_children(folder)
    for part in parts:
        for module in {part, *graph.find_descendants(part)}:
            for imported in graph.find_modules_directly_imported_by(module):
                other = ".".join(imported.split(".")[: folder.count(".") + 2])
                if other in parts and other != part:
                    found[part, other] += 1
    return found


def circles(arrows: Arrows) -> list[set[str]]:
    """Parts that reach each other: each circle once."""
    reached: dict[str, set[str]] = {}
    for start in {part for arrow in arrows for part in arrow}:
        seen, waiting = set[str](), [start]
        while waiting:
            at = waiting.pop()
            further = {other for part, other in arrows if part == at} - seen
            seen |= further
            waiting.extend(further)
        reached[start] = seen
    found: list[set[str]] = []
    for part, seen in reached.items():
        circle = {other for other in seen if part in reached.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def floors(arrows: Arrows, parts: set[str]) -> dict[str, int]:
    """The floor of each part, the lowest 1. There may be no circle."""
    floor: dict[str, int] = {}

    def of(part: str) -> int:
        if part not in floor:
            floor[part] = 1 + max((of(other) for mine, other in arrows if mine == part), default=0)
        return floor[part]

    return {part: of(part) for part in parts}


def lines_of(part: str) -> int:
    """Lines of a module, or of a folder's Python files."""
    path = SOURCE.joinpath(*part.split("."))
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def described(graph: grimp.ImportGraph, folder: str) -> str:
    """One folder's parts by floor, the highest first, and its arrows and circles."""
    parts, arrows = graph.find_children(folder), arrows_between(graph, folder)
    lines = [f"{folder}: {len(parts)} parts, {sum(map(lines_of, parts)):,} lines"]
    if found := circles(arrows):
        return "\n".join([*lines, *(f"  circle: {', '.join(sorted(circle))}" for circle in found)])
    floor = floors(arrows, parts)
    for part in sorted(parts, key=lambda each: (-floor[each], each)):
        down = ", ".join(
            f"{other.rpartition('.')[2]} {count}" for (mine, other), count in sorted(arrows.items()) if mine == part
        )
        lines.append(f"  {floor[part]:2}  {part.rpartition('.')[2]:20} {lines_of(part):6,}  {down and '-> ' + down}")
    return "\n".join(lines)


def main(folders: list[str]) -> None:
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False)
    packages = sorted(module for module in graph.modules if graph.find_children(module))
    if unknown := set(folders) - set(packages):
        raise SystemExit(f"there is no folder {sorted(unknown)[0]!r}; give one of: {', '.join(packages)}")
    for folder in folders or packages:
        print(described(graph, folder), end="\n\n")
    modules = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    found = circles({(module, other): 1 for module, others in modules.items() for other in others})
    print(f"{len(graph.modules)} modules, {lines_of(PACKAGE):,} lines, {len(found)} circles of modules")


if __name__ == "__main__":
    main(sys.argv[1:])
