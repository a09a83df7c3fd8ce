"""How fast the program is on this machine, and where its time goes.

    python benchmarks/speed.py                            # everything; an hour or two on two CPU cores
    python benchmarks/speed.py --tables=network,data --batches=1,8

Five tables, printed as Markdown and written to `speed-DEVICE.json` beside this file, anew after each table:

    network  a training step and a forward pass of configs/base.py: ours, XLA's direct convolution, PyTorch
    parts    where the time of a spectral convolution goes, and what the generation of a batch takes
    data     maps a second, against a plain NumPy way to make them
    growth   the training step against grid size, channels and batch size
    layers   direct against spectral convolution, layer by layer: what the method 'auto' rests on

A table that is not measured is kept from the file if that is from the same machine and versions. PyTorch takes part
where it is installed: `pip install -e '.[bench]'`. It has one fixed batch, where our step also makes its cases.

Every measurement is a cell: a process of its own, so that memory and caches are its own, and never two at once. A time
is that of a call after the first one, device synchronised; short calls are timed many in a row. Where a key says
neither best nor median it is the best.
"""

import datetime
import functools
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import runpy
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.writing import markdown_table

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')
SHORTEST_REPEAT = 0.1  # seconds; calls that are faster are timed several in a row
LONG_CALL = 1.0  # seconds; calls that are slower need no second warm-up
STEP_SHARE = 0.75  # of a cell's seconds, for the training step; the rest is for the forward pass
SUB_GRID = 20  # points along each edge of a voxel, of the NumPy way to render atoms
DATA_BATCHES = (1, 8, 64, 256)
PARTS_BATCH = 8
GROWTH_BATCH = 2  # of the series over grids and channels
GROWTH = {'grid': (16, 24, 32, 40, 48, 64), 'channels': (8, 16, 20, 32, 64), 'batch': (1, 2, 4, 8, 16)}
LAYER_BATCH = 4
LAYER_KERNELS = (3, 5, 7)
LAYER_GRIDS = (8, 16, 20, 32, 40)
LAYER_CHANNELS = ((1, 20), (8, 8), (20, 20), (20, 1))

TABLES_FLAG = flags.DEFINE_list('tables', 'network,parts,data,growth,layers', 'Which tables to measure.')
BATCHES = flags.DEFINE_list(
    'batches', '1,8,32', 'Batch sizes of the table network; those of parts, growth and layers do not exceed them.'
)
DIRECT_BATCHES = flags.DEFINE_list('direct-batches', '1,8', "Those with XLA's direct convolution, slow on CPU.")
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timings of each thing, after the first call.')
CELL_SECONDS = flags.DEFINE_float('cell-seconds', 60.0, 'No timing of a cell begins after this; it has one at least.')
GRID = flags.DEFINE_integer('grid', None, 'Grid size in place of 40; of the series, those up to it.')
FEATURES = flags.DEFINE_integer('features', None, 'Channels in place of 20; of the series, those up to it.')
OUTPUT = flags.DEFINE_string('json', None, 'File to write; default speed-DEVICE.json beside this program.')
CELL = flags.DEFINE_string('cell', None, 'For the program itself: the one measurement to make, in JSON.')


class Settings(NamedTuple):
    """What the flags ask for; grid and features are None where the values of configs/base.py are to be used."""

    tables: tuple[str, ...]
    batches: tuple[int, ...]
    direct_batches: tuple[int, ...]
    repeats: int
    seconds: float
    grid: int | None
    features: int | None


# ---- What a cell measures, in a process of its own ----


def seconds_of(call: Callable[[], Any], wait: Callable[[Any], Any], number: int = 1) -> float:
    """Seconds of one of `number` calls in a row; `wait` returns when the last one's result is there."""
    started = time.perf_counter()
    for _ in range(number):
        result = call()
    wait(result)
    return (time.perf_counter() - started) / number


def measure(
    call: Callable[[], Any],
    wait: Callable[[Any], Any],
    repeats: int,
    seconds: float,
    after_first: Callable[[], float | None] = lambda: None,
) -> dict[str, float | None]:
    """Times a call: seconds of its best and median repeat, and of what its first call took more (compilation).

    The second call is a warm-up too, unless it is so long that it can only be worth counting. At rest is what
    `after_first` returns, called between the first call and the others.
    """
    deadline = time.perf_counter() + seconds
    first = seconds_of(call, wait)
    at_rest = after_first()
    second = seconds_of(call, wait)
    number = math.ceil(SHORTEST_REPEAT / second)
    times = [second] if second >= LONG_CALL else []
    while len(times) < repeats and (not times or time.perf_counter() + number * min(times) < deadline):
        times.append(seconds_of(call, wait, number))
    best = min(times)
    return {
        'best': best,
        'median': statistics.median(times),
        'repeats': len(times),
        'compile': max(0.0, first - best),
        'at_rest': at_rest,
    }


def reset_peak_memory() -> float | None:
    """Lets Linux count the peak of this process's resident memory from here on; returns what it is now, in MB."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
        return peak_resident_memory()
    except OSError:
        return None


def peak_resident_memory() -> float | None:
    """Peak of this process's resident memory since it was reset, in MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith('VmHWM'))


def base_sections(cell: dict) -> tuple[Any, Any, Any]:
    """Problem, network and training settings of configs/base.py with the cell's sizes.

    On a smaller grid the box shrinks with it, and the atoms become fewer so that they fill no more of it.
    """
    from patterson_jax.learning.training import TrainingSettings
    from patterson_jax.networks.paper import PattersonNet
    from patterson_jax.simulation.problem import Problem

    config = runpy.run_path(str(ROOT / 'configs' / 'base.py'))['get_config']()
    base, model, training = (config[section].to_dict() for section in ('problem', 'model', 'train'))
    filled = Problem(**base).filled_fraction
    grid = cell.get('grid') or base['grid_size']
    box = {'grid_size': grid, 'box_edge': min(base['box_edge'], grid - 2 * base['atom_radius'])}
    most = max(1, int(filled / Problem(**base | box | {'num_atoms': 1}).filled_fraction + 1e-6))
    problem = Problem(**base | box | {'num_atoms': min(base['num_atoms'], most)})
    del model['network']
    model |= {name: cell[name] for name in model if cell.get(name)}
    training |= {'batch_size': cell.get('batch', 1)}
    return problem, PattersonNet(**model), TrainingSettings(**training)


def sections(cell: dict) -> tuple[Any, Any, Any]:
    """Problem, network and training settings of the resolved config that a cell names, or else `base_sections`."""
    if 'config' not in cell:
        return base_sections(cell)
    from ml_collections import ConfigDict

    from patterson_jax.config import validate

    config = ConfigDict(cell['config'])
    config.model.update({name: cell[name] for name in ('convolution', 'precision') if name in cell})
    config.train.batch_size = cell['batch']
    experiment = validate(config)
    return experiment.problem, experiment.model, experiment.train


def machine_cell(cell: dict) -> dict:
    """The device, what 'auto' means on it, the base network's sizes and its operations in an example's forward pass."""
    import jax

    from patterson_jax.inspection import layer_table
    from patterson_jax.networks.convolution import fastest_method

    problem, network, _ = base_sections(cell)
    grid, features, kernel = problem.grid_size, network.features, network.inner_kernel_size
    operations = sum(layer.operations for layer in layer_table(network, grid))
    auto = fastest_method((grid // 2,) * 3 + (features, 8), (kernel,) * 3 + (features, features))
    device = jax.devices()[0]
    return {
        'backend': device.platform,
        'device': device.device_kind,
        'auto': auto,
        'grid': grid,
        'features': features,
        'inner_kernel': kernel,
        'outer_kernel': network.outer_kernel_size,
        'operations': operations,
    }


def peak_cell(cell: dict) -> dict:
    """Arithmetic of a product of large square matrices by JAX, or by PyTorch; GFLOP/s."""
    size = 2048 if cell['backend'] == 'cpu' else 8192
    values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    if cell['library'] == 'jax':
        import jax
        import jax.numpy as jnp

        matrix, product, wait = jnp.asarray(values, cell['precision']), jax.jit(jnp.matmul), jax.block_until_ready
    else:
        torch, device, wait = prepare_torch(cell['backend'])
        matrix, product = torch.tensor(values, device=device, dtype=getattr(torch, cell['precision'])), torch.matmul
    timing = measure(lambda: product(matrix, matrix), wait, cell['repeats'], cell['seconds'])
    return {'gflop_per_second': 2 * size**3 / timing['best'] / 1e9, 'size': size}


def network_cell(cell: dict) -> dict:
    """Our training step, with the making of its batch, and our forward pass.

    The peak memory on a GPU is that of the process, for JAX does not reset it: what it tried while it compiled counts.
    Where the cell names a file, `gradient`, that of the first step is written there.
    """
    import jax
    import jax.numpy as jnp

    problem, network, settings = sections(cell)
    state, train_step = beginning(problem, network, settings)

    def step():
        nonlocal state
        state, metrics = train_step(state)
        return metrics

    def after_first():
        if 'gradient' in cell:
            np.save(cell['gradient'], gradient_of_first_step(state))
        return reset_peak_memory()

    found = {'step': measure(step, jax.block_until_ready, cell['repeats'], STEP_SHARE * cell['seconds'], after_first)}
    if jax.default_backend() != 'cpu':
        memory = jax.devices()[0].memory_stats()
        found['step'] |= {'memory': memory['peak_bytes_in_use'] / 1e6, 'at_rest': None}
    elif found['step']['at_rest'] is not None:
        found['step']['memory'] = peak_resident_memory()
    if cell.get('forward', True):
        params = jax.device_get(state.params)
        images = jnp.asarray(random_images(cell['batch'], problem.grid_size))
        forward = jax.jit(network.apply)
        params = jax.device_put(params)
        call = functools.partial(forward, params, images)
        found['forward'] = measure(call, jax.block_until_ready, cell['repeats'], (1 - STEP_SHARE) * cell['seconds'])
    return found


def beginning(problem: Any, network: Any, settings: Any) -> tuple[Any, Callable]:
    """The state before the first step of a training, and the compiled step."""
    from patterson_jax.learning.parallel import parallelize, replicate
    from patterson_jax.learning.training import init_state, make_train_step

    state = replicate(init_state(network, problem, settings, seed=0))
    return state, parallelize(make_train_step(network, problem, settings, seed=0), donate=True)


def gradient_of_first_step(state: Any) -> np.ndarray:
    """The gradient, up to a factor, `(num_weights,)`: Adam's first moment after one step."""
    import jax
    import optax

    moments = jax.device_get(optax.tree.get(state.optimizer, 'mu'))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moments)])


def gradient_cell(cell: dict) -> dict:
    """Loss of the first step; writes its gradient to the file that the cell names."""
    state, train_step = beginning(*sections(cell))
    state, metrics = train_step(state)
    np.save(cell['gradient'], gradient_of_first_step(state))
    return {'loss': float(metrics['loss'])}


def random_images(batch: int, grid: int) -> np.ndarray:
    """Fixed random images `(batch, grid, grid, grid)`."""
    return np.random.default_rng(0).random((batch, grid, grid, grid), np.float32)


def prepare_torch(backend: str) -> tuple[Any, str, Callable[[Any], Any]]:
    """PyTorch set to its fastest for float32, the name of its device, and how to wait for that."""
    import torch

    if backend == 'cpu':
        return torch, 'cpu', lambda result: None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    return torch, 'cuda', lambda result: torch.cuda.synchronize()


def torch_network(network: Any) -> Any:
    """The same network as a PattersonNet, in PyTorch: `(batch, 1, x, y, z)` in and out, without batch normalisation."""
    from torch import nn

    def convolution(channels_in, channels_out, kernel):
        return nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2)

    layers, channels = [], 1

    def hidden_layers(depth, kernel):
        nonlocal channels
        for _ in range(depth):
            layers.extend([convolution(channels, network.features, kernel), nn.ReLU()])
            channels = network.features

    hidden_layers(network.encoder_depth, network.outer_kernel_size)
    layers.append(nn.MaxPool3d(2))
    hidden_layers(network.inner_depth, network.inner_kernel_size)
    layers.append(nn.Upsample(scale_factor=2, mode='nearest'))
    hidden_layers(network.decoder_depth, network.outer_kernel_size)
    layers.extend([convolution(channels, 1, network.outer_kernel_size), nn.Tanh()])
    return nn.Sequential(*layers)


def torch_cell(cell: dict) -> dict:
    """PyTorch's training step and forward pass on one fixed batch, in one memory format and precision."""
    torch, device, wait = prepare_torch(cell['backend'])
    names = ('config',) if 'config' in cell else ('grid', 'features')  # PyTorch has a precision of its own
    problem, network, settings = sections({name: cell[name] for name in (*names, 'batch')})
    layout = getattr(torch, cell['format'])
    model = torch_network(network).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    images = torch.from_numpy(random_images(cell['batch'], problem.grid_size))[:, None].to(device, memory_format=layout)
    target = images * 0.5
    autocast = torch.autocast(device, torch.bfloat16, enabled=cell['precision'] == 'bfloat16')

    def step():
        optimizer.zero_grad()
        with autocast:
            loss = torch.nn.functional.mse_loss(model(images).float(), target)
        loss.backward()
        optimizer.step()
        return loss

    def forward():
        with torch.inference_mode(), autocast:
            return model(images)

    reset = reset_peak_memory if device == 'cpu' else torch.cuda.reset_peak_memory_stats
    found = {'step': measure(step, wait, cell['repeats'], STEP_SHARE * cell['seconds'], reset)}
    if device != 'cpu':
        found['step']['memory'] = torch.cuda.max_memory_allocated() / 1e6
    elif found['step']['at_rest'] is not None:
        found['step']['memory'] = peak_resident_memory()
    optimizer.zero_grad()
    gc.collect()
    found['forward'] = measure(forward, wait, cell['repeats'], (1 - STEP_SHARE) * cell['seconds'])
    return found


def convolution_arrays(cell: dict) -> tuple[Any, Any, Any]:
    """Random image, kernel and cotangent of a convolution, as the project lays them out."""
    import jax.numpy as jnp

    generator = np.random.default_rng(0)
    space, kernel = (cell['size'],) * 3, (cell['kernel'],) * 3
    channels = (cell['channels_in'], cell['channels_out'])
    shapes = (*space, channels[0], cell['batch']), (*kernel, *channels), (*space, channels[1], cell['batch'])
    return tuple(jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes)


def value_and_gradients(convolution: Callable) -> Callable:
    """A compiled function from image, kernel and cotangent to a convolution's value and both gradients."""
    import jax

    def both(image, kernel, cotangent):
        value, pull_back = jax.vjp(convolution, image, kernel)
        return value, pull_back(cotangent)

    return jax.jit(both)


def layer_cell(cell: dict) -> dict:
    """Value and gradients of one convolution by one method."""
    import jax

    from patterson_jax.networks.convolution import convolve

    call = functools.partial(
        value_and_gradients(functools.partial(convolve, method=cell['method'])), *convolution_arrays(cell)
    )
    return measure(call, jax.block_until_ready, cell['repeats'], cell['seconds'])


def parts_cell(cell: dict) -> dict:
    """Seconds of the parts of one spectral convolution, each compiled and run alone, and of the whole."""
    import jax

    from patterson_jax.networks.convolution import spectral_convolution

    image, kernel, cotangent = convolution_arrays(cell)
    found = {'transforms': 0.0, 'contraction': 0.0}

    def time_of(call):
        return measure(call, jax.block_until_ready, cell['repeats'], share)['best']

    with jax.default_matmul_precision('highest'):  # as the whole has it
        parts = list(spectral_parts(image, kernel, cotangent))
        share = cell['seconds'] / (len(parts) + 1)
        for kind, function, arguments in parts:
            found[kind] += time_of(functools.partial(function, *arguments))
    found['whole'] = time_of(functools.partial(value_and_gradients(spectral_convolution), image, kernel, cotangent))
    return found


def spectral_parts(image: Any, kernel: Any, cotangent: Any) -> Iterator[tuple[str, Callable, tuple]]:
    """Kind, compiled function and arguments of each part of `spectral_convolution` and its gradients, in their order.

    It goes through the same steps as `_value` and `_gradients` do.
    """
    import jax
    import jax.numpy as jnp

    from patterson_jax.networks import convolution as spectral

    axes = spectral.plan(image.shape, kernel.shape)
    window, tile, tap = ([getattr(axis, f'{kind}_waves') for axis in axes] for kind in ('window', 'tile', 'tap'))
    batch, channels_out = image.shape[4], kernel.shape[4]
    windows, tiles = jax.jit(lambda: (spectral._cut(image, axes), spectral._split(cotangent, axes)))()

    def spectrum(waves):
        return jax.jit(lambda array: spectral._spectrum(array, waves))

    def kernel_spectrum():
        return jax.jit(lambda kernel, other: spectral._kernel_spectrum(kernel, axes, other))

    def inverse(waves, last):
        return jax.jit(lambda array: spectral._inverse(array, waves, last))

    steps = {
        'image': spectrum(window),
        'cotangent': spectrum(tile),
        'kernel': kernel_spectrum(),
        'product': jax.jit(spectral._product),
        'correlation': jax.jit(spectral._correlation),
    }
    image_spectrum, cotangent_spectrum = steps['image'](windows), steps['cotangent'](tiles)
    swapped = jnp.swapaxes(kernel, 3, 4)
    forward = jax.jit(spectral._as_matrices)(steps['kernel'](swapped, image_spectrum))
    backward = jax.jit(functools.partial(spectral._as_matrices, conjugate=True))(
        steps['kernel'](kernel, cotangent_spectrum)
    )
    yield 'transforms', steps['image'], (windows,)
    yield 'transforms', steps['kernel'], (swapped, image_spectrum)
    yield 'contraction', steps['product'], (forward, image_spectrum)
    yield 'transforms', inverse(tile, batch), (steps['product'](forward, image_spectrum),)
    yield 'transforms', steps['cotangent'], (tiles,)
    yield 'transforms', steps['kernel'], (kernel, cotangent_spectrum)
    yield 'contraction', steps['product'], (backward, cotangent_spectrum)
    yield 'transforms', inverse(window, batch), (steps['product'](backward, cotangent_spectrum),)
    yield 'contraction', steps['correlation'], (image_spectrum, cotangent_spectrum)
    yield 'transforms', inverse(tap, channels_out), (steps['correlation'](image_spectrum, cotangent_spectrum),)


def data_cell(cell: dict) -> list[dict]:
    """Our making of batches, other cases at every call; a timing for each batch size."""
    import jax

    from patterson_jax.simulation.examples import make_batch, stream_key

    problem, _, _ = base_sections({'grid': cell['grid']})
    stream = stream_key(0, 'training')
    make = jax.jit(lambda indices: make_batch(stream, 0, indices, problem))

    def time_of(batch):
        numbers = itertools.count()
        return measure(
            lambda: make(next(numbers) * batch + np.arange(batch, dtype=np.int32)),
            jax.block_until_ready,
            cell['repeats'],
            cell['seconds'] / len(cell['batches']),
        )

    return [time_of(batch) for batch in cell['batches']]


def numpy_data_cell(cell: dict) -> dict:
    """The making of one case in the plain NumPy way, another one at every call."""
    problem, _, _ = base_sections(cell)
    generator = np.random.default_rng(0)
    return measure(lambda: case_with_numpy(generator, problem), lambda result: None, cell['repeats'], cell['seconds'])


def case_with_numpy(generator: np.random.Generator, problem: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, Patterson map and target of one case, made one atom after the other; of a problem without corners."""
    positions = positions_with_numpy(generator, problem)
    density = render_with_numpy(positions, problem.grid_size, problem.atom_radius)
    target = density / 2 if problem.target == 'original' else (density + density[::-1, ::-1, ::-1]) / 2
    return positions, patterson_with_numpy(density), target


def positions_with_numpy(generator: np.random.Generator, problem: Any) -> np.ndarray:
    """Positions `(num_atoms, 3)`, voxels from the box centre; an atom that is too near to another is drawn again."""
    positions = np.zeros((0, 3))
    while len(positions) < problem.num_atoms:
        drawn = generator.uniform(-problem.box_edge / 2, problem.box_edge / 2, 3)
        if np.all(np.sum((positions - drawn) ** 2, axis=1) >= problem.min_separation**2):
            positions = np.concatenate([positions, drawn[None]])
    return positions - positions.mean(axis=0) if problem.centred else positions


def render_with_numpy(positions: np.ndarray, grid_size: int, atom_radius: float) -> np.ndarray:
    """Density of equal spheres: the mean over a sub-grid in each voxel that a sphere can touch.

    Positions `(num_atoms, 3)` in voxels from the box centre, the radius in voxels; returns `(grid, grid, grid)`.
    """
    density = np.zeros((grid_size,) * 3, np.float32)
    block = math.ceil(2 * atom_radius) + 1
    points = (np.arange(block * SUB_GRID) + 0.5) / SUB_GRID
    for position in positions + grid_size / 2:
        start = np.floor(position - atom_radius).astype(int)
        x, y, z = (start[:, None] + points - position[:, None]) ** 2
        inside = x[:, None, None] + y[:, None] + z < atom_radius**2
        fractions = inside.reshape((block, SUB_GRID) * 3).mean(axis=(1, 3, 5))
        voxels = (start[:, None] + np.arange(block)) % grid_size
        density[np.ix_(*voxels)] += fractions
    return density


def patterson_with_numpy(density: np.ndarray) -> np.ndarray:
    """The Patterson map of a density map, both `(grid, grid, grid)`, origin at voxel (0, 0, 0)."""
    return np.fft.irfftn(np.abs(np.fft.rfftn(density)) ** 2, s=density.shape, axes=(0, 1, 2))


CELLS = {
    'machine': machine_cell,
    'peak': peak_cell,
    'network': network_cell,
    'gradient': gradient_cell,
    'torch': torch_cell,
    'layer': layer_cell,
    'parts': parts_cell,
    'data': data_cell,
    'numpy_data': numpy_data_cell,
}


# ---- The tables, in the process that starts the cells ----


class Cells:
    """Runs cells one after another, telling of each on stderr.

    Attributes:
        common: what every cell is told: repeats, seconds, grid, features.
        failures: labels of those that failed.
    """

    def __init__(self, settings: Settings):
        self.common = {name: getattr(settings, name) for name in ('repeats', 'seconds', 'grid', 'features')}
        self.failures = []

    def run(self, label: str, kind: str, **given: Any) -> dict | None:
        """What the cell returned, or None if it failed, as where memory did not suffice."""
        print(f'{label} ...', file=sys.stderr, flush=True)
        started = time.perf_counter()
        cell = self.common | {'kind': kind} | given
        command = [sys.executable, __file__, f'--cell={json.dumps(cell)}']
        process = subprocess.run(command, env=cell_environment(), capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if process.returncode == 0:
            print(f'{label}: {seconds:.1f} s', file=sys.stderr, flush=True)
            return json.loads(process.stdout.splitlines()[-1])
        reason = (process.stderr.strip().splitlines() or ['nothing was said'])[-1]
        print(f'{label}: failed, exit status {process.returncode}: {reason}', file=sys.stderr, flush=True)
        self.failures.append(label)
        return None


def cell_environment() -> dict[str, str]:
    """One GPU, because the others would need larger batches; no compiled code of earlier runs."""
    return os.environ | {
        'TF_CPP_MIN_LOG_LEVEL': '3',
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0],
        'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
    }


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec('torch') is not None


def implementations(machine: dict) -> dict[str, list[dict]]:
    """Cells of each implementation; where there are several, the fastest one counts."""
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
    """GFLOP/s of large matrix products for each precision: the best of the libraries, and each library's."""
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


def network_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """The training step and the forward pass of the base network by each implementation, for each batch."""
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


def describe_peaks(peaks: dict) -> str:
    """The peaks in words; float32 means what the libraries make of it, TF32 on some GPUs."""
    return ', '.join(f'{precision} {number(each["gflop_per_second"])} GFLOP/s' for precision, each in peaks.items())


def network_figures(results: list, batch: int, machine: dict, peak: float | None) -> dict:
    """The figures of a row: of the step, and of the forward pass, each by the fastest variant."""
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
    """How many times as fast as PyTorch, with the same batch and precision, a row is."""
    name = 'PyTorch, bfloat16' if 'bfloat16' in row['implementation'] else 'PyTorch'
    other = next((each for each in rows if (each['implementation'], each['batch']) == (name, row['batch'])), {})
    keys = {part: f'{part}_seconds_per_example' for part in ('step', 'forward')}
    return {
        f'{part}_speed_over_torch': other[key] / row[key] if key in other and key in row else None
        for part, key in keys.items()
    }


def parts_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Where the time of the base network's spectral convolutions goes, value and gradients, and that of a batch."""
    batch = min(PARTS_BATCH, max(settings.batches))
    grid, features, outer = machine['grid'], machine['features'], machine['outer_kernel']
    kinds = [
        (features, features, machine['inner_kernel'], grid // 2),
        (features, features, outer, grid),
        (1, features, outer, grid),
        (features, 1, outer, grid),
    ]
    rows = []
    for channels_in, channels_out, kernel, size in kinds:
        what = f'{channels_in}→{channels_out} {kernel}³ on {size}³'
        sizes = {'channels_in': channels_in, 'channels_out': channels_out, 'kernel': kernel, 'size': size}
        found = cells.run(f'parts, {what}', 'parts', batch=batch, **sizes)
        if found:
            found['rest'] = found['whole'] - found['transforms'] - found['contraction']
        rows.append({'what': what, 'batch': batch} | sizes | (found or {}))
    found = cells.run('parts, data', 'data', batches=[batch])
    rows.append({'what': 'data generation', 'batch': batch, 'whole': found and found[0]['best']})
    notes = [
        'Seconds for a batch. The parts are timed alone; the rest, such as cutting and joining of tiles, is what the '
        'whole takes more, and can be negative where the whole is fused better.'
    ]
    return {'rows': rows, 'notes': notes}


def data_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Maps a second: ours, and one case after the other in the NumPy way."""
    plain = cells.run('data, NumPy', 'numpy_data')
    rows = [{'implementation': 'NumPy', 'batch': 1, 'maps_per_second': plain and 1 / plain['best']}]
    timings = cells.run('data, ours', 'data', batches=DATA_BATCHES) or [None] * len(DATA_BATCHES)
    for batch, found in zip(DATA_BATCHES, timings, strict=True):
        rate = found and batch / found['best']
        rows.append({'implementation': 'ours', 'batch': batch, 'maps_per_second': rate})
        rows[-1]['speed_over_numpy'] = rate * plain['best'] if found and plain else None
    return {'rows': rows, 'notes': [f'NumPy averages over {SUB_GRID}³ points in each voxel that an atom can touch.']}


def growth_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Our training step against grid size, channels and batch."""
    largest = {'grid': settings.grid, 'channels': settings.features, 'batch': max(settings.batches)}
    fixed = {'grid': machine['grid'], 'channels': machine['features'], 'batch': min(GROWTH_BATCH, largest['batch'])}
    rows = []
    for series, every in GROWTH.items():
        values = [each for each in every if largest[series] is None or each <= largest[series]]
        for value in values or [largest[series]]:
            sizes = fixed | {series: value}
            given = {'grid': sizes['grid'], 'features': sizes['channels'], 'batch': sizes['batch'], 'forward': False}
            found = cells.run(f'growth, {series} {value}', 'network', **given)
            row = {'series': series} | sizes
            if found:
                row |= {'seconds_per_example': found['step']['best'] / sizes['batch']}
                row |= {'memory_mb': found['step'].get('memory'), 'compile_seconds': found['step']['compile']}
            rows.append(row)
    return {'rows': rows, 'notes': []}


def layers_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Value and gradients of single convolutions by both methods."""
    batch = min(LAYER_BATCH, max(settings.batches))
    most = settings.features or max(map(max, LAYER_CHANNELS))
    channels = dict.fromkeys(tuple(min(each, most) for each in pair) for pair in LAYER_CHANNELS)
    grids = [each for each in LAYER_GRIDS if each <= (settings.grid or max(LAYER_GRIDS))]
    rows = []
    for kernel in LAYER_KERNELS:
        for size in grids:
            for channels_in, channels_out in channels:
                sizes = {'kernel': kernel, 'size': size, 'channels_in': channels_in, 'channels_out': channels_out}
                row = sizes | {'batch': batch}
                for method in ('direct', 'spectral'):
                    label = f'layers, {method}, {channels_in}→{channels_out} {kernel}³ on {size}³'
                    found = cells.run(label, 'layer', method=method, **row)
                    row[method] = found and found['best']
                row['speed_of_spectral'] = (
                    row['direct'] / row['spectral'] if row['direct'] and row['spectral'] else None
                )
                rows.append(row)
    return {'rows': rows, 'notes': [f"Seconds for a batch; 'auto' is {machine['auto']} here."]}


TABLES = {
    'network': network_table,
    'parts': parts_table,
    'data': data_table,
    'growth': growth_table,
    'layers': layers_table,
}
COLUMNS = {
    'network': {
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
    },
    'parts': {
        'what': 'what',
        'batch': 'batch',
        'transforms': 'transforms',
        'contraction': 'contraction',
        'rest': 'rest',
        'whole': 'whole',
    },
    'data': {
        'implementation': 'implementation',
        'batch': 'batch',
        'maps_per_second': 'maps/s',
        'speed_over_numpy': 'speed / NumPy',
    },
    'growth': {
        'series': 'series',
        'grid': 'grid',
        'channels': 'channels',
        'batch': 'batch',
        'seconds_per_example': 's/example',
        'memory_mb': 'memory, MB',
        'compile_seconds': 'compile, s',
    },
    'layers': {
        'kernel': 'kernel',
        'size': 'grid',
        'channels_in': 'channels in',
        'channels_out': 'out',
        'batch': 'batch',
        'direct': 'direct',
        'spectral': 'spectral',
        'speed_of_spectral': 'spectral / direct, speed',
    },
}


def number(value: object) -> str:
    """A value as a table shows it: three digits of a number, a dash for what is not there."""
    if value is None:
        return '–'
    if not isinstance(value, float):
        return str(value)
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def as_markdown(name: str, table: dict) -> str:
    """A table with its notes, aligned for readers of the plain text."""
    return '\n'.join(['', f'## {name}', '', *aligned(COLUMNS[name], table['rows']), '', *table['notes']])


def aligned(columns: dict[str, str], rows: list[dict]) -> list[str]:
    """The lines of a Markdown table; `columns` are keys of the rows and what stands above them."""
    rows_of_cells = [[number(row.get(key)) for key in columns] for row in rows]
    return markdown_table(columns.values(), rows_of_cells, aligned=True).splitlines()


def describe_machine(found: dict) -> dict:
    """Device, cores, processor and versions."""
    versions = {'python': platform.python_version()}
    for library in LIBRARIES:
        if importlib.util.find_spec(library):
            versions[library] = importlib.metadata.version(library)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    machine = {'device': found['device'], 'backend': found['backend'], 'cores': cores}
    return machine | {'processor': processor(), 'versions': versions}


def slug(device: str) -> str:
    """The name of a device as it stands in names of files."""
    return '-'.join(''.join(each if each.isalnum() else ' ' for each in device.lower()).split())


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def earlier_tables(output: Path, machine: dict) -> dict:
    """Tables of an earlier run with the same machine and versions, by name."""
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
    machine = describe_machine(found)
    output = output or Path(__file__).with_name(f'speed-{slug(machine["device"])}.json')
    tables = earlier_tables(output, machine)
    versions = ', '.join(f'{library} {version}' for library, version in machine['versions'].items())
    print(f'{machine["device"]}; {machine["processor"]}, {machine["cores"]} cores; {versions}')
    for name in settings.tables:
        table = TABLES[name](cells, settings, found)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        about = {'date': now, 'settings': settings._asdict() | {name: found[name] for name in ('grid', 'features')}}
        tables = tables | {name: about | table}
        output.write_text(json.dumps(machine | {'date': now, 'tables': tables}, indent=1, ensure_ascii=False) + '\n')
        print(as_markdown(name, table), flush=True)
    print(f'\nWritten to {output}')
    for label in cells.failures:
        print(f'failed: {label}', file=sys.stderr)
    return 1 if cells.failures else 0


# ---- The command line ----


def parse_flags(arguments: list[str]) -> list[str]:
    """Reads the flags; ends the program with one line if one is wrong."""
    with exit_on_errors():
        try:
            rest = flags.FLAGS(arguments)[1:]
        except flags.IllegalFlagValueError as error:
            name, _, value = str(error).removeprefix('flag ').partition(': ')[0].partition('=')
            allowed = 'a number' if name == '--cell-seconds' else 'a whole number'
            raise InputError(f'{name} is {value!r}; it must be {allowed}') from error
        except flags.Error as error:
            raise InputError(' '.join(str(error).split())) from error
        if rest:
            raise InputError(f'{rest[0]!r} is no flag; flags begin with --, as in --tables=data')
    return rest


def read_settings() -> Settings:
    """The flags' values, checked; raises InputError."""
    for name in TABLES_FLAG.value:
        require(name in TABLES, '--tables', name, f'some of {", ".join(TABLES)}, separated by commas')
    require(TABLES_FLAG.value, '--tables', '', f'some of {", ".join(TABLES)}, separated by commas')
    batches = _whole_numbers('--batches', BATCHES.value)
    require(batches, '--batches', '', 'whole numbers from 1, separated by commas')
    require(REPEATS.value >= 1, '--repeats', REPEATS.value, '1 or more')
    seconds = CELL_SECONDS.value
    require(math.isfinite(seconds) and seconds > 0, '--cell-seconds', seconds, 'a positive number of seconds')
    grid, features = GRID.value, FEATURES.value
    require(grid is None or (grid >= 8 and grid % 2 == 0), '--grid', grid, 'an even number, 8 or more')
    require(features is None or features >= 1, '--features', features, '1 or more')
    if OUTPUT.value is not None:  # before hours of measurement are lost
        output = Path(OUTPUT.value)
        writable = output.parent.is_dir() and not output.is_dir()
        require(writable, '--json', OUTPUT.value, 'a file in a directory that exists')
    direct_batches = _whole_numbers('--direct-batches', DIRECT_BATCHES.value)
    return Settings(tuple(TABLES_FLAG.value), batches, direct_batches, REPEATS.value, seconds, grid, features)


def _whole_numbers(flag, words):
    for word in words:
        fine = word.isdecimal() and int(word) >= 1
        require(fine, flag, word, 'whole numbers from 1, separated by commas')
    return tuple(dict.fromkeys(map(int, words)))


def main(_: list[str]) -> None:
    """Measures one cell, if the program was started by itself, or else all tables."""
    if CELL.value is not None:
        cell = json.loads(CELL.value)
        print(json.dumps(CELLS[cell['kind']](cell)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the cell that runs is ended too
    with exit_on_errors():
        sys.exit(run_tables(read_settings(), OUTPUT.value and Path(OUTPUT.value)))


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
