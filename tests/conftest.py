"""Strict numerics for every test; what several tests compile is compiled once, and forgotten in time."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Some jaxlib releases miscompile reductions of high rank on CPU unless this fusion is off. Nearly all of the time goes
# into compiling, half of that into LLVM's optimisation; without it the numbers are the same but for rounding.
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type= --xla_backend_optimization_level=0')

# What is compiled is kept for the processes that tests start too, and apart from the user's own cache.
os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='patterson_jax_compiled_')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # as patterson_jax/command_line.py has it

import jax
import pytest

atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


# A compiled program takes hundreds of memory mappings. Linux allows a process 65,530; beyond, LLVM crashes.
MOST_MAPPINGS = 30_000


@pytest.fixture(autouse=True)
def few_mappings():
    """Unloads what is compiled, before there is too much of it."""
    yield
    mappings = Path('/proc/self/maps')
    if mappings.exists() and mappings.read_bytes().count(b'\n') > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope='module')
def optax_promotes_types():
    """Optax multiplies floats by an integer count, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion('standard'):
        yield
