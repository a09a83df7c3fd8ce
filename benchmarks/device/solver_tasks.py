"""The tasks probe, truth and solving: does the device compute correctly, and how many cases a second does it solve?"""

from ml_collections import ConfigDict

from benchmarks.device.bench import Bench
from benchmarks.device.processes import with_less_and_less

SECONDS = {'probe': 70, 'truth': 80, 'solving': 60}  # of a process
TINY_CASES = 4


def probe(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """Tests whether the device computes correctly."""
    found = bench.report.setdefault('probe', [])
    bench.run('probe', {'kind': 'probe', 'config': configs['paper'].to_dict()}, SECONDS['probe'], found.append)


def truth(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """R1 at the truth, and verdicts, for each precision of products."""
    rows = bench.report.setdefault('truth', [])
    cases = TINY_CASES if bench.options.tiny else 100
    for products in bench.options.products:
        row = {'products': products, 'cases': cases}
        rows.append(row)
        cell = row | {'kind': 'truth', 'config': configs['paper'].to_dict(), 'attempts': 4}
        bench.run(f'truth, products {products}', cell, SECONDS['truth'], row.update)


def solve(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """Cases a second by each method, for several numbers of cases at once."""
    options, rows = bench.options, bench.report.setdefault('solving', [])
    for wanted in options.at_once:
        for method in options.methods:
            label = f'solving, {method.replace("_", " ")}'
            cell = {'kind': 'solving', 'config': configs['paper'].to_dict(), 'method': method}
            cell |= {'repeats': 3, 'seconds': 5.0}

            def run(number, label=label, cell=cell):
                return bench.run(f'{label}, {number} at once', cell | {'at_once': number}, SECONDS['solving'])

            at_once, outcome = with_less_and_less(
                run, wanted, lambda words, label=label: bench.say(f'{label}: {words}')
            )
            rows += [{'method': method.replace('_', ' '), 'at_once': at_once} | each for each in outcome.results]
            bench.write()
