"""Fixed cases of the paper's problem, as the methods solve them and as the shipped network sees them.

`tests/golden/*.json` hold what the code made of them when they were written. A rebuilding is held against them:

    python -m tests.golden_cases --check     # all methods, some five minutes; the suite has a part of it
    python -m tests.golden_cases NAME…       # writes them anew where a difference is meant; the commit says why
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base, unrolled
from patterson_jax.config import validate
from patterson_jax.evaluation import match_atoms
from patterson_jax.runs import load_weights
from patterson_jax.simulation.examples import example_key, make_batch, stream_key
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.interpretation import interpret_batch
from patterson_jax.solving.methods.registry import classical_names
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.solver import solve_maps

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
NUM_CASES = 20
R_FACTOR, POSITION = 2e-4, 2e-3  # by which answers may differ; noise leaves flat minima
NOISES = {'clean': (0.0, NUM_CASES), 'noisy': (0.3, 8)}  # with the number of cases


def cases(problem, count):
    """Keys, maps and true positions of the first cases of the stream `calibration`."""
    examples = jax.jit(make_batch, static_argnums=3)(stream_key(0, 'calibration'), 0, np.arange(count), problem)
    keys = jax.vmap(lambda index: example_key(stream_key(0, 'separation'), 0, index))(jnp.arange(count))
    return keys, jax.device_get(examples)


def shipped_network():
    """The config of the shipped weights, and the network."""
    config = unrolled.get_config()
    experiment = validate(config)
    weights = load_weights(experiment, config, ROOT / 'pretrained' / 'unrolled')
    return experiment, Network(experiment.model.apply, weights.params)


def beside_truth(found, true, translate=True):
    """Positions in the hand, at the translation and in the order of the true ones, and the errors."""
    match = jax.device_get(jax.jit(jax.vmap(functools.partial(match_atoms, translate=translate)))(found, true))
    nearest = np.argmin(np.linalg.norm(true[:, :, None] - match.aligned[:, None], axis=-1), axis=2)
    return np.take_along_axis(match.aligned, nearest[..., None], axis=1), match.errors


def solve(method, most=NUM_CASES):
    """What a method makes of the first cases, clean and with noise."""
    experiment, network = shipped_network() if method in ('network', 'auto') else (validate(base.get_config()), None)
    settings = dataclasses.replace(experiment.solve, method=method)
    report = {}
    for name, (noise, count) in NOISES.items():
        problem = experiment.problem.changed(noise=noise)
        keys, examples = cases(problem, min(count, most))
        solutions = solve_maps(keys, examples.patterson, problem, settings, experiment.separate, network)
        found = np.stack([each.positions for each in solutions])
        aligned, errors = beside_truth(found, examples.positions)
        report[name] = [
            {
                'verdict': each.verdict,
                'method': each.method,
                'r_factor': round(float(each.r_factor), 5),
                'positions': _rounded(atoms),
                'largest_error': round(float(np.max(distances)), 4),
            }
            for each, atoms, distances in zip(solutions, aligned, errors, strict=True)
        ]
    return report


def interpret():
    """What the paper's procedure makes of the shipped network's maps of the clean cases, nothing refined."""
    experiment, network = shipped_network()
    keys, examples = cases(experiment.problem, NUM_CASES)

    def procedure(keys, maps):
        predict = averaged_over_orientations(lambda inputs: network.apply(network.params, inputs), 6)
        found = interpret_batch(keys, maps, predict, experiment.problem, experiment.separate)
        return found.positions, found.r_factor, found.density

    positions, r_factors, densities = jax.device_get(jax.jit(procedure)(keys, examples.patterson))
    positions, _ = beside_truth(positions, examples.positions, translate=False)
    squared = np.mean((densities - examples.target) ** 2, axis=(1, 2, 3))
    rows = zip(positions, r_factors, squared, densities, strict=True)
    return [
        {
            'positions': _rounded(position),
            'r_factor': round(float(r_factor), 5),
            'squared_error': float(f'{error:.4g}'),
            'density': float(f'{np.sum(density):.6g}'),
        }
        for position, r_factor, error, density in rows
    ]


def _rounded(values):
    return np.round(np.asarray(values, np.float64), 4).tolist()


METHODS = (*classical_names(), 'network', 'auto')
MAKERS = {method: functools.partial(solve, method) for method in METHODS} | {'interpretation': interpret}


def read(name):
    """What a golden file holds."""
    return json.loads((GOLDEN / f'{name}.json').read_text())


def differences(method, report):
    """Where a report, of the first cases at least, differs from the golden one, in words."""
    found = []
    for name, answers in report.items():
        for number, (now, then) in enumerate(zip(answers, read(method)[name], strict=False)):
            same = now['verdict'] == then['verdict']
            if then['largest_error'] <= 1:  # a wrong set is where rounding leads
                same &= now['method'] == then['method'] and abs(now['r_factor'] - then['r_factor']) <= R_FACTOR
                same &= np.allclose(now['positions'], then['positions'], rtol=0, atol=POSITION)
            if not same:
                found.append(f'{method}, {name}, case {number}: {_short(then)} was, {_short(now)} is')
    return found


def _short(row):
    return f'{row["verdict"]} by {row["method"]}, R1 {row["r_factor"]}, largest error {row["largest_error"]}'


def main(names):
    """Writes the named files, or all; or compares."""
    if names == ['--check']:
        found = [line for method in METHODS for line in differences(method, solve(method))]
        sys.exit('\n'.join(found) or 0)
    GOLDEN.mkdir(exist_ok=True)
    for name in names or MAKERS:
        (GOLDEN / f'{name}.json').write_text(json.dumps(MAKERS[name](), separators=(',', ':')) + '\n')
        print(name)


if __name__ == '__main__':
    main(sys.argv[1:])
