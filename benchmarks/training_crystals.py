"""Compares training crystals with real ones: where atoms are, and how intensities are distributed.

    python -m benchmarks.training_crystals DIRECTORY…       # folders as for benchmarks/crystals.py

Of each crystal all reflections up to 1.2 Å are used, those of real ones as measured. Only molecules of light atoms are
compared: crystals with carbon and with nothing heavier than chlorine; or with `--metals`, those with carbon and an
element from titanium on that is neither bromine nor iodine. Numbers are means over crystals, with the
standard deviation of the crystals; of the real ones, hydrogen is left out where atoms are counted. Of the training
crystals, structure factors have no errors here. Seconds are of the processor.

    python -m benchmarks.training_crystals --solve          # are they as hard to solve as real ones?

Charge flipping on measured E values in P1 (1.1 σ, 600 cycles, four random starts) and 40 cycles of low-density
elimination, at 1.0 and at 1.2 Å: how many crystals have a start whose phases agree with the true ones, by the
E²-weighted mean cosine at the best origin and hand, by more than 0.7.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
import time
from pathlib import Path

import gemmi
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.crystals import read_folder
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.expansion import expand, first_of_friedel_pair
from patterson_jax.crystal.grid import Grid
from patterson_jax.crystal.normalisation import mean_intensities, normalised_amplitudes
from patterson_jax.crystal.reflections import stabilisers
from patterson_jax.crystal.symmetry import with_inversion
from patterson_jax.errors import exit_on_errors, require
from patterson_jax.simulation import training_crystals
from patterson_jax.simulation.grown_molecules import ATOMIC_NUMBERS
from patterson_jax.simulation.training_crystals import GROUPS, TrainingRecipe
from patterson_jax.solving.charge_flipping import eliminate, flip, prepare_search, random_density
from patterson_jax.writing import markdown_table

D_MIN = 1.2  # Å
SHELLS = (np.inf, 6.0, 4.0, 3.0, 2.4, 2.0, 1.7, 1.5, 1.35, 1.2)  # Å
REFERENCE = (2.4, 1.5)  # Å, mean intensities are relative to that here
CARBON, HEAVIEST = 6, 17
METALS = set(range(22, 57)) - {35, 53}  # atomic numbers
BATCH = 8
SAME_SITE = 0.3  # Å
STARTS, SOLVED = 4, 0.7


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is compared of a crystal.

    Attributes:
        centrosymmetric: whether it is.
        values: name → number.
    """

    centrosymmetric: bool
    values: dict[str, float]


def summarise(
    axes: np.ndarray, positions: np.ndarray, hkl: np.ndarray, intensities: np.ndarray, rotations: np.ndarray
) -> Summary:
    """Summary of one crystal.

    Args:
        axes: `(3, 3)`, rows are the edges of the cell, Å.
        positions: `(n, 3)`, fractional, of all atoms of the cell without hydrogen.
        hkl: `(m, 3)`, of one of each Friedel pair up to `D_MIN`.
        intensities: `(m,)`.
        rotations: `(operations, 3, 3)`, of the space group.
    """
    spacings = np.linalg.norm(hkl @ np.linalg.inv(axes).T, axis=1)
    steps = positions[:, None] - positions[None]
    shifts = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing='ij'), axis=-1).reshape(-1, 1, 1, 3)
    distances = np.linalg.norm((steps - np.round(steps) + shifts) @ axes, axis=-1)
    number = len(positions)
    values = {'Å³ an atom': abs(np.linalg.det(axes)) / number}
    for name, low, high in (
        ('neighbours up to 1.6 Å', SAME_SITE, 1.6),
        ('1.6 to 2.0 Å', 1.6, 2.0),
        ('2.0 to 2.3 Å', 2.0, 2.3),
        ('2.3 to 2.6 Å', 2.3, 2.6),
        ('2.6 to 3.2 Å', 2.6, 3.2),
        ('3.2 to 4.0 Å', 3.2, 4.0),
    ):
        values[name] = np.sum((distances > low) & (distances <= high)) / number
    e_values = normalised_amplitudes(
        np.sqrt(np.maximum(intensities, 0)), np.maximum(mean_intensities(intensities, spacings), 1e-9)
    )
    general = e_values[stabilisers(hkl, with_inversion(rotations)) == 1] ** 2  # neither absent nor in centric zones
    general /= np.mean(general)
    values['⟨|E² − 1|⟩'] = np.mean(np.abs(general - 1))
    values['⟨E⁴⟩'] = np.mean(general**2)
    reference = intensities[(spacings > 1 / REFERENCE[0]) & (spacings <= 1 / REFERENCE[1])].mean()
    for outer, inner in itertools.pairwise(SHELLS):
        chosen = (spacings > 1 / outer) & (spacings <= 1 / inner)
        if chosen.sum() >= 4:
            values[f'ln I, {outer:g} to {inner:g} Å'] = np.log(intensities[chosen].mean() / reference)
    return Summary(bool(np.any(np.all(rotations == -np.eye(3), axis=(1, 2)))), values)


def compared(numbers: set[int], metals: bool) -> bool:
    """Whether a crystal of these atomic numbers is compared: a molecule of light atoms, or one with a metal."""
    return CARBON in numbers and (bool(numbers & METALS) if metals else max(numbers) <= HEAVIEST)


def distinct(positions: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Positions `(n, 3)`, fractional, without those that coincide with an earlier one."""
    steps = positions[:, None] - positions[None]
    apart = np.linalg.norm((steps - np.round(steps)) @ axes, axis=-1) > SAME_SITE
    return positions[np.all(apart | np.triu(np.ones_like(apart)), axis=1)]


def real(folder: Path, metals: bool) -> Summary | None:
    """Summary of a real crystal; None if it is not among those that are compared."""
    known = read_folder(folder)
    if not compared({gemmi.Element(atom['el']).atomic_number for atom in known.atoms}, metals):
        return None
    expanded = expand(known.data, D_MIN)
    cell = UnitCell(*known.content['cell'])
    axes = cell.orthogonalization.T
    heavy = [atom['xyz'] for atom in known.atoms if atom['el'] != 'H' and atom['occ'] >= 0.5]
    sites = np.array([operator.apply_to_xyz(each) for each in heavy for operator in known.operators])
    rotations = np.array([each.rot for each in known.operators]) // gemmi.Op.DEN
    hkl = expanded.in_given_cell(expanded.hkl)
    return summarise(axes, distinct(sites, axes), hkl, expanded.intensities, np.unique(rotations, axis=0))


def training(count: int, seed: int, metals: bool) -> tuple[list[Summary], list[str], float]:
    """Summaries of training crystals that are compared, the groups of all, and seconds for one of all drawn."""
    recipe = TrainingRecipe(d_min=(D_MIN, D_MIN), **({'metals': 1.0} if metals else {}))
    frequencies = training_crystals.half_grid_frequencies(recipe.shape)

    def draw(key):
        surroundings, setting, atoms, _ = training_crystals.draw_structure(key, recipe)
        squared = training_crystals.squared_spacings(surroundings.axes, frequencies)
        factors, _ = training_crystals.structure_factors(atoms, frequencies, squared)
        return surroundings.axes, setting, atoms, squared, factors

    some, crystal = jax.jit(jax.vmap(draw)), jax.jit(jax.vmap(lambda key: training_crystals.draw_crystal(key, recipe)))
    keys = jax.random.split(jax.random.key(seed), (count // BATCH, BATCH))
    jax.block_until_ready(crystal(keys[0]))
    begun = time.process_time()
    for each in keys[: max(4, count // BATCH // 8)]:
        jax.block_until_ready(crystal(each))
    seconds = (time.process_time() - begun) / (BATCH * max(4, count // BATCH // 8))
    found, groups = [], []
    settings = training_crystals.group_settings(recipe)
    hkl = np.stack(np.meshgrid(*frequencies, indexing='ij'), axis=-1)
    half = (hkl[..., 2] > 0) | (hkl[..., 1] > 0) | ((hkl[..., 1] == 0) & (hkl[..., 0] > 0))
    half = (hkl[..., 2] > 0) | ((hkl[..., 2] == 0) & half)
    for batch in keys:
        for axes, setting, atoms, squared, factors in zip(*map(_rows, jax.device_get(some(batch))), strict=True):
            name = list(GROUPS)[settings.group[setting]]
            groups.append(name)
            present = atoms.occupancies > 0
            if not compared({int(ATOMIC_NUMBERS[each]) for each in atoms.elements[present]}, metals):
                continue
            inside = half & (squared > 0) & (squared <= 1 / D_MIN**2)
            rotations = settings.rotations[setting][: settings.operations[setting]].astype(int)
            chosen = hkl[inside].astype(int)
            found.append(
                summarise(
                    axes, distinct(atoms.positions[present], axes), chosen, np.abs(factors[inside]) ** 2, rotations
                )
            )
    return found, groups, seconds


def solve(count: int, seed: int) -> str:
    """A table of how many training crystals charge flipping solves."""
    rows = []
    for d_min in (1.0, 1.2):
        recipe = TrainingRecipe(
            shape=(20, 20, 24), spacing=(0.38, 0.45), d_min=(d_min, d_min), groups=(1, 3, 1, 2, 0, 1, 0, 0)
        )
        keys = jax.random.split(jax.random.key(seed), (count // BATCH, BATCH))
        draw = jax.jit(jax.vmap(lambda key, recipe=recipe: training_crystals.draw_crystal(key, recipe)))
        crystals = [each for batch in keys for each in _rows(jax.device_get(draw(batch)))]
        agreements = np.array([_best_agreement(each, recipe.shape) for each in crystals])
        centres = np.array([bool(each.centrosymmetric) for each in crystals])
        for name, chosen in (('centrosymmetric', centres), ('not', ~centres)):
            right = int(np.sum(agreements[chosen] > SOLVED))
            rows.append([d_min, name, f'{right} of {chosen.sum()}', f'{np.median(agreements[chosen]):.2f}'])
    return markdown_table(('d, Å', '', 'solved', 'median agreement'), rows)


def _best_agreement(crystal, shape):
    """The best agreement of four starts with the true phases."""
    indices = np.stack(np.meshgrid(*training_crystals.half_grid_frequencies(shape), indexing='ij'), axis=-1)
    measured = crystal.amplitudes > 0
    hkl = indices[measured].astype(np.int32)
    first = first_of_friedel_pair(hkl)
    values = crystal.amplitudes[measured][first]
    search = prepare_search(hkl[first], values, values, Grid(shape, (0, 1, 2)))
    found = np.asarray(_phases(jax.random.split(jax.random.key(0), STARTS), search, shape))
    weights = crystal.amplitudes**2
    total = np.fft.irfftn(weights.astype(complex), shape, axes=(0, 1, 2))[0, 0, 0]
    best = 0.0
    for factors in found:
        for truth in (crystal.factors, crystal.factors.conj()):
            turned = weights * np.exp(1j * (np.angle(factors) - np.angle(truth)))
            best = max(best, float(np.fft.irfftn(turned, shape, axes=(0, 1, 2)).max() / total))
    return best


@functools.partial(jax.jit, static_argnums=2)
def _phases(keys, search, shape):
    kinds = jnp.zeros(STARTS, jnp.int32)
    starts = jax.vmap(lambda key: random_density(key, search, kinds[0], shape))(keys)
    densities, _ = flip(starts, kinds, jnp.full(STARTS, 1.1), search, 600)
    return jax.vmap(lambda density: eliminate(jnp.fft.rfftn(density), search, shape, 40)[0])(densities)


def _rows(tree):
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, each) for each in zip(*leaves, strict=True)]


def compare(columns: dict[str, list[Summary]]) -> str:
    """A table of means and standard deviations."""
    names = next(iter(columns.values()))[0].values
    rows = []
    for name in names:
        row = [name]
        for summaries in columns.values():
            values = [each.values[name] for each in summaries if name in each.values]
            row.append(f'{np.mean(values):.2f} ± {np.std(values):.2f}')
        rows.append(row)
    return markdown_table(('', *columns), rows)


def main(arguments: list[str] | None = None) -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='*', type=Path)
    parser.add_argument('--cases', type=int, default=256, help='training crystals to draw')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--metals', action='store_true', help='compare crystals with metals')
    parser.add_argument('--solve', action='store_true', help='solve training crystals instead')
    chosen = parser.parse_args(arguments)
    if chosen.solve:
        print(solve(chosen.cases, chosen.seed))
        return
    require(bool(chosen.folders), 'folders', chosen.folders, 'at least one, or --solve')
    summaries = {folder.name: summary for folder in chosen.folders if (summary := real(folder, chosen.metals))}
    drawn, groups, seconds = training(chosen.cases, chosen.seed, chosen.metals)
    print(f'Real: {", ".join(summaries)}.', f'Training: {len(drawn)}; {seconds * 1e3:.1f} ms each.', sep='\n')
    shares = {name: groups.count(name) / len(groups) for name in GROUPS}
    print('Groups: ' + ', '.join(f'{name} {share:.2f}' for name, share in shares.items()))
    for title, centre in (('centrosymmetric', True), ('not centrosymmetric', False)):
        both = {
            'real': [each for each in summaries.values() if each.centrosymmetric == centre],
            'training': [each for each in drawn if each.centrosymmetric == centre],
        }
        print(f'\n{title}: {len(both["real"])} real, {len(both["training"])} for training\n')
        print(compare(both))


if __name__ == '__main__':
    with exit_on_errors():
        sys.exit(main())
