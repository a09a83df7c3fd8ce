"""Side-by-side timings and scores, each module a program: `python -m benchmarks.NAME`."""

from patterson_jax.compiler import avoid_wrong_fusion

avoid_wrong_fusion()
