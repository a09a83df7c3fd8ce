"""Least squares from random positions: refined at low resolution, where there are few false minima."""

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.least_squares import Stage, random_positions, refine, stages_from_random
from patterson_jax.solving.methods.method import Measured, Method, Proposal
from patterson_jax.solving.separation import SeparationSettings

STARTS = 16
KEPT = 4  # of these, which go on beyond the coarse stages
COARSE_STAGES = 2


def propose(
    key: Array, number: Array, measured: Measured, problem: Problem, separation: SeparationSettings
) -> Proposal:
    """Random positions, refined at low resolution; the best few of them."""
    stages = stages_from_random(problem)[:COARSE_STAGES]

    def start(key):
        return refine(random_positions(key, problem), measured.observed, problem, stages)

    refined = jax.vmap(start)(jax.random.split(key, STARTS))
    misfits = jnp.where(jnp.isfinite(refined.misfit), refined.misfit, jnp.inf)
    return Proposal(refined.positions[jax.lax.top_k(-misfits, KEPT)[1]])


def stages(repairs: bool, problem: Problem) -> list[Stage]:
    """The stages that come after those of `propose`; where there are no others, the last."""
    every = stages_from_random(problem)
    return every[1:] or every


LEAST_SQUARES = Method('least_squares', stream=1, starts=STARTS, propose=propose, stages=stages)
