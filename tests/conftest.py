"""Strict numerics for every test; what several tests compile is compiled once."""

import atexit
import os
import shutil
import tempfile

# Some jaxlib releases miscompile reductions of high rank on CPU unless this fusion is off.
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=')

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

_cache = tempfile.mkdtemp(prefix='patterson_jax_compiled_')
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update('jax_compilation_cache_dir', _cache)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module')
def optax_promotes_types():
    """Optax multiplies floats by an integer count, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion('standard'):
        yield
