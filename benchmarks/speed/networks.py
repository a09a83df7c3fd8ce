"""A training step and a forward pass of the base network: ours, XLA's direct convolution, PyTorch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.speed.cells import Cells, Settings
from benchmarks.speed.experiments import sections
from benchmarks.speed.in_pytorch import STEP_SHARE, has_torch, prepare_torch, random_images
from benchmarks.tables import number
from benchmarks.timing import measure, peak_resident_memory, reset_peak_memory
from patterson_jax.learning.map_training import MapTask
from patterson_jax.learning.parallel import parallelize, replicate
from patterson_jax.learning.training import init_state, make_train_step

COLUMNS = {
    'implementation': 'implementation',
    'batch': 'batch',
    'step_seconds_per_example': 'step, s/example',
    'step_median_seconds_per_example': 'median',
    'step_examples_per_second': 'examples/s',
    'step_gflop_per_second': 'GFLOP/s',
    'step_fraction_of_peak': 'of peak',
    'step_memory_mb': 'memory, MB',
    'step_memory_at_rest_mb': 'at rest',
    'step_compile_seconds': 'compile, s',
    'step_speed_over_torch': 'speed / PyTorch',
    'forward_seconds_per_example': 'forward, s/example',
    'forward_examples_per_second': 'examples/s',
    'forward_gflop_per_second': 'GFLOP/s',
    'forward_fraction_of_peak': 'of peak',
    'forward_speed_over_torch': 'speed / PyTorch',
    'step_format': 'format, step',
    'forward_format': 'format, forward',
}


def network_cell(cell: dict) -> dict:
    """Our training step, which makes its batch, and our forward pass.

    JAX cannot reset its count of memory on a GPU. So the peak there is that of the whole process, and includes trials
    during compilation. If the cell names a file, `gradient`, the gradient of the first step is written there.
    """
    problem, network, settings = sections(cell)
    state, train_step = start_training(problem, network, settings)

    def step():
        nonlocal state
        state, metrics = train_step(state)
        return metrics

    def after_first():
        if 'gradient' in cell:
            np.save(cell['gradient'], gradient_of_first_step(state))
        return reset_peak_memory()

    timing = measure(step, jax.block_until_ready, cell['repeats'], STEP_SHARE * cell['seconds'], after_first)
    found = {'step': timing | memory_of(timing)}
    if cell.get('forward', True):
        params = jax.device_get(state.params)
        images = jnp.asarray(random_images(cell['batch'], problem.grid_size))
        forward = jax.jit(network.apply)
        params = jax.device_put(params)
        call = functools.partial(forward, params, images)
        found['forward'] = measure(call, jax.block_until_ready, cell['repeats'], (1 - STEP_SHARE) * cell['seconds'])
    return found


def memory_of(timing: dict) -> dict:
    """The peak of memory since the first call of a timing, in MB, where the system has one; `at_rest` is a CPU's."""
    if jax.default_backend() != 'cpu':
        return {'memory': jax.devices()[0].memory_stats()['peak_bytes_in_use'] / 1e6, 'at_rest': None}
    return {} if timing['at_rest'] is None else {'memory': peak_resident_memory()}


def start_training(problem: Any, network: Any, settings: Any) -> tuple[Any, Callable]:
    """The state before the first step of a training, and the parallel step."""
    task = MapTask(network, problem, settings, seed=0)
    return replicate(init_state(task)), parallelize(make_train_step(task), donate=True)


def gradient_of_first_step(state: Any) -> np.ndarray:
    """The gradient, up to a factor, `(num_weights,)`: Adam's first moment after one step."""
    moments = jax.device_get(optax.tree.get(state.optimizer, 'mu'))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moments)])


def gradient_cell(cell: dict) -> dict:
    """The loss of the first step; writes the gradient to the file that the cell names."""
    state, train_step = start_training(*sections(cell))
    state, metrics = train_step(state)
    np.save(cell['gradient'], gradient_of_first_step(state))
    return {'loss': float(metrics['loss'])}


def peak_cell(cell: dict) -> dict:
    """GFLOP/s of a product of large square matrices by JAX or PyTorch."""
    size = 2048 if cell['backend'] == 'cpu' else 8192
    values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    if cell['library'] == 'jax':
        matrix, product, wait = jnp.asarray(values, cell['precision']), jax.jit(jnp.matmul), jax.block_until_ready
    else:
        torch, device, wait = prepare_torch(cell['backend'])
        matrix, product = torch.tensor(values, device=device, dtype=getattr(torch, cell['precision'])), torch.matmul
    timing = measure(lambda: product(matrix, matrix), wait, cell['repeats'], cell['seconds'])
    return {'gflop_per_second': 2 * size**3 / timing['best'] / 1e9, 'size': size}


def network_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Training step and forward pass of the base network, by each implementation and for each batch size."""
    peaks = measure_peaks(cells, machine)
    rows = []
    for batch in settings.batches:
        for name, variants in implementations(machine).items():
            if name == 'XLA direct' and batch not in settings.direct_batches:
                continue
            results = []
            for variant in variants:
                label = ', '.join(filter(None, ('network', name, variant.get('format'), f'batch {batch}')))
                results.append((variant, cells.run(label, batch=batch, **variant)))
            peak = peaks['bfloat16' if 'bfloat16' in name else 'float32']['gflop_per_second']
            rows.append({'implementation': name, 'batch': batch} | network_figures(results, batch, machine, peak))
    for row in rows:
        row |= speed_ratios(row, rows)
    notes = [f'Peak, of products of large matrices: {describe_peaks(peaks)}. GFLOP are those of direct convolution.']
    if machine['backend'] == 'cpu':
        notes.append(
            'Memory is all that the process holds at its peak; at rest it is that between steps, with libraries.'
        )
    if machine['auto'] == 'spectral':
        done = ', '.join(map(str, settings.direct_batches)) or 'none'
        notes.append(
            f"XLA's direct convolution, slow on CPU, is measured at few batch sizes (--direct-batches): {done}."
        )
    if not has_torch():
        notes.append("Without PyTorch, which is not installed; pip install -e '.[bench]' adds it.")
    return {'rows': rows, 'peaks': peaks, 'notes': notes}


def implementations(machine: dict) -> dict[str, list[dict]]:
    """The cells of each implementation; of several, the fastest counts."""
    on_cpu = machine['backend'] == 'cpu'
    ours = {'kind': 'network', 'convolution': 'auto', 'precision': 'float32' if on_cpu else 'tf32'}  # as PyTorch has it
    found = {'ours': [ours]}
    if on_cpu:
        found['XLA direct'] = [ours | {'convolution': 'direct'}]
    else:
        found['ours, bfloat16'] = [ours | {'precision': 'bfloat16'}]
        found['ours, not rounded'] = [ours | {'precision': 'float32'}]
        found['ours, spectral'] = [ours | {'convolution': 'spectral'}]
    if not has_torch():
        return found
    torch = {'kind': 'torch', 'backend': machine['backend'], 'precision': 'float32', 'format': 'channels_last_3d'}
    if on_cpu:
        found['PyTorch'] = [torch | {'format': 'contiguous_format'}, torch]
    else:
        found['PyTorch'], found['PyTorch, bfloat16'] = [torch], [torch | {'precision': 'bfloat16'}]
    return found


def measure_peaks(cells: Cells, machine: dict) -> dict:
    """GFLOP/s of large matrix products for each precision: by each library, and the best."""
    precisions = ('float32',) if machine['backend'] == 'cpu' else ('float32', 'bfloat16')
    peaks = {}
    for precision in precisions:
        found = {}
        for library in ('jax', 'torch') if has_torch() else ('jax',):
            label = f'peak, {library}, {precision}'
            result = cells.run(label, 'peak', library=library, precision=precision, backend=machine['backend'])
            found |= {library: result['gflop_per_second'], 'size': result['size']} if result else {}
        best = max((found[library] for library in ('jax', 'torch') if library in found), default=None)
        peaks[precision] = {'gflop_per_second': best} | found
    return peaks


def describe_peaks(peaks: dict) -> str:
    """The peaks in words. For float32 the libraries may use TF32 on some GPUs."""
    return ', '.join(f'{precision} {number(each["gflop_per_second"])} GFLOP/s' for precision, each in peaks.items())


def network_figures(results: list, batch: int, machine: dict, peak: float | None) -> dict:
    """The figures of a row: those of the step and of the forward pass, each by the fastest variant."""
    row = {}
    for part, passes in (('step', 3), ('forward', 1)):
        timed = [(variant, result[part]) for variant, result in results if result]
        if not timed:
            continue
        variant, timing = min(timed, key=lambda each: each[1]['best'])
        rate = passes * machine['operations'] * batch / timing['best'] / 1e9
        figures = {
            'seconds_per_example': timing['best'] / batch,
            'median_seconds_per_example': timing['median'] / batch,
            'examples_per_second': batch / timing['best'],
            'gflop_per_second': rate,
            'fraction_of_peak': rate / peak if peak else None,
            'compile_seconds': timing['compile'],
            'repeats': timing['repeats'],
            'format': variant.get('format'),
        }
        if part == 'step':
            figures |= {'memory_mb': timing.get('memory'), 'memory_at_rest_mb': timing['at_rest']}
        if len(timed) > 1:
            figures['each_format'] = {variant['format']: timing['best'] / batch for variant, timing in timed}
        row |= {f'{part}_{name}': value for name, value in figures.items()}
    return row


def speed_ratios(row: dict, rows: list[dict]) -> dict:
    """Speed of a row divided by that of PyTorch with the same batch size and precision."""
    name = 'PyTorch, bfloat16' if 'bfloat16' in row['implementation'] else 'PyTorch'
    other = next((each for each in rows if (each['implementation'], each['batch']) == (name, row['batch'])), {})
    keys = {part: f'{part}_seconds_per_example' for part in ('step', 'forward')}
    return {
        f'{part}_speed_over_torch': other[key] / row[key] if key in other and key in row else None
        for part, key in keys.items()
    }
