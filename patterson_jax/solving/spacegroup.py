"""Finds the space group of a crystal from phases that were found without symmetry.

An operation x' = R x + t of the structure means F(h) = F(hR) exp(2πi h·t). So for each rotation that the intensities
allow, the transform of F(h) F*(hR) is a map over translations with its peak at t. The height of the peak, the
*agreement*, is 1 for perfect phases. In practice it is 0.56 to 0.97 for true operations and up to 0.6 for false ones,
so that no threshold separates them in every crystal. The operations above the widest gap in agreement are kept, if
their rotations form a group (compare Palatinus and van der Lee, J. Appl. Cryst. 41, 975, 2008). moyopy gives the number
of the group, its standard axes and its origin. The answer is in the given cell.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import gemmi
import moyopy
import numpy as np

from patterson_jax.crystal.expansion import GEMMI_DENOMINATOR, Expanded
from patterson_jax.crystal.grid import fast_size, local_maxima, real_transform
from patterson_jax.crystal.structure import SpaceGroup

CHANCE = 0.3  # agreement that false operations reach easily
TYPICAL = 0.8  # agreement of true operations; the identity counts as one of these
CLEAR_GAP = 0.2  # between the operations kept and the others, where the group may be certain
CLEARLY_RIGHT, CLEARLY_WRONG = 0.75, 0.5  # least agreement of true operations, highest of false ones
CHANCE_AT_MOST = 0.35  # highest agreement of operations in a crystal without symmetry
MOST_HALVES = 2  # subgroups that are tried in place of a group that is not certain
LEAST_GAP = 0.1  # below a set of operations that is considered
BARELY_OBEYED = 0.25  # least agreement of operations of the larger groups that are considered
MOST_LARGER = 2  # larger groups that are tried
TOLERANCES = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15)  # of translations, tried in turn
ALMOST = 0.85  # least agreement of other translations that may be right, relative to the best
MOST_PEAKS = 4
MOST_COMBINATIONS = 64
ORIGIN_STEPS = 24  # along an edge; the origins of all tabulated settings are among these
NEWTON_STEPS = 10
LONGEST_STEP = 0.02  # of an edge
CONVERGED = 1e-5
FLAT = 1e-6  # part of the largest curvature below which a direction has none


class Operation(NamedTuple):
    """x' = `rotation` x + t in fractions of the edges.

    Attributes:
        rotation: `(3, 3)` int.
        translations: `(k, 3)`, the best first; there are several if the structure almost repeats itself.
        agreements: `(k,)`, with each translation, at most 1.
    """

    rotation: np.ndarray
    translations: np.ndarray
    agreements: np.ndarray

    @property
    def agreement(self) -> float:
        """The agreement with the best translation."""
        return float(self.agreements[0])


@dataclasses.dataclass(frozen=True)
class Frame:
    """A space group in the given cell, and its origin in phases that were found without it.

    Attributes:
        group: in its setting, or under the standard symbol if the setting has none; whether it is certain is not known.
        origin: `(3,)`, where the origin of the group lies in the map of the phases, in fractions of the given edges.
        agreements: `(n,)`, of the phases with each operation of the group at that origin.
    """

    group: SpaceGroup
    origin: np.ndarray
    agreements: np.ndarray


class FoundGroup(NamedTuple):
    """The space group that was found, and the operations that were tried.

    Attributes:
        frame: of the best set of operations.
        space_group: the same group, as it is reported.
        number_kept: number of the operations tried that belong to the group.
        kept: lowest agreement of an operation of the group.
        rejected: highest agreement of another operation; None if there is no other.
        operations: all operations that were tried, one for each rotation, those of the group first.
        alternatives: frames of other groups that may be right, if the space group is not certain.
    """

    frame: Frame
    space_group: SpaceGroup
    number_kept: int
    kept: float
    rejected: float | None
    operations: tuple[Operation, ...]
    alternatives: tuple[Frame, ...]


class PhasedReflections:
    """Structure factors that are looked up by their indices.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        factors: `(n,)` complex.
    """

    def __init__(self, hkl: np.ndarray, factors: np.ndarray):
        self.hkl, self.factors = np.asarray(hkl), np.asarray(factors)
        self.reach = np.abs(self.hkl).max(axis=0)
        self.box = np.zeros(2 * self.reach + 1, complex)
        self.box[tuple(self.hkl.T)] = self.factors
        self.box[tuple(-self.hkl.T)] = np.conj(self.factors)
        self.total = float(np.sum(np.abs(self.factors) ** 2))

    def at(self, hkl: np.ndarray) -> np.ndarray:
        """Structure factors `(n,)` of indices `(n, 3)`; 0 where there are none."""
        inside = np.all(np.abs(hkl) <= self.reach, axis=1)
        return np.where(inside, self.box[tuple(np.where(inside[:, None], hkl, 0).T)], 0)


def find_operations(phased: PhasedReflections, rotations: np.ndarray) -> list[Operation]:
    """Finds for each rotation the translations with which the phases agree best.

    Args:
        phased: E values with phases.
        rotations: `(m, 3, 3)` int, those that the intensities allow; the identity is among them.

    Returns:
        The identity, then the other operations, best agreement first.
    """
    hkl, factors = phased.hkl, phased.factors
    shape = fine_shape(phased.hkl)
    operations = []
    for rotation in rotations:
        if np.array_equal(rotation, np.eye(3)):
            continue
        products = factors * np.conj(phased.at(hkl @ rotation))
        values = real_transform(hkl, products, shape)
        peaks = local_maxima(values, ALMOST * values.max())[:MOST_PEAKS] / shape
        translations = np.array([_climb(hkl, products, peak) for peak in peaks])
        agreements = (np.exp(-2j * np.pi * (translations @ hkl.T)) @ products).real / phased.total
        order = np.argsort(-agreements)
        operations.append(Operation(rotation, translations[order], agreements[order]))
    identity = Operation(np.eye(3, dtype=int), np.zeros((1, 3)), np.ones(1))
    return [identity, *sorted(operations, key=lambda operation: -operation.agreement)]


def fine_shape(hkl: np.ndarray) -> tuple[int, int, int]:
    """The shape of a grid for maps with frequencies `(n, 3)`: fine enough to find peaks, and even along each edge."""
    first, second, third = (2 * fast_size(int(2 * reach) + 1) for reach in np.abs(hkl).max(axis=0))
    return first, second, third


def closed_sets(operations: list[Operation]) -> list[tuple[int, float]]:
    """Sets of the first operations whose rotations form a group: their number and the gap below, widest gap first."""
    levels = [TYPICAL, *(operation.agreement for operation in operations[1:]), CHANCE]
    products = _products([operation.rotation for operation in operations])
    closed = [number for number in range(1, len(levels)) if np.all(products[:number, :number] < number)]
    gaps = [levels[number - 1] - max(levels[number], CHANCE) for number in closed]
    return sorted(zip(closed, gaps, strict=True), key=lambda each: -each[1])


def derivation(products: np.ndarray) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """How the operations of a group follow from few of them.

    Args:
        products: `(n, n)`, the index of the product of each two; that of the identity is 0.

    Returns:
        Generators, the first ones that suffice; and for each operation but the identity the generator and the earlier
        operation of which it is the product.
    """
    generators: list[int] = []
    steps: dict[int, tuple[int, int]] = {}
    for operation in range(1, len(products)):
        if operation in steps:
            continue
        generators.append(operation)
        steps, order = {}, [0]
        for known in order:  # the list grows in the loop
            for generator in generators:
                product = int(products[generator, known])
                if product and product not in steps:
                    steps[product] = generator, known
                    order.append(product)
    return generators, steps


def find_space_group(expanded: Expanded, factors: np.ndarray, rotations: np.ndarray) -> FoundGroup:
    """Finds the space group of phased reflections.

    Args:
        expanded: the reflections in P1, in the primitive cell.
        factors: `(n,)` complex, their E values with phases.
        rotations: `(m, 3, 3)` int, of the Laue class, in the given cell.
    """
    phased = PhasedReflections(expanded.hkl, factors)
    primitive = np.linalg.inv(expanded.basis) @ rotations @ expanded.basis
    operations = find_operations(phased, np.unique(np.rint(primitive).astype(int), axis=0))
    placed: list[tuple[int, float, Frame]] = []
    for number, gap in closed_sets(operations):
        if placed and gap < max(placed[0][1] / 2, LEAST_GAP):
            break
        frame = place_group(phased, operations[:number], expanded)
        if frame is not None:
            placed.append((number, gap, frame))
    number, gap, _ = placed[0]
    frames = [frame for _, _, frame in placed]
    found = _found(operations, number, frames, certain=True)
    wrong = CLEARLY_WRONG if number > 1 else CHANCE_AT_MOST
    if gap >= CLEAR_GAP and found.kept >= CLEARLY_RIGHT and (found.rejected or 0) <= wrong and len(frames) == 1:
        return found
    frames += half_frames(phased, operations[:number], expanded)
    return _found(operations, number, frames, certain=False)


def larger_groups(found: FoundGroup, expanded: Expanded, factors: np.ndarray) -> list[FoundGroup]:
    """Groups with more operations than the one that was found, which the phases obey weakly, likeliest first.

    In a poor map of a centrosymmetric crystal the agreement of the inversion may be 0.4 only, and that of false
    operations 0.25. The widest gap is then above the inversion, so that `find_space_group` misses it. None of these
    groups is certain. `found` is the result of `find_space_group`; the other arguments are as there.
    """
    phased = PhasedReflections(expanded.hkl, factors)
    larger = []
    for number, _ in closed_sets(list(found.operations)):
        if number > found.number_kept and found.operations[number - 1].agreement > BARELY_OBEYED:
            frame = place_group(phased, list(found.operations[:number]), expanded)
            if frame is not None:
                larger.append(_found(list(found.operations), number, [frame, found.frame], certain=False))
    return larger[:MOST_LARGER]


def _found(operations, number, frames, certain):
    """A `FoundGroup` whose group is the first of the frames."""
    best = frames[0]
    kept = min(operations[number - 1].agreement, float(best.agreements.min()))
    rejected = operations[number].agreement if number < len(operations) else None
    alternatives = {frame.group.hm: frame for frame in frames[1:] if frame.group.hm != best.group.hm}
    hand = enantiomorph(best.group.number)
    symbols = [*alternatives] + ([] if hand is None else [gemmi.find_spacegroup_by_number(hand).xhm()])
    group = dataclasses.replace(best.group, certain=certain, candidates=tuple(symbols))
    return FoundGroup(best, group, number, kept, rejected, tuple(operations), tuple(alternatives.values()))


def half_frames(phased: PhasedReflections, operations: list[Operation], expanded: Expanded) -> list[Frame]:
    """The space groups, up to `MOST_HALVES`, of subgroups with half of the operations, best agreement first.

    If a structure only comes near to the symmetry of the whole group, its true group is likely to be among them.
    """
    frames = [place_group(phased, part, expanded) for part in halves(operations)[:MOST_HALVES]]
    return [frame for frame in frames if frame is not None]


def halves(operations: list[Operation]) -> list[list[Operation]]:
    """The subgroups with half of a group's operations, best agreement first.

    Each is the kernel of a homomorphism of the group onto {1, −1}.
    """
    products = _products([operation.rotation for operation in operations])
    generators, steps = derivation(products)
    found = []
    for signs in itertools.product((1, -1), repeat=len(generators)):
        values = np.ones(len(operations), int)
        for operation, (generator, known) in steps.items():
            values[operation] = signs[generators.index(generator)] * values[known]
        if -1 in signs and np.array_equal(values[products], np.outer(values, values)):
            found.append([operation for operation, value in zip(operations, values, strict=True) if value == 1])
    return sorted(found, key=lambda part: -np.mean([operation.agreement for operation in part]))


def place_group(phased: PhasedReflections, operations: list[Operation], expanded: Expanded) -> Frame | None:
    """Finds the space group of operations in the primitive cell, and the origin at which the phases agree best.

    If generators have several translations, all combinations up to `MOST_COMBINATIONS` are tried, and the group with
    the best mean agreement is taken. None if no space group has such operations.
    """
    rotations = np.array([operation.rotation for operation in operations])
    generators, steps = derivation(_products(rotations))
    combinations = itertools.product(*(operations[generator].translations for generator in generators))
    frames = []
    for chosen in itertools.islice(combinations, MOST_COMBINATIONS):
        translations = np.zeros((len(operations), 3))
        for operation, (generator, known) in steps.items():
            turned = rotations[generator] @ translations[known]
            translations[operation] = (turned + chosen[generators.index(generator)]) % 1
        frames.append(_place(phased, rotations, translations, expanded))
    return max(filter(None, frames), key=lambda frame: frame.agreements.mean(), default=None)


def _place(phased, rotations, translations, expanded):
    basis = expanded.basis
    for tolerance in TOLERANCES:
        try:
            found = moyopy.SpaceGroup(
                rotations.tolist(),
                translations.tolist(),
                basis=expanded.cell.orthogonalization.T.tolist(),
                setting=moyopy.Setting.standard(),
                epsilon=tolerance,
            )
            break
        except (ValueError, RuntimeError):
            continue
    else:
        return None
    standard = moyopy.operations_from_number(found.number, setting=moyopy.Setting.standard(), primitive=True)
    to_given = basis @ np.array(found.linear)
    matrices = np.rint(to_given @ np.array(standard.rotations) @ np.linalg.inv(to_given)).astype(int)
    shifts = np.array(standard.translations) @ to_given.T
    group, moved = _tabulated(_in_given_cell(found.number, matrices, shifts, basis))
    given = PhasedReflections(expanded.in_given_cell(phased.hkl), phased.factors)
    origin = _best_origin(given, group, basis @ np.array(found.origin_shift) + moved)
    centred = PhasedReflections(given.hkl, given.factors * np.exp(-2j * np.pi * (given.hkl @ origin)))
    return Frame(group, origin, _agreements(centred, _images(centred, group)))


def averaged(hkl: np.ndarray, factors: np.ndarray, group: SpaceGroup) -> tuple[np.ndarray, np.ndarray]:
    """Averages the density over the operations of a group.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair, in the given cell; all equivalents are among them.
        factors: `(n,)` complex, structure factors with the origin of the group.
        group: the space group.

    Returns:
        The structure factors `(n,)` of the mean, and how well those before agree with each operation,
        `(operations,)`, at most 1.
    """
    phased = PhasedReflections(hkl, factors)
    images = _images(phased, group)
    return np.mean(images, axis=0), _agreements(phased, images)


def enantiomorph(number: int) -> int | None:
    """The number of the group's mirror image if that is another group, as for 22 of the 230; otherwise None."""
    pairs = {76: 78, 91: 95, 92: 96, 144: 145, 151: 153, 152: 154, 169: 170, 171: 172, 178: 179, 180: 181, 212: 213}
    return pairs.get(number) or {second: first for first, second in pairs.items()}.get(number)


def _products(rotations):
    """The index of the product of each two rotations, `(n, n)`; n if the product is not among them."""
    numbers = {_as_key(rotation): index for index, rotation in enumerate(rotations)}
    products = np.einsum('aij,bjk->abik', rotations, rotations).reshape(len(rotations) ** 2, 9)
    found = [numbers.get(tuple(product), len(rotations)) for product in products.tolist()]
    return np.reshape(found, (len(rotations), len(rotations)))


def _as_key(rotation):
    return tuple(np.asarray(rotation).ravel().tolist())


def _climb(vectors, products, place):
    """Climbs from `place` to the nearest maximum of Σ products exp(−2πi vectors·place), by Newton's method.

    It does not move along directions without curvature, such as a polar axis.
    """
    vectors = vectors.astype(float)  # with integers the products below are many times slower
    for _ in range(NEWTON_STEPS):
        angles = 2 * np.pi * (vectors @ place)
        cosines, sines = np.cos(angles), np.sin(angles)
        real = products.real * cosines + products.imag * sines
        gradient = (products.imag * cosines - products.real * sines) @ vectors
        curvature = (vectors * real[:, None]).T @ vectors
        values, directions = np.linalg.eigh(curvature)
        clear = values > FLAT * values.max()
        along = directions[:, clear]
        step = along @ ((along.T @ gradient) / values[clear]) / (2 * np.pi)
        place = place + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max(initial=0) < CONVERGED:
            break
    return place % 1


def _in_given_cell(number, rotations, translations, basis):
    """A group under its standard symbol, from one operation for each rotation, both in fractions of the given edges.

    The centring of the given cell is added. Translations are multiples of 1/24.
    """
    steps = np.array([*itertools.product(range(-3, 4), repeat=3)])
    lattice = np.unique(np.rint(steps @ basis.T * GEMMI_DENOMINATOR).astype(int) % GEMMI_DENOMINATOR, axis=0)
    operation, symops = gemmi.Op(), []
    for rotation, translation in zip(rotations, translations, strict=True):
        operation.rot = (rotation * GEMMI_DENOMINATOR).tolist()
        for point in lattice:
            operation.tran = (np.rint(translation * GEMMI_DENOMINATOR).astype(int) + point).tolist()
            symops.append(operation.wrap().triplet())
    return SpaceGroup(number, gemmi.find_spacegroup_by_number(number).xhm(), tuple(symops), certain=False)


@functools.lru_cache(maxsize=256)
def _tabulated(group):
    """The same group in the setting of gemmi's table with these rotations and this centring, and where its origin lies.

    Of two origin choices the second is taken, and of several origins the nearest. If the table has no such setting,
    the group stays as it is. Results are kept, because starts find the same groups again and again, and a search in the
    table takes 40 ms for a cubic group.
    """
    ours = _by_rotation(group)
    identity = _as_key(np.eye(3, dtype=int))
    settings = [setting for setting in gemmi.spacegroup_table() if setting.number == group.number]
    if any(setting.ext == '2' for setting in settings):
        settings = [setting for setting in settings if setting.ext != '1']
    origins = np.array([*itertools.product(range(ORIGIN_STEPS), repeat=3)])
    origins = np.where(origins > ORIGIN_STEPS // 2, origins - ORIGIN_STEPS, origins)
    origins = origins[np.argsort(np.abs(origins).sum(axis=1), kind='stable')]
    for setting in settings:
        symops = tuple(operation.triplet() for operation in setting.operations())
        tabulated = dataclasses.replace(group, hm=setting.xhm(), symops=symops)
        theirs = _by_rotation(tabulated)
        if theirs.keys() != ours.keys() or {*map(tuple, theirs[identity])} != {*map(tuple, ours[identity])}:
            continue
        possible = origins
        for key, ours_shifts in ours.items():
            rotation = np.array(key).reshape(3, 3)
            moved = ours_shifts[0] + possible @ (rotation - np.eye(3, dtype=int)).T
            allowed = {tuple(shift) for shift in theirs[key].tolist()}
            possible = possible[[tuple(shift) in allowed for shift in (moved % GEMMI_DENOMINATOR).tolist()]]
        if len(possible):
            return tabulated, possible[0] / ORIGIN_STEPS
    return group, np.zeros(3)


def _by_rotation(group):
    """Translations in units of 1/24, `(k, 3)` int, of each rotation."""
    table: dict[tuple, list] = {}
    for rotation, shift in zip(*group.operations, strict=True):
        table.setdefault(_as_key(rotation), []).append(np.rint(shift * GEMMI_DENOMINATOR).astype(int))
    return {key: np.array(values) for key, values in table.items()}


def _best_origin(phased, group, origin):
    """Moves an origin to where the phases agree best with all operations of the group."""
    vectors = np.concatenate([phased.hkl - phased.hkl @ rotation for rotation in group.operations[0]])
    products = np.concatenate(phased.factors * np.conj(_images(phased, group)))
    moving = np.any(vectors != 0, axis=1)
    return _climb(vectors[moving], products[moving], origin) if moving.any() else origin % 1


def _agreements(phased, images):
    return np.sum((phased.factors * np.conj(images)).real, axis=1) / phased.total


def _images(phased, group):
    """What each operation makes of the structure factors, `(operations, n)`; those of true operations are the same."""
    hkl = phased.hkl
    return np.array(
        [
            phased.at(hkl @ rotation) * np.exp(2j * np.pi * (hkl @ translation))
            for rotation, translation in zip(*group.operations, strict=True)
        ]
    )
