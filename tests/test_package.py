"""How the package is laid out: every folder is installed, and modules import only from those above them."""

import ast
import configparser
import graphlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import patterson_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'patterson_jax'
MODULES = sorted(PACKAGE.rglob('*.py'))
WINGS = {  # and the parts of the package, itself apart, that each may use
    'crystal': {'errors', 'precision'},
    'simulation': {'errors', 'compiler', 'precision', 'crystal'},
    'networks': {'errors', 'precision', 'simulation'},
    'learning': {'errors', 'precision', 'progress', 'writing', 'crystal', 'simulation', 'networks'},
    'solving': {'errors', 'precision', 'crystal', 'simulation'},
    'files': {'errors', 'writing', 'crystal'},
    'writing': set(),
    'errors': set(),  # no wings, but all may use them
    'compiler': {'errors'},
    'precision': set(),
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


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The package as setup.py and setup.cfg have it installed: of what lies beside it only what they name."""
    place = tmp_path_factory.mktemp('site')
    target = place / 'patterson_jax'
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns('__pycache__'))
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'setup.cfg')
    globs = settings['options.package_data']['patterson_jax.pretrained'].split()
    for kind, patterns in (('configs', ['*.py']), ('pretrained', globs)):
        named = (path for pattern in patterns for path in (ROOT / kind).glob(pattern))
        for path in (below for each in named for below in (each, *each.rglob('*')) if below.is_file()):
            copy = target / kind / path.relative_to(ROOT / kind)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return place


def run_installed(installed, program, directory):
    environment = os.environ | {'PYTHONPATH': str(installed)}
    line = [sys.executable, '-W', 'error', '-c', program]
    done = subprocess.run(line, env=environment, cwd=directory, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.splitlines()


def test_an_installed_package_has_its_network_and_its_configs(installed, tmp_path):
    program = f"""
import importlib, sys
import jax
import patterson_jax as pj
from patterson_jax.shipped import config_names, find_config, make_configs_importable
from patterson_jax.config import validate, validate_crystal, validate_projection

assert pj.__file__.startswith({str(installed)!r})
network = pj.load_network('unrolled')
print(sum(leaf.size for leaf in jax.tree.leaves(network.params)))
for name in config_names():
    make_configs_importable(find_config(name))
    config = importlib.import_module('configs.' + name).get_config()
    assert config_names() and importlib.import_module('configs.' + name).__file__.startswith({str(installed)!r})
    if 'ablation' not in config:
        others = {{'crystal': validate_crystal, 'states': validate_projection}}
        next((check for name, check in others.items() if name in config), validate)(config)
print(*config_names())
"""
    weights, names = run_installed(installed, program, tmp_path)
    assert int(weights) == 864_337
    assert names.split() == sorted(path.stem for path in (ROOT / 'configs').glob('[!_]*.py'))
    assert (installed / 'patterson_jax' / 'py.typed').exists()
    for network in (installed / 'patterson_jax' / 'pretrained').iterdir():
        assert sum(path.stat().st_size for path in network.rglob('*') if path.is_file()) < 6 * 2**20, network


def test_importing_the_package_imports_nothing_that_takes_time(tmp_path):
    program = "import sys, patterson_jax; print(sys.modules.keys() & {'jax', 'numpy', 'matplotlib', 'gemmi', 'flax'})"
    assert run_installed(ROOT, program, tmp_path) == ['set()']


def test_the_librarys_names_and_the_command_line_come_without_what_only_drawing_and_solving_need(tmp_path):
    program = """
import sys
import patterson_jax as pj
for name in pj.__all__:
    getattr(pj, name)
assert set(pj.__all__) <= set(dir(pj))
try:
    pj.solv
except AttributeError as error:
    print(error)
import patterson_jax.command_line
print(sys.modules.keys() & {'matplotlib', 'scipy'})
"""
    assert run_installed(ROOT, program, tmp_path) == ["module 'patterson_jax' has no attribute 'solv'", 'set()']


def test_type_checkers_see_every_public_name():
    """They read the imports that are only for them."""
    tree = ast.parse((PACKAGE / '__init__.py').read_text(encoding='utf-8'))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {alias.asname: node.module for node in branch.body for alias in node.names}
    assert named == {name: f'patterson_jax.{module}' for name, module in patterson_jax._MODULES.items()}


def test_every_public_function_is_typed():
    """With what it takes and what it gives; mypy then holds their bodies and their callers against that."""
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith('_')]
        for function in (node for owner in (tree, *classes) for node in owner.body):
            if not isinstance(function, ast.FunctionDef) or function.name.startswith('_'):
                continue
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
            untyped = [each.arg for each in arguments if each.annotation is None and each.arg not in ('self', 'cls')]
            assert not untyped, (path, function.name)
            assert function.returns is not None, (path, function.name)


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


def test_a_page_tells_what_each_module_is_for():
    _, _, rest = (ROOT / 'docs' / 'code.md').read_text(encoding='utf-8').partition('\npatterson_jax/\n')
    folders, told = (), set()
    for line in rest.partition('```')[0].splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2 - 1
        folders = folders[:depth]
        if name.endswith('/'):
            folders = (*folders, name.rstrip('/'))
        elif name.endswith('.py'):
            told.add((*folders, name))
    assert told == {path.relative_to(PACKAGE).parts for path in MODULES if path.name != '__init__.py'}


def test_modules_do_not_import_one_another_in_circles():
    names = {path.relative_to(PACKAGE).with_suffix('').parts: path for path in MODULES if path.name != '__init__.py'}
    uses = {
        module: {other for name in own_imports(path) for other in (name, name[:-1]) if other in names}
        for module, path in names.items()
    }
    assert any(uses.values())
    graphlib.TopologicalSorter(uses).prepare()  # raises CycleError, which names the circle
