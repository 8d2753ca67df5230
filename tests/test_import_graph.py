"""Imports go one way, wherever they stand: nodes -> more4d_backend <- training."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("more4d_backend", "nodes", "training")


def _modules() -> dict[str, Path]:
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement, those inside functions and those that only type checkers read too."""
    for child in ast.iter_child_nodes(node):
        yield child
        yield from _statements(child)


def _imported(module: str, path: Path) -> Iterator[str]:
    """Yield the full names of what a module imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            above = package.split(".")
            # In the host the pack is a package itself, above all of ours.
            base = above[: max(0, len(above) - statement.level + 1)] if statement.level else []
            base += [statement.module] if statement.module else []
            yield from (".".join([*base, alias.name]) for alias in statement.names)


def _graph() -> dict[str, set[str]]:
    """Return the modules of ours that each module imports."""
    modules = _modules()
    graph = {}
    for module, path in modules.items():
        names = list(_imported(module, path))
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & modules.keys()) - {module}
    return graph


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return _graph()


def test_no_imports_go_in_a_circle(graph):
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(graph) > 150


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("more4d_backend", {"more4d_backend"}),
        ("nodes", {"more4d_backend", "nodes"}),
        ("training", {"more4d_backend", "training"}),
    ],
)
def test_imports_between_packages_go_one_way(graph, package, allowed):
    inside = {name: found for name, found in graph.items() if name.split(".")[0] == package}
    assert any(
        name.split(".")[0] == "more4d_backend" for found in inside.values() for name in found
    )
    wrong = {
        f"{module} imports {name}"
        for module, found in inside.items()
        for name in found
        if name.split(".")[0] not in allowed
    }
    assert wrong == set()


def test_the_backend_never_imports_the_host(graph):
    host = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "nodes"}
    wrong = {
        f"{module} imports {name}"
        for module, path in _modules().items()
        if module.split(".")[0] != "nodes"
        for name in _imported(module, path)
        if name.split(".")[0] in host
    }
    assert wrong == set()
