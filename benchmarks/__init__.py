"""Timings and scores side by side. Programs are run as `python -m benchmarks.NAME`; each says so in its docstring."""

from pathlib import Path

from patterson_jax.compiler import avoid_wrong_fusion

ROOT = Path(__file__).resolve().parents[1]  # of the repository

avoid_wrong_fusion()
