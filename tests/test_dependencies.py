"""Every imported package is a dependency of its own in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.conftest import ROOT

OWN = {"pipeline", "stages", "models", "bench", "tests"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = packages_distributions()


def names_of(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[<>=\[;! ]", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions_imported_in(folder: str) -> dict[str, str]:
    """Distribution -> a file that imports it."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {module.split(".")[0] for module in modules} - OWN - sys.stdlib_module_names:
                # one that is not installed here is called as what it is imported as
                found[normal(INSTALLED.get(top, [top])[0])] = path.relative_to(ROOT).as_posix()
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("models", ()),
        ("pipeline", ()),
        ("stages", ()),
        ("bench", ("bench", "dev")),
        ("tests", ("dev", "fuzz")),
    ],
)
def test_every_import_is_of_a_dependency(folder, extras):
    listed = names_of(PROJECT["dependencies"]).union(*(names_of(EXTRAS[extra]) for extra in extras))
    found = distributions_imported_in(folder)
    assert found
    assert not {name: path for name, path in found.items() if name not in listed}


def test_every_dependency_that_ci_installs_has_a_version_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = names_of([line for line in lines if not line.startswith("#")])
    assert not names_of(PROJECT["dependencies"] + EXTRAS["dev"]) - pinned
