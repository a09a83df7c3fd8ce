"""Single convolutions: direct against spectral, and where the time of a spectral one goes."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.speed.cells import Cells, Settings
from benchmarks.timing import measure
from patterson_jax.networks import spectra
from patterson_jax.networks.convolution import convolve, spectral_convolution

PARTS_BATCH = 8
LAYER_BATCH = 4
LAYER_KERNELS = (3, 5, 7)
LAYER_GRIDS = (8, 16, 20, 32, 40)
LAYER_CHANNELS = ((1, 20), (8, 8), (20, 20), (20, 1))
PARTS_COLUMNS = {
    'what': 'what',
    'batch': 'batch',
    'transforms': 'transforms',
    'contraction': 'contraction',
    'rest': 'rest',
    'whole': 'whole',
}
LAYERS_COLUMNS = {
    'kernel': 'kernel',
    'size': 'grid',
    'channels_in': 'channels in',
    'channels_out': 'out',
    'batch': 'batch',
    'direct': 'direct',
    'spectral': 'spectral',
    'speed_of_spectral': 'spectral / direct, speed',
}


def convolution_arrays(cell: dict) -> tuple[Array, ...]:
    """Random image, kernel and cotangent of a convolution, in the layout of `networks.convolution`."""
    generator = np.random.default_rng(0)
    space, kernel = (cell['size'],) * 3, (cell['kernel'],) * 3
    channels = (cell['channels_in'], cell['channels_out'])
    shapes = (*space, channels[0], cell['batch']), (*kernel, *channels), (*space, channels[1], cell['batch'])
    return tuple(jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes)


def value_and_gradients(convolution: Callable) -> Callable:
    """Compiles a function from image, kernel and cotangent to a convolution's value and both gradients."""

    def both(image, kernel, cotangent):
        value, pull_back = jax.vjp(convolution, image, kernel)
        return value, pull_back(cotangent)

    return jax.jit(both)


def layer_cell(cell: dict) -> dict:
    """Value and gradients of one convolution by one method."""
    call = functools.partial(
        value_and_gradients(functools.partial(convolve, method=cell['method'])), *convolution_arrays(cell)
    )
    return measure(call, jax.block_until_ready, cell['repeats'], cell['seconds'])


def parts_cell(cell: dict) -> dict:
    """Seconds of one spectral convolution, and of its parts, each compiled and run alone."""
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


def spectral_parts(image: Array, kernel: Array, cotangent: Array) -> Iterator[tuple[str, Callable, tuple]]:
    """Kind, compiled function and arguments of each part of `spectral_convolution` and its gradients, in order.

    Cutting and joining of tiles are left out.
    """
    axes = spectra.plan(image.shape, kernel.shape)
    window, tile, tap = ([getattr(axis, f'{kind}_waves') for axis in axes] for kind in ('window', 'tile', 'tap'))
    batch, channels_out = image.shape[4], kernel.shape[4]
    windows, tiles = jax.jit(lambda: (spectra.cut(image, axes), spectra.split(cotangent, axes)))()

    def spectrum(waves):
        return jax.jit(lambda array: spectra.spectrum(array, waves))

    def inverse(waves, last):
        return jax.jit(lambda amplitudes: spectra.inverse(amplitudes, waves, last))

    of_image, of_cotangent = spectrum(window), spectrum(tile)
    of_kernel = jax.jit(lambda kernel, other: spectra.kernel_spectrum(kernel, axes, other))
    forward, correlate = jax.jit(spectra.multiply), jax.jit(spectra.correlate)
    backward = jax.jit(functools.partial(spectra.multiply, conjugate=True))

    swapped = jnp.swapaxes(kernel, 3, 4)
    image_spectrum, cotangent_spectrum = of_image(windows), of_cotangent(tiles)
    for_value = of_kernel(swapped, image_spectrum), image_spectrum
    for_gradient = of_kernel(kernel, cotangent_spectrum), cotangent_spectrum
    both = image_spectrum, cotangent_spectrum
    yield 'transforms', of_image, (windows,)
    yield 'transforms', of_kernel, (swapped, image_spectrum)
    yield 'contraction', forward, for_value
    yield 'transforms', inverse(tile, batch), (forward(*for_value),)
    yield 'transforms', of_cotangent, (tiles,)
    yield 'transforms', of_kernel, (kernel, cotangent_spectrum)
    yield 'contraction', backward, for_gradient
    yield 'transforms', inverse(window, batch), (backward(*for_gradient),)
    yield 'contraction', correlate, both
    yield 'transforms', inverse(tap, channels_out), (correlate(*both),)


def parts_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Seconds of the base network's spectral convolutions with gradients, of their parts, and of making a batch."""
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
        'Seconds for a batch. The parts are timed alone. The rest of the whole, such as cutting and joining of tiles, '
        'is the difference; it can be negative where the whole is fused better.'
    ]
    return {'rows': rows, 'notes': notes}


def layers_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Seconds of single convolutions with gradients, by both methods."""
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
