"""The documentation's examples are run: what a page says in Python is true."""

import re
from pathlib import Path

import pytest

import patterson_jax as pj
from patterson_jax.ablations import comparison_runs
from patterson_jax.config import validate
from patterson_jax.networks.registry import NETWORKS
from patterson_jax.solving.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
PAGES = ('extending.md', 'machine_learner.md')


def test_every_public_name_is_in_the_reference():
    text = (ROOT / 'docs' / 'api.md').read_text(encoding='utf-8')
    described = {line.rpartition('.')[2] for line in text.splitlines() if line.startswith('::: ')}
    assert set(pj.__all__) - {'__version__'} <= described


@pytest.mark.parametrize('page', PAGES)
def test_examples_run(page):
    """Each block of a page, alone, as a reader copies it; they hold assertions of their own. A config is valid."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, flags=re.S)
    assert blocks and any('assert' in block for block in blocks)
    before = [(registry, dict(registry)) for registry in (NETWORKS, METHODS)]
    try:
        for block in blocks:
            namespace = {'__name__': page}
            exec(compile(block, page, 'exec'), namespace)
            if 'get_config' in namespace:
                config = namespace['get_config']()
                assert comparison_runs(config) if 'ablation' in config else validate(config)
    finally:  # what a page registers does not stay
        for registry, known in before:
            registry.clear()
            registry.update(known)
