"""The command line of the benchmark of speed, and the process of a cell."""

import argparse
import datetime
import json
import math
import signal
import sys
from pathlib import Path

from benchmarks import ROOT, speed
from benchmarks.machine import describe_machine, slug
from benchmarks.speed import convolutions, data, experiments, growth, in_pytorch, networks
from benchmarks.speed.cells import Cells, Settings
from benchmarks.tables import aligned_table
from patterson_jax.errors import InputError, exit_on_errors, require

CELLS = {
    'machine': experiments.machine_cell,
    'peak': networks.peak_cell,
    'network': networks.network_cell,
    'torch': in_pytorch.torch_cell,
    'layer': convolutions.layer_cell,
    'parts': convolutions.parts_cell,
    'data': data.data_cell,
    'numpy_data': data.numpy_data_cell,
}
TABLES = {
    'network': (networks.network_table, networks.COLUMNS),
    'parts': (convolutions.parts_table, convolutions.PARTS_COLUMNS),
    'data': (data.data_table, data.COLUMNS),
    'growth': (growth.growth_table, growth.COLUMNS),
    'layers': (convolutions.layers_table, convolutions.LAYERS_COLUMNS),
}


def as_markdown(name: str, table: dict) -> str:
    """A table with its heading and its notes."""
    _, columns = TABLES[name]
    return '\n'.join(['', f'## {name}', '', aligned_table(columns, table['rows']), '', *table['notes']])


def earlier_tables(output: Path, machine: dict) -> dict:
    """Tables, by name, of an earlier run on the same machine with the same versions; empty without one."""
    try:
        earlier = json.loads(output.read_text())
        same = all(earlier[name] == value for name, value in machine.items())
        return earlier['tables'] if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run_tables(settings: Settings, output: Path | None) -> int:
    """Measures, prints and writes the tables; returns the exit status, 1 if a cell failed."""
    cells = Cells(settings)
    found = cells.run('machine', 'machine')
    if found is None:
        return 1
    machine = describe_machine(found['device'], found['backend'])
    output = output or ROOT / 'benchmarks' / f'speed-{slug(machine["device"])}.json'
    tables = earlier_tables(output, machine)
    versions = ', '.join(f'{library} {version}' for library, version in machine['versions'].items())
    print(f'{machine["device"]}; {machine["processor"]}, {machine["cores"]} cores; {versions}')
    for name in settings.tables:
        measure_table, _ = TABLES[name]
        table = measure_table(cells, settings, found)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        about = {'date': now, 'settings': settings._asdict() | {name: found[name] for name in ('grid', 'features')}}
        tables = tables | {name: about | table}
        output.write_text(json.dumps(machine | {'date': now, 'tables': tables}, indent=1, ensure_ascii=False) + '\n')
        print(as_markdown(name, table), flush=True)
    print(f'\nWritten to {output}')
    for label in cells.failures:
        print(f'failed: {label}', file=sys.stderr)
    return 1 if cells.failures else 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, all values as text."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.speed',
        description=speed.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--tables', default=','.join(TABLES), help='tables to measure, with commas between')
    parser.add_argument('--batches', default='1,8,32', help='of the table network; no other table has larger ones')
    parser.add_argument(
        '--direct-batches', default='1,8', help="those to measure XLA's direct convolution at, which is slow on CPU"
    )
    parser.add_argument('--repeats', default='5', help='timings of each thing, after the first call')
    parser.add_argument(
        '--cell-seconds', default='60', help='no timing of a cell begins after this; each cell has at least one'
    )
    parser.add_argument('--grid', help='grid size in place of 40, and the largest in series')
    parser.add_argument('--features', help='channels in place of 20, and the most in series')
    parser.add_argument('--json', help='file to write; default benchmarks/speed-DEVICE.json')
    parser.add_argument('--cell', help='used by the program itself: one measurement to make, in JSON')
    return parser.parse_args(arguments)


def read_settings(given: argparse.Namespace) -> Settings:
    """The values of the command line, checked. Raises InputError."""
    tables = tuple(given.tables.split(','))
    for name in tables:
        require(name in TABLES, '--tables', name, f'some of {", ".join(TABLES)}, separated by commas')
    batches = _whole_numbers('--batches', given.batches)
    require(len(batches) > 0, '--batches', '', 'whole numbers from 1, separated by commas')
    direct_batches = _whole_numbers('--direct-batches', given.direct_batches)
    repeats, grid, features = (
        None if text is None else _number(int, f'--{name}', text, 'a whole number')
        for name, text in (('repeats', given.repeats), ('grid', given.grid), ('features', given.features))
    )
    require(repeats >= 1, '--repeats', repeats, '1 or more')
    seconds = _number(float, '--cell-seconds', given.cell_seconds, 'a number')
    require(math.isfinite(seconds) and seconds > 0, '--cell-seconds', seconds, 'a positive number of seconds')
    require(grid is None or (grid >= 8 and grid % 2 == 0), '--grid', grid, 'an even number, 8 or more')
    require(features is None or features >= 1, '--features', features, '1 or more')
    if given.json is not None:  # before hours of measurement are lost
        output = Path(given.json)
        writable = output.parent.is_dir() and not output.is_dir()
        require(writable, '--json', given.json, 'a file in a directory that exists')
    return Settings(tables, batches, direct_batches, repeats, seconds, grid, features)


def _whole_numbers(flag, text):
    words = text.split(',') if text else []
    for word in words:
        require(word.isdecimal() and int(word) >= 1, flag, word, 'whole numbers from 1, separated by commas')
    return tuple(dict.fromkeys(map(int, words)))


def _number(kind, flag, text, allowed):
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f'{flag} is {text!r}; it must be {allowed}') from error


def main() -> None:
    """Measures one cell if the program was started by itself, else the tables."""
    given = parse_arguments()
    if given.cell is not None:
        cell = json.loads(given.cell)
        print(json.dumps(CELLS[cell['kind']](cell)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the cell that runs is ended too
    with exit_on_errors():
        sys.exit(run_tables(read_settings(given), given.json and Path(given.json)))


if __name__ == '__main__':
    main()
