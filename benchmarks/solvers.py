"""Finds where each method of solving stops: numbers of atoms × resolutions × noises, the same cases for all methods.

    python -m benchmarks.solvers                                      # the classical methods, hours on two cores
    python -m benchmarks.solvers --methods=least_squares --atoms=10 --noises=0
    python -m benchmarks.solvers --methods=truth                      # refines the true atoms: the limit of any method
    python -m benchmarks.solvers --methods=network --checkpoint=pretrained/unrolled  # added to the results in the file

A cell is the paper's problem with another number of atoms, in an inner box that is as full; with amplitudes up to
|h| = 12, 8 or 5 of 20; and with noise of 10 or 30 % on them. Each method has the same time for a case, without
compilation. It tries again until its verdict is `solved`, and begins no attempt that might not end in time.

The results are printed as Markdown, written after each cell to `solvers-DEVICE.json` beside this file, and drawn as
`.png`. A cell that is in the file with the same settings is not measured again. So the program can be stopped at any
time.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import platform
import sys
from pathlib import Path

import jax
import numpy as np

from configs import base, unrolled
from patterson_jax.config import Experiment, validate
from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.evaluation import EvaluationSettings, evaluate
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.limit import TRUTH
from patterson_jax.solving.methods.registry import AUTO, classical_names, method_names
from patterson_jax.weights import load_network
from patterson_jax.writing import markdown_table, write_json

MANY_ATTEMPTS = 10_000  # the seconds are the limit
PEAKS_PER_ATOM = 4
DEFAULT_ORIENTATIONS = unrolled.get_config().solve.orientations
WHOLE = 'all'  # of the amplitudes
COLUMNS = ('atoms', 'data', 'noise', 'method', 'recall', 'solved', 'said so, wrongly', 'error, voxels', 's a case')


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a mistake ends the program with one line and status 2."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.solvers', description=__doc__.partition('\n')[0])
    parser.add_argument('--methods', type=_listed(_method), default=classical_names(), help='with commas between')
    parser.add_argument('--atoms', type=_listed(int), default=(10, 20, 40), help='numbers of atoms')
    parser.add_argument('--resolutions', type=_listed(_resolution), default=(None, 12.0, 8.0, 5.0), help=f'or {WHOLE}')
    parser.add_argument('--noises', type=_listed(float), default=(0.0, 0.1, 0.3), help='relative, of the amplitudes')
    parser.add_argument('--cases', type=int, default=30, help='of a cell')
    parser.add_argument('--seconds', type=float, default=5.0, help='for a case and method')
    parser.add_argument('--checkpoint', type=Path, help='directory of a run on the same grid, for the network')
    parser.add_argument(
        '--orientations', type=int, default=DEFAULT_ORIENTATIONS, help='in which the network is shown a map'
    )
    parser.add_argument('--json', type=Path, help='file to write; default solvers-DEVICE.json beside this program')
    return parser.parse_args(arguments)


def _listed(kind):
    def listed(text):
        return tuple(kind(word) for word in text.split(','))

    return listed


def _method(word):
    names = (*method_names(), TRUTH)
    if word not in names:
        raise argparse.ArgumentTypeError(f'{word!r} is not one of {", ".join(names)}')
    return word


def _resolution(word):
    return None if word == WHOLE else float(word)


def cell_problem(atoms: int, resolution: float | None, noise: float) -> Problem:
    """The paper's problem with another number of atoms, in a box that is as full, and with poorer data."""
    whole = Problem()
    edge = min(whole.box_edge * (atoms / whole.num_atoms) ** (1 / 3), whole.grid_size - 2 * whole.atom_radius)
    return whole.changed(num_atoms=atoms, box_edge=edge, resolution=resolution, noise=noise)


def cell_experiment(atoms: int, resolution: float | None, noise: float) -> tuple[Problem, Experiment]:
    """The problem of a cell, and configs/base.py with a separation for it."""
    problem, config = cell_problem(atoms, resolution, noise), base.get_config()
    config.separate.num_peaks = max(PEAKS_PER_ATOM * atoms, config.separate.num_peaks)
    return problem, validate(config)


def measure_cell(
    cell: tuple, method: str, cases: int, seconds: float, network: Network | None, orientations: int
) -> dict:
    """Scores of one method on the cases of one cell."""
    problem, experiment = cell_experiment(*cell)
    solving = dataclasses.replace(
        experiment.solve,
        method=AUTO if method == TRUTH else method,  # the truth is not searched for
        max_attempts=MANY_ATTEMPTS,
        max_seconds=seconds,
        orientations=orientations,
    )
    settings = EvaluationSettings(cases, cases, method)
    report, _ = evaluate(problem, experiment.separate, solving, settings, experiment.seed, network)
    scores = report['refined' if method == 'network' else method]
    wanted = ('recall', 'mean_error', 'solved', 'r_factor', 'seconds_per_case', 'verdict')
    return {name: scores[name] for name in wanted} | {'recall_at_random': report['random']['recall']}


def run(options: argparse.Namespace, output: Path) -> list[dict]:
    """Measures the cells that are not in the file; returns all cells of the file."""
    content = _earlier(output)
    network = _network(options.checkpoint) if 'network' in options.methods else None
    settings = {'cases': options.cases, 'seconds': options.seconds, 'jax': jax.__version__}
    if network:
        settings |= {'weights': _digest(network.params), 'orientations': options.orientations}
    for number in itertools.product(options.atoms, options.resolutions, options.noises):
        for method in options.methods:
            place = dict(zip(('method', 'atoms', 'resolution', 'noise'), (method, *number), strict=True))
            if any((place | settings).items() <= cell.items() for cell in content['cells']):
                continue
            cell = (
                place
                | settings
                | measure_cell(number, method, options.cases, options.seconds, network, options.orientations)
            )
            content['cells'] = [each for each in content['cells'] if not place.items() <= each.items()] + [cell]
            write_json(output, content)
            print(*_row(cell), sep=' | ', file=sys.stderr, flush=True)
    return content['cells']


def table(cells: list[dict]) -> str:
    """The cells as Markdown, one line for each problem and method."""
    return markdown_table(COLUMNS, map(_row, sorted(cells, key=_order)))


def _row(cell):
    said = cell['verdict']['solved']
    return (
        cell['atoms'],
        cell['resolution'] or WHOLE,
        f'{cell["noise"]:.0%}',
        cell['method'].replace('_', ' '),
        f'{cell["recall"]:.3f}',
        f'{cell["solved"]} / {cell["cases"]}',
        f'{said["right"] + said["wrong"]}, {said["wrong"]}',
        f'{cell["mean_error"]:.3g}',
        f'{cell["seconds_per_case"]:.2f}',
    )


def _order(cell):
    return cell['atoms'], -(cell['resolution'] or 99), cell['noise'], (*method_names(), TRUTH).index(cell['method'])


def _network(checkpoint):
    if checkpoint is None:
        raise InputError('--checkpoint is missing; the method network needs the weights of a run')
    return load_network(checkpoint, Problem())


def _digest(params):
    """A short hash of weights."""
    leaves = jax.tree.leaves(params)
    return hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:12]


def _earlier(output):
    """The content of the file, which must be from this kind of device; no cells if there is no file."""
    device = jax.devices()[0].device_kind
    if output.exists():
        try:
            content = json.loads(output.read_text(encoding='utf-8'))
            require(content['device'] == device, str(output), content['device'], f'of this device, {device}')
            content['cells'] = list(content['cells'])
            return content
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f'{output}: not a file of this program; name another --json') from error
    return {'device': device, 'machine': platform.machine(), 'cells': []}


def main() -> None:
    """Measures, prints and draws."""
    options = parse_arguments()
    with exit_on_errors():
        require(options.cases >= 1, '--cases', options.cases, '1 or more')
        require(options.seconds > 0, '--seconds', options.seconds, 'more than 0')
        output = options.json or Path(__file__).with_name(f'solvers-{jax.default_backend()}.json')
        cells = run(options, output)
        print(table(cells))
        from benchmarks.frontier import draw_frontier  # with matplotlib, which no table needs

        draw_frontier(output.with_suffix('.png'), cells)
        print(f'\n{output}, {output.with_suffix(".png")}')


if __name__ == '__main__':
    main()
