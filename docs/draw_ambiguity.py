"""Draws docs/ambiguity.png: `python docs/draw_ambiguity.py`."""

from pathlib import Path

from patterson_jax.figures import draw_ambiguity
from patterson_jax.simulation.homometry import example_pair, periodic_pair
from patterson_jax.simulation.problem import Problem

CELL_EDGE = 16
SEED = 564  # of a pair that can be seen well along z

if __name__ == '__main__':
    problem = Problem()
    pairs = example_pair(problem, seed=SEED), periodic_pair(CELL_EDGE)
    draw_ambiguity(Path(__file__).with_name('ambiguity.png'), *pairs, problem, CELL_EDGE)
