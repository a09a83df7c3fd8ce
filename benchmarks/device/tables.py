"""The report as Markdown."""

from typing import Any

from benchmarks.device.options import TASKS
from benchmarks.tables import aligned_table, number

COLUMNS = {
    'probe': {'check': 'check', 'error': 'relative error', 'right': 'right'},
    'truth': {
        'products': 'products',
        'cases': 'cases',
        'r_factor': 'R1 at the truth',
        'highest_r_factor': 'highest',
        'solved': 'solved: right, wrong',
        'uncertain': 'uncertain',
        'not solved': 'not solved',
    },
    'speed': {
        'network': 'network',
        'setting': 'setting',
        'batch': 'batch',
        'step_examples_per_second': 'step, examples/s',
        'forward_examples_per_second': 'forward, examples/s',
        'memory_mb': 'memory, MB',
        'gradient_error': "gradient's error",
        'right': 'right',
    },
    'training': {'step': 'step', 'loss': 'validation loss', 'correlation': 'correlation'},
    'solving': {
        'method': 'method',
        'at_once': 'at once',
        'cases_per_second': 'cases/s',
        'right': 'right at the first attempt',
        'same': 'two runs the same',
        'farthest': 'farthest, voxels',
    },
}
WORDS = {
    'probe': 'Operations that some release of JAX computed wrongly, and derivatives, against float64 on the host.',
    'truth': "The paper's problem without noise: R1 of the true positions; verdicts of least squares, at most four "
    'attempts for a case. Products of matrices are those of the device by default, and those of simulation and solver.',
    'speed': 'Training step and forward pass, best timing. PyTorch has one fixed batch, our step makes its cases. The '
    'gradient is that of the first step, for the projection that of a pass on fixed maps; its error is relative to the '
    "host's in float32. An example of the projection is a crystal with all its maps; its steps differ; the "
    'median of calls of several steps counts.',
    'training': 'Validation during the training. The correlation is that of maps, for the projection that of phases '
    'after a pass.',
    'solving': "First attempts at cases of the paper's problem, without compilation; the separation has the true map.",
}


def tables(report: dict) -> str:
    """A report as Markdown."""
    machine = report['machine']
    versions = ', '.join(f'{library} {version}' for library, version in machine['versions'].items())
    lines = [
        f'## {machine["device"]}',
        '',
        f'{report["date"]}; {machine["cores"]} cores of {machine["processor"]}; {versions}.',
    ]
    if report['tiny']:
        lines += ['', '**A tiny problem and tiny networks: this only tests the program.**']
    for task in TASKS:
        rows = table_rows(task, report.get(task))
        if rows:
            lines += ['', f'### {task}', '', WORDS[task], '', aligned_table(COLUMNS[task], rows)]
        if task == 'training' and task in report:
            lines += ['', describe_training(report[task])]
    lines += ['', *(f'- {note}' for note in report['notes'])] if report['notes'] else []
    return '\n'.join(lines) + '\n'


def table_rows(task: str, found: Any) -> list[dict]:
    """The results of a task as rows of its table."""
    if task == 'training':
        return [
            {'step': step, 'loss': loss, 'correlation': correlation}
            for step, loss, correlation in (found or {}).get('validation', ())
        ]
    rows = [dict(row) for row in found or ()]
    for row in rows:
        for verdict in ('solved', 'uncertain', 'not solved') if 'verdicts' in row else ():
            row[verdict] = ', '.join(str(row['verdicts'][f'{verdict}, {kind}']) for kind in ('right', 'wrong'))
        row |= {name: 'yes' if row[name] else 'NO' for name in ('right', 'same') if isinstance(row.get(name), bool)}
    return rows


def describe_training(found: dict) -> str:
    """A sentence on a training."""
    words = f'`--train={found["config"]}`, {found["setting"]}'
    words += ' (the fastest that is right)' if found['measured'] else ' (no setting was measured)'
    if not found.get('steps'):
        return f'{words}: no step was logged.'
    rate = number(float(found['examples_per_second']))
    return f'{words}: {found["steps"]:,} steps in {found["seconds"]:.0f} s, at most {rate} examples a second.'
