"""Examines a refined model of a crystal: the grounds of its verdict."""

import dataclasses
import itertools

import numpy as np

from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.solving import crystal_maps as maps
from patterson_jax.solving.absences import absent_intensity
from patterson_jax.solving.crystal_elements import follow_formula, missing_share
from patterson_jax.solving.crystal_model import ALIKE, MOST_PEAKS, Fitted, Refined, r1
from patterson_jax.solving.crystal_molecule import bonds
from patterson_jax.solving.crystal_verdict import Findings, Residues, poor_data

LAST_LIGHT = 10  # the atomic number of neon
MOSTLY = 0.6  # part of light atoms above which a crystal with carbon is organic
SHORT = 1.6  # Å; of contacts up to this the shortest is told
LEAST_PEAK = 0.05  # of the difference map, as part of the height of the lightest atoms
NEAR_ATOM = 1.0  # Å; a difference peak or hole so near belongs to the atom
HYDROGEN = (0.7, 1.25)  # Å from a light atom
MOST_BONDS = {'C': 4, 'N': 4, 'O': 3}  # to C, N and O
LONGEST_LIGHT = 1.75  # Å, of a bond between those
TELLING_PARITY, LEAST_OF_PARITY = 2.0, 20  # ratio of R1 of a class to that of the others; reflections of each
SHELL = 150  # reflections in a shell, at least, that are compared with their mean
SAME_TRANSLATION, SAME_PLACE = 0.5, 0.4  # Å
OBEYING = 0.85  # part of the atoms that must obey a further operation
PROBES = 12  # atoms on which an operation is tested first


def examine(found: Refined) -> Findings:
    """Finds the grounds of the verdict on a model. Of poor data, elements do not tell sites apart."""
    crystal, multiplicities = found.crystal, found.multiplicities
    strong = crystal.strong
    observed, deviations = crystal.amplitudes[strong], found.deviations
    noise = np.sqrt(2 / np.pi) * crystal.sigmas[strong] / (2 * observed)  # the mean deviation if the model were right
    near = maps.contacts(found.positions, *crystal.symmetry, reach=SHORT)
    shares, light = multiplicities * found.numbers**2, found.numbers <= LAST_LIGHT
    ratio = found.reflections_per_parameter
    numbers = np.zeros_like(found.numbers) if poor_data(ratio, crystal.d_min) else found.numbers
    parity, parity_r_factor, parity_noise = _worst_parity(crystal.hkl[strong], observed, deviations, noise)
    absent = ~maps.allowed_reflections(crystal.data.hkl, crystal.space_group.symops)
    return Findings(
        **dataclasses.asdict(residues(found)),
        noise_r_factor=r1(noise, observed),
        light_share=float(shares[light].sum() / shares.sum()),
        closest=min((distance for _, _, distance, _ in near), default=np.inf),
        odd_bonds=_odd_bonds(found),
        volume_per_atom=float(crystal.data.cell.volume / multiplicities.sum()),
        organic='C' in found.elements and bool(np.mean(light) > MOSTLY),
        absent_intensity=absent_intensity(crystal.data, absent),
        further_symmetry=further_symmetry(found.positions, numbers, crystal.space_group, crystal.data),
        parity=parity,
        parity_r_factor=parity_r_factor,
        parity_noise=parity_noise,
        weak_intensity=_weak_intensity(found),
        group_certain=crystal.space_group.certain,
        d_min=crystal.d_min,
        follows_formula=follow_formula(found.elements, multiplicities, crystal.data),
        missing_share=missing_share(float(multiplicities.sum()), crystal.data),
    )


def residues(found: Fitted) -> Residues:
    """What a refined model leaves unexplained: R1, the difference map, U that atoms do not have."""
    peak, hole = _extremes(found)
    lowest, highest = float(found.principal_u.min()), float(found.principal_u.max())
    return Residues(found.r_factor, peak, hole, lowest, highest, found.reflections_per_parameter)


def _extremes(found: Fitted) -> list[float]:
    """The highest peak and the deepest hole of the difference map, relative to the height of the lightest atoms.

    Near a heavier atom they are relative to the height of that atom, because residues of its anisotropy are
    proportional to it. Peaks at the distance of a hydrogen from a light atom count half.
    """
    symmetry, difference = found.crystal.symmetry, found.difference
    heights = np.maximum(maps.values_at(found.density, found.positions), 1e-6)
    lightest = float(np.median(heights[found.numbers == found.numbers.min()]))
    extremes = []
    for sign in (1, -1):
        peaks = maps.sharp_peaks(sign * difference, *symmetry, least=LEAST_PEAK * lightest, number=MOST_PEAKS)
        worst = 0.0
        for position, height in zip(peaks.positions, peaks.heights, strict=True):
            distances, _ = maps.nearest_images(position, found.positions, *symmetry)
            nearest = int(np.argmin(distances))
            distance, light = distances[nearest], found.numbers[nearest] <= LAST_LIGHT
            measure = max(lightest, heights[nearest]) if distance < NEAR_ATOM else lightest
            hydrogen = sign > 0 and HYDROGEN[0] < distance < HYDROGEN[1] and light
            worst = max(worst, float(height / measure) / (2 if hydrogen else 1))
        extremes.append(worst)
    return extremes


def _odd_bonds(found):
    """Implausible bonds of carbon, nitrogen and oxygen, in words."""
    elements = found.elements
    bonded = bonds(found.positions, elements, *found.crystal.symmetry)
    odd = set()
    for index, element in enumerate(elements):
        if element not in MOST_BONDS:
            continue
        lengths = [(elements[other], length) for first, other, length, _ in bonded if first == index]
        light = [length for other, length in lengths if other in MOST_BONDS]
        if len(light) > MOST_BONDS[element]:
            odd.add(f'{element} with {len(light)} bonds to C, N or O')
        if element == 'C' and not lengths:
            odd.add('C without a bond')
        if max(light, default=0) > LONGEST_LIGHT:
            odd.add(f'a bond of {max(light):.2f} Å between light atoms')
    return tuple(sorted(odd))


def _worst_parity(hkl, observed, deviations, noise):
    """The class of parity in which R1 is highest compared with the others; its R1, and that which σ alone would cause.

    Atoms that have been drawn to positions of more symmetry than is true leave one class unexplained: where half of a
    translation nearly holds, the reflections that it would extinguish. '' where no class has twice the R1 of the rest.
    """
    worst = TELLING_PARITY, '', 0.0, 0.0
    for signs in itertools.product((0, 1), repeat=3):
        odd = hkl @ np.array(signs) % 2 == 1
        if min(odd.sum(), (~odd).sum()) < LEAST_OF_PARITY:
            continue
        name = ' + '.join(itertools.compress('hkl', signs))
        for which, words in ((odd, 'odd'), (~odd, 'even')):
            r_factor, rest = (r1(deviations[some], observed[some]) for some in (which, ~which))
            expected = r1(noise[which], observed[which])
            worst = max(worst, (r_factor / max(rest, 1e-6), f'{name} is {words}', r_factor, expected))
    return worst[1:]


def _weak_intensity(found):
    """Mean measured intensity of the weakest third of the reflections by the model, relative to their shells' means.

    It is 1 for a model unrelated to the crystal, and up to 0.2 for the right model.
    """
    intensities, total, count = found.crystal.intensities, 0.0, 0
    for shell, weak in _weakest_in_shells(found):
        total += intensities[weak].sum() / max(intensities[shell].mean(), 1e-9)
        count += len(weak)
    return float(total / count)


def weakest(found: Fitted) -> np.ndarray:
    """The indices of the third of the reflections that are weakest in a model, of each shell of 1/d."""
    return np.concatenate([weak for _, weak in _weakest_in_shells(found)])


def _weakest_in_shells(found):
    """The reflections of each shell, and the third of these that are weakest in the model."""
    calculated = np.abs(found.calculated)
    shells = np.array_split(np.arange(len(calculated)), max(len(calculated) // SHELL, 1))
    return [(shell, shell[np.argsort(calculated[shell])[: max(len(shell) // 3, 1)]]) for shell in shells]


def further_symmetry(positions: np.ndarray, numbers: np.ndarray, space_group: SpaceGroup, data: CrystalData) -> bool:
    """Whether the atoms obey an operation that the group lacks.

    Operations with rotations that the intensities may have are tested, and the inversion and translations.

    Args:
        positions: `(n, 3)`, fractional, of the asymmetric unit.
        numbers: `(n,)`, their atomic numbers.
        space_group: of the crystal.
        data: of the crystal; its rotations and cell are used.
    """
    operations = space_group.operations
    images = maps.images_of(positions, operations) % 1.0
    cell_numbers = np.repeat(numbers, images.shape[1])
    sites = images.reshape(-1, 3)
    coinciding = maps.shortest(sites[:, None] - sites[None], data.cell) < 1e-2
    each_once = ~np.tril(coinciding, -1).any(axis=1)
    sites, cell_numbers = sites[each_once], cell_numbers[each_once]
    alike = np.abs(cell_numbers[:, None] - cell_numbers[None]) <= ALIKE
    first = int(np.lexsort((-cell_numbers, alike.sum(axis=1)))[0])
    anchors = sites[alike[first]]
    rotations = data.rotations if data.possible is None else data.possible
    candidates = np.unique(np.array([*rotations, np.eye(3), -np.eye(3)], int), axis=0)
    probes = np.linspace(0, len(sites) - 1, min(len(sites), PROBES)).astype(int)

    def obeyed(rotation, translation, some):
        """Whether nearly all of some atoms are moved onto atoms of similar atomic number."""
        moved = sites[some] @ rotation.T + translation
        matched = maps.shortest(moved[:, None] - sites[None], data.cell) < SAME_PLACE
        return (matched & alike[some]).any(axis=1).mean() > OBEYING

    for rotation in candidates:
        known = operations[1][(operations[0] == rotation).all(axis=(1, 2))]
        for anchor in anchors:
            translation = anchor - rotation @ sites[first]
            if len(known) and maps.shortest(known - translation, data.cell).min() < SAME_TRANSLATION:
                continue
            if all(obeyed(rotation, translation, some) for some in (probes, slice(None))):
                return True
    return False
