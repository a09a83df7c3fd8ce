"""How the package is laid out: every folder is installed, and modules import only from those above them."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'patterson_jax'
MODULES = sorted(PACKAGE.rglob('*.py'))
WINGS = {  # and the parts of the package, itself apart, that each may use
    'crystal': {'errors'},
    'simulation': {'errors', 'crystal'},
    'learning': {'errors', 'progress', 'crystal', 'simulation'},
    'solving': {'errors', 'crystal', 'simulation'},
    'files': {'errors', 'crystal'},
    'errors': set(),  # no wings, but all may use them
    'progress': set(),
}


def imported(source, package):
    """The modules, or names in them, that a source file imports at any place; all with their full names.

    Args:
        source: Python text.
        package: of the file, where relative imports start.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) + 1 - node.level] if node.level else []
            module = '.'.join([*above, *([node.module] if node.module else [])])
            yield from (f'{module}.{alias.name}' for alias in node.names)


def own_imports(path):
    """The parts of patterson_jax that a module imports, as tuples of names; `()` is the package as a whole."""
    package = '.'.join(path.relative_to(PACKAGE.parent).parent.parts)
    names = [tuple(name.split('.')) for name in imported(path.read_text(encoding='utf-8'), package)]
    return {name[1:] for name in names if name[0] == 'patterson_jax'}


def test_every_folder_is_a_package_and_so_is_installed():
    assert {module.parent for module in MODULES} == {module.parent for module in PACKAGE.rglob('__init__.py')}


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('import patterson_jax.runs', 'patterson_jax.runs'),
        ('import numpy, patterson_jax.runs as r', 'patterson_jax.runs'),
        ('import patterson_jax', 'patterson_jax'),
        ('from patterson_jax import runs', 'patterson_jax.runs'),
        ('from patterson_jax import errors, runs as r', 'patterson_jax.runs'),
        ('from patterson_jax.runs import load_weights', 'patterson_jax.runs.load_weights'),
        ('from .. import runs', 'patterson_jax.runs'),
        ('from ..runs import load_weights', 'patterson_jax.runs.load_weights'),
        ('from . import peaks', 'patterson_jax.solving.peaks'),
        ('from .peaks import find_peaks', 'patterson_jax.solving.peaks.find_peaks'),
        ('def f():\n    from patterson_jax import runs', 'patterson_jax.runs'),
    ],
)
def test_every_way_to_import_is_seen(line, name):
    assert name in set(imported(line, 'patterson_jax.solving'))


@pytest.mark.parametrize('part', WINGS)
def test_wings_import_only_from_those_they_may(part):
    """Crystal knows no other wing; simulation, files, and above it learning and solving go on; none knows the hall."""
    modules = [path for path in MODULES if path.relative_to(PACKAGE).with_suffix('').parts[0] == part]
    assert modules
    for module in modules:
        ours = {name[0] if name else 'the whole package' for name in own_imports(module)}
        assert ours <= WINGS[part] | {part}, module


def test_every_folder_is_a_wing_of_known_direction():
    assert {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()} <= WINGS.keys()


def test_modules_do_not_import_one_another_in_circles():
    names = {path.relative_to(PACKAGE).with_suffix('').parts: path for path in MODULES if path.name != '__init__.py'}
    uses = {
        module: {other for name in own_imports(path) for other in (name, name[:-1]) if other in names}
        for module, path in names.items()
    }
    assert any(uses.values())
    graphlib.TopologicalSorter(uses).prepare()  # raises CycleError, which names the circle
