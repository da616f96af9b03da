from __future__ import annotations

import grimp
import pytest

from tools.structure import PACKAGE, arrows_between, circles, described, floors


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=False)


def test_a_circle_is_found_once_and_what_hangs_on_it_is_none() -> None:
    arrows = {("a", "b"): 1, ("b", "c"): 2, ("c", "a"): 1, ("d", "a"): 1, ("c", "e"): 1}
    assert circles(arrows) == [{"a", "b", "c"}]
    assert circles({("a", "b"): 1, ("d", "a"): 1}) == []


def test_a_part_stands_above_all_that_it_imports() -> None:
    assert floors({("a", "b"): 1, ("b", "c"): 1, ("a", "c"): 1}, {"a", "b", "c", "d"}) == {
        "a": 3,
        "b": 2,
        "c": 1,
        "d": 1,
    }


def test_no_module_imports_itself_through_others(graph: grimp.ImportGraph) -> None:
    imports = {
        (module, other): 1 for module in graph.modules for other in graph.find_modules_directly_imported_by(module)
    }
    assert circles(imports) == []


def test_few_modules_lie_outside_the_folders(graph: grimp.ImportGraph) -> None:
    loose = [module for module in graph.find_children(PACKAGE) if not graph.find_children(module)]
    loose.remove(f"{PACKAGE}.__main__")  # where Python looks for it
    assert len(loose) <= 5, loose


def test_the_core_has_few_floors(graph: grimp.ImportGraph) -> None:
    core = f"{PACKAGE}.core"
    floor = floors(arrows_between(graph, core), graph.find_children(core))
    assert floor[f"{core}.decode"] == max(floor.values()) <= 6
    assert "decode" in described(graph, core).splitlines()[1]
