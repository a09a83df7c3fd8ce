"""Strict numerics for every test."""

import os

# Some jaxlib releases miscompile reductions of high rank on CPU unless this fusion is off.
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=')

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
