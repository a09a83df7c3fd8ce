"""Side-by-side timings and scores, each module a program: `python -m benchmarks.NAME`."""

from pathlib import Path

from patterson_jax.compiler import avoid_wrong_fusion

ROOT = Path(__file__).resolve().parents[1]  # of the repository

avoid_wrong_fusion()
