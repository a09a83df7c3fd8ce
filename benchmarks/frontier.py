"""The figure of `benchmarks.solvers`: where each method of solving stops."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from patterson_jax.pictures import save_figure

TWO_SIDED_95 = 1.959964  # standard deviations of a normal distribution
SMALL = {'labelsize': 8, 'length': 0}


def wilson_interval(count: int, trials: int) -> tuple[float, float]:
    """The probabilities that `count` of `trials` do not contradict at 95 % (Wilson, J. Am. Stat. Assoc. 22, 209, 1927).

    These are the p whose distance from count / trials is at most 1.96 √(p (1 − p) / trials).
    """
    share, spread = count / trials, TWO_SIDED_95**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def draw_frontier(path: Path, cells: list[dict]) -> None:
    """Cases solved over resolution and number of atoms, with a row for each method and a column for each noise.

    Args:
        path: of the picture.
        cells: of `benchmarks.solvers`, with method, atoms, resolution, noise, cases, recall, solved, seconds_per_case.
    """
    methods, noises, atoms = (
        list(dict.fromkeys(cell[name] for cell in cells)) for name in ('method', 'noise', 'atoms')
    )
    noises, atoms = sorted(noises), sorted(atoms)
    resolutions = sorted({cell['resolution'] for cell in cells}, key=lambda each: -(each or np.inf))
    size = (max(5, 1.2 + 1.05 * len(resolutions) * len(noises)), 0.8 + (0.9 + 0.7 * len(atoms)) * len(methods))
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(len(methods), len(noises), squeeze=False)
    for (row, column), axes in np.ndenumerate(panels):
        method, noise = methods[row], noises[column]
        share = np.full((len(atoms), len(resolutions)), np.nan)
        for cell in cells:
            if (cell['method'], cell['noise']) == (method, noise):
                y, x = atoms.index(cell['atoms']), resolutions.index(cell['resolution'])
                share[y, x] = cell['solved'] / cell['cases']
                colour = 'black' if share[y, x] > 0.6 else 'white'
                axes.text(x, y, _words(cell), ha='center', va='center', fontsize=8, color=colour)
        image = axes.imshow(share, vmin=0, vmax=1, cmap='viridis', aspect='auto', origin='lower')
        axes.set_xticks(range(len(resolutions)), [f'|h| ≤ {each:g}' if each else 'all' for each in resolutions])
        axes.set_yticks(range(len(atoms)), atoms)
        axes.tick_params(**SMALL)
        axes.spines[['top', 'right']].set_visible(False)
        axes.set_title(f'{method.replace("_", " ")}, noise {noise:.0%}', fontsize=9)
        if column == 0:
            axes.set_ylabel('atoms')
    figure.colorbar(image, ax=panels, label='share of cases with every atom found', shrink=0.6)
    figure.suptitle('cases with every atom found, with 95 % confidence interval, and seconds a case', fontsize=10)
    save_figure(path, figure)


def _words(cell):
    low, high = wilson_interval(cell['solved'], cell['cases'])
    solved = f'{cell["solved"]} / {cell["cases"]}'
    return f'{solved}\n{100 * low:.0f} to {100 * high:.0f} %\n{cell["seconds_per_case"]:.2f} s'
