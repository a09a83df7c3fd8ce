import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'patterson_jax'
MODULES = sorted(PACKAGE.rglob('*.py'))
WINGS = ('simulation', 'learning', 'solving')


def test_every_folder_is_a_package_and_so_is_installed():
    assert {module.parent for module in MODULES} == {module.parent for module in PACKAGE.rglob('__init__.py')}


@pytest.mark.parametrize('wing', WINGS)
def test_wings_import_only_from_those_they_may(wing):
    """Simulation knows no other wing; learning and solving use simulation; none of them uses the hall."""
    allowed = {'errors', 'simulation', wing} | ({'progress'} if wing == 'learning' else set())
    for module in (PACKAGE / wing).glob('*.py'):
        nodes = ast.walk(ast.parse(module.read_text(encoding='utf-8')))
        imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        ours = {name.split('.')[1] for name in imported if name.startswith('patterson_jax.')}
        assert ours <= allowed, module
