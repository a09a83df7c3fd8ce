"""The documentation's examples are run: what a page says in Python is true."""

import re
from pathlib import Path

import pytest

from patterson_jax.networks.registry import NETWORKS
from patterson_jax.solving.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
PAGES = ('extending.md', 'machine_learner.md')


@pytest.mark.parametrize('page', PAGES)
def test_examples_run(page):
    """The blocks of a page in order, in one namespace; they hold assertions of their own."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, flags=re.S)
    assert blocks and any('assert' in block for block in blocks)
    namespace = {'__name__': page}
    before = [(registry, dict(registry)) for registry in (NETWORKS, METHODS)]
    try:
        for block in blocks:
            exec(compile(block, page, 'exec'), namespace)
    finally:  # what a page registers does not stay
        for registry, known in before:
            registry.clear()
            registry.update(known)
