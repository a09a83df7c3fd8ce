"""Compares our cosine and sine of phases with XLA's: alone, and in what needs many of them.

    python -m benchmarks.waves        # about a minute; table on stdout, JSON beside this file

All is measured in one process, each pair one after the other. A time is the best of several, device synchronised, after
the first calls. For the second of a pair, least squares and the placing of atoms have XLA's functions in place of ours.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.machine import available_cores, processor, slug
from benchmarks.tables import aligned_table
from benchmarks.timing import measure
from patterson_jax.crystal import waves
from patterson_jax.errors import exit_on_errors
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.invented_crystals import Recipe, invent
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import crystal_placement, least_squares, rebuilding, reflections
from patterson_jax.solving.crystal_phasing import prepare_crystal
from patterson_jax.writing import write_json

TITLES = {'what': 'what', 'ours': 'ours, s', 'xla': 'XLA, s', 'ratio': 'XLA / ours'}
NUM_PHASES = 50_000
STARTS = 16  # of least squares from random positions
REPEATS, SECONDS = 7, 10.0  # of each timing, at most


def by_xla(phases: Array) -> tuple[Array, Array]:
    """What `cosine_and_sine` gives, by XLA's functions."""
    return jnp.cos(phases), jnp.sin(phases)


@contextlib.contextmanager
def with_xla() -> Iterator[None]:
    """Least squares and the placing of atoms have XLA's functions."""
    _use(by_xla)
    try:
        yield
    finally:
        _use(waves.cosine_and_sine)


def _use(functions):
    modules: Any = (least_squares, crystal_placement)
    for module in modules:
        module.cosine_and_sine = functions
    jax.clear_caches()  # traces of functions of a module keep what they were made with


def tasks() -> dict[str, Callable[[], Callable[[], Any]]]:
    """What is measured, by name: each makes a function that is compiled at its first call."""
    return {
        f'cosine and sine of {NUM_PHASES} phases': phases_alone,
        f'least squares, 10 atoms, {STARTS} random starts': lambda: random_starts(10),
        f'least squares, 20 atoms, {STARTS} random starts': lambda: random_starts(20),
        'a set of 10 atoms rebuilt': lambda: a_set_rebuilt(10),
        'a set of 20 atoms rebuilt': lambda: a_set_rebuilt(20),
        'a start of placed atoms, P2₁2₁2₁, 11 atoms': placed_atoms,
    }


def phases_alone() -> Callable[[], Any]:
    """cos and sin of random phases."""
    phases = jnp.asarray(np.random.default_rng(0).uniform(-60, 60, NUM_PHASES), jnp.float32)
    compiled = jax.jit(lambda phases: least_squares.cosine_and_sine(phases))
    return lambda: compiled(phases)


def random_starts(num_atoms: int) -> Callable[[], Any]:
    """Least squares from random positions, all starts at once."""
    problem, data, keys = _case(num_atoms)

    def refine(key, data):
        start = least_squares.random_positions(key, problem)
        return least_squares.refine(start, data, least_squares.stages_from_random(data, problem))

    compiled = jax.jit(jax.vmap(refine, (0, None)))
    return lambda: compiled(keys, data)


def a_set_rebuilt(num_atoms: int) -> Callable[[], Any]:
    """`rebuild`, begun with atoms at random."""
    problem, data, keys = _case(num_atoms)
    start = least_squares.random_positions(keys[0], problem)
    compiled = jax.jit(lambda key, start, data: rebuilding.rebuild(key, start, data, problem))
    return lambda: compiled(keys[0], start, data)


def placed_atoms() -> Callable[[], Any]:
    """`place_atoms` in an invented crystal at 1.2 Å."""
    crystal = prepare_crystal(invent(Recipe(group='P212121', num_atoms=11, d_min=1.2), seed=7).data)
    (group,) = crystal_placement.placement_groups(crystal)
    target = crystal_placement.target_of_crystal(crystal, group)
    shape = crystal_placement.placement_grid(crystal.expanded.hkl)
    return lambda: crystal_placement.place_atoms(jax.random.key(1), target, 11, shape)


def _case(num_atoms):
    """A problem of the paper's density, up to |h| = 8 and with noise; the data of a case; keys."""
    box_edge = Problem().box_edge * (num_atoms / Problem().num_atoms) ** (1 / 3)
    problem = Problem(num_atoms=num_atoms, box_edge=box_edge).changed(resolution=8.0, noise=0.1)
    example = make_batch(stream_key(0, 'evaluation'), 0, jnp.arange(1), problem)
    held = reflections.reflections(problem)
    data = reflections.measure(example.patterson[0], held, problem.num_atoms, problem.atom_volume)
    return problem, data, jax.random.split(jax.random.key(0), STARTS)


def measure_pair(task: Callable[[], Callable[[], Any]], repeats: int = REPEATS, seconds: float = SECONDS) -> dict:
    """Seconds by our functions and by XLA's."""
    found = {}
    for name, context in (('ours', contextlib.nullcontext()), ('xla', with_xla())):
        with context:
            found[name] = measure(task(), jax.block_until_ready, repeats, seconds)['best']
    return found | {'ratio': found['xla'] / found['ours']}


def main() -> None:
    """Measures, prints the table and writes it."""
    device = jax.devices()[0].device_kind
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.waves', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).with_name(f'waves-{slug(device)}.json')
    parser.add_argument('--json', type=Path, default=default, help='file to write')
    options = parser.parse_args()
    with exit_on_errors():
        rows = [{'what': name} | measure_pair(task) for name, task in tasks().items()]
        about = {'device': device, 'processor': processor(), 'cores': available_cores(), 'jax': jax.__version__}
        write_json(options.json, about | {'rows': rows})
        print(aligned_table(TITLES, rows))


if __name__ == '__main__':
    main()
