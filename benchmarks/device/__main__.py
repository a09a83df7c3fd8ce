"""The command: measures as much as there is time for, or collects earlier results."""

import contextlib
import datetime
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import ROOT
from benchmarks.device.bench import REPORT, Bench
from benchmarks.device.collecting import PAGE, collect, read_report
from benchmarks.device.options import Options, configs_of, load_config, network_name, options_of, parse_arguments
from benchmarks.device.processes import cell_command, cell_environment, run_process
from benchmarks.device.solver_tasks import probe, solve, truth
from benchmarks.device.speed_task import gradients_on_the_host, measure_speed
from benchmarks.device.tables import tables
from benchmarks.device.training_task import train
from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.files.common import make_directory

STARTING_SECONDS = 60  # of the process that names the machine


def run(options: Options) -> int:
    """Measures as much as there is time for; returns the exit status."""
    began = time.monotonic()
    configs = configs_of(options)
    outcome = run_process(cell_command({'kind': 'machine'}), STARTING_SECONDS, cell_environment())
    if not outcome.results:
        raise InputError(f'JAX does not run here: {outcome.fault}')
    machine = outcome.results[0]
    if machine['backend'] == 'cpu' and not options.allow_cpu:
        raise InputError('no GPU: JAX sees only the CPU; --allow-cpu runs on it nevertheless')
    make_directory(options.output, '--output')
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    report = {'date': now, 'machine': machine, 'minutes': options.minutes, 'tiny': options.tiny, 'notes': []}
    bench = Bench(options, report, began + 60 * options.minutes)
    bench.write()
    print(f'{machine["device"]}, {options.minutes:g} minutes', file=sys.stderr, flush=True)
    measured = {name: configs[name] for name in options.networks}
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        with contextlib.ExitStack() as stack:
            hosts = {}
            if 'speed' in options.tasks:
                hosts = stack.enter_context(gradients_on_the_host(measured, options.batch, scratch))
            if 'probe' in options.tasks:
                probe(bench, configs)
            if 'truth' in options.tasks:
                truth(bench, configs)
            if 'speed' in options.tasks:
                measure_speed(bench, measured, hosts, scratch)
        if 'training' in options.tasks:
            train(bench, configs[network_name(load_config(options.train))], scratch)
        if 'solving' in options.tasks:
            solve(bench, configs)
    print(tables(report))
    if 'to_go_on' in report.get('training', {}):
        print(f'The training goes on with\n    {report["training"]["to_go_on"]}\n')
    print(f'{options.output / REPORT}, {time.monotonic() - began:.0f} s')
    return 1 if bench.failed else 0


def main() -> None:
    """Measures, or collects earlier results."""
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that running processes are ended too
    with exit_on_errors():
        if given.collect:
            tiny = read_report(given.collect)['tiny']
            require(not tiny, '--collect', str(given.collect), 'results without --tiny')
            collect(given.collect, given.publish, ROOT / 'benchmarks', PAGE)
            return
        jax.config.update('jax_platforms', 'cpu')  # the device is for the processes that measure
        sys.exit(run(options_of(given)))


if __name__ == '__main__':
    main()
