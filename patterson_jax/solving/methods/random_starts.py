"""Least squares from random positions: refined at low resolution, where there are few false minima."""

import jax
import jax.numpy as jnp

from patterson_jax.solving.least_squares import Stages, random_positions, refine, stages_from_random
from patterson_jax.solving.methods.method import Method, Proposal, Request

STARTS = 16
KEPT = 4  # of these, which go on beyond the coarse stages
COARSE_STAGES = 2


def propose(request: Request) -> Proposal:
    """Random positions, refined at low resolution; the best few of them."""
    measured, problem = request.measured, request.problem
    stages = stages_from_random(measured, problem)
    coarse, later = Stages(*(each[:COARSE_STAGES] for each in stages)), Stages(*(each[1:] for each in stages))

    def start(key):
        return refine(random_positions(key, problem), measured, coarse)

    refined = jax.vmap(start)(jax.random.split(request.key, STARTS))
    misfits = jnp.where(jnp.isfinite(refined.misfit), refined.misfit, jnp.inf)
    return Proposal(refined.positions[jax.lax.top_k(-misfits, KEPT)[1]], later)


LEAST_SQUARES = Method('least_squares', stream=1, starts=STARTS, propose=propose)
