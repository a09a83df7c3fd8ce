"""Strict numerics for every test; what several tests compile is compiled once, and forgotten in time."""

import atexit
import gc
import os
import platform
import shutil
import tempfile

import jaxlib.version

# Some jaxlib releases compute wrongly on CPU unless this fusion is off (patterson_jax/compiler.py). Nearly all of the
# time goes into compiling, half of that into LLVM's optimisation; without it the numbers are the same but for rounding.
# More than half of the rest goes with the older way of fusing operations, which a later jaxlib lacks; that joins
# products and sums, in other places for another batch, unless the processor is taken for one that cannot.
# A program is not split into parts for many cores, which costs a quarter of the time: the other core has its own tests.
# Where much is computed it takes longer: such tests start processes, as users do (users_environment in tiny.py).
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_cpu_experimental_ynn_fusion_type= --xla_backend_optimization_level=0'
    ' --xla_cpu_parallel_codegen_split_count=1'
    + (
        ' --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX'
        if jaxlib.version.__version_info__ < (0, 11, 1) and platform.machine() in ('x86_64', 'AMD64')
        else ''
    ),
)

# What is compiled is kept for all workers and for the processes that they start, and apart from the user's own cache.
os.environ['JAX_COMPILATION_CACHE_DIR'] = (
    os.environ.get('JAX_COMPILATION_CACHE_DIR') if 'PYTEST_XDIST_WORKER' in os.environ else None
) or tempfile.mkdtemp(prefix='patterson_jax_compiled_')  # which a worker has from the process that started it
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # as patterson_jax/command_line.py has it

import jax
import pytest

from patterson_jax.solving.programs import unload_in_time

if 'PYTEST_XDIST_WORKER' not in os.environ:
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


# JAX makes so many objects while it traces that Python would look for garbage a tenth of the time.
gc.set_threshold(50_000, 20)


def pytest_collection_finish():
    """What is imported and collected stays, and need not be looked through again and again."""
    gc.collect()
    gc.freeze()


# They take a minute, or a good part of one; begun last, one of them would keep a single core busy at the end.
LONGEST = ('experiment', 'training', 'device_benchmark', 'solver', 'stopping', 'distributed', 'command_line')
LONGEST += ('pretrained', 'publishing', 'survival', 'evaluation', 'projection_training', 'golden', 'least_squares')
LONGEST += ('crystal_projection', 'unrolled', 'ablations', 'inspection', 'benchmarks', 'runs')


def pytest_collection_modifyitems(items):
    """The files that take longest come first; within a file the order stays."""
    names = [f'test_{name}' for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


MOST_MAPPINGS = 30_000  # of memory, after which programs are unloaded; one test alone may need thousands
COMPILATIONS: list[str] = []  # since the last test


def note_compilation(event, *_, **__):
    if event.endswith('backend_compile_duration'):
        COMPILATIONS.append(event)


jax.monitoring.register_event_duration_secs_listener(note_compilation)


@pytest.fixture(autouse=True)
def few_mappings():
    """Unloads what is compiled, before there is too much of it."""
    yield
    if COMPILATIONS:
        unload_in_time(MOST_MAPPINGS)
    COMPILATIONS.clear()


@pytest.fixture(scope='module')
def optax_promotes_types():
    """Optax multiplies floats by an integer count, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion('standard'):
        yield
