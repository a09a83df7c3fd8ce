"""Finds the space group of a crystal from phases that were found without symmetry.

An operation x' = R x + t of the structure means F(h) = F(hR) exp(2πi h·t). So for each rotation that the intensities
allow, the transform of F(h) F*(hR) is a map over translations with its peak at t. The height of the peak, the
*agreement*, is 1 for perfect phases. In practice it is 0.56 to 0.97 for true operations and up to 0.6 for false ones,
so that no threshold separates them in every crystal. The operations above the widest gap in agreement are kept, if
their rotations form a group (compare Palatinus and van der Lee, J. Appl. Cryst. 41, 975, 2008). moyopy gives the number
of the group, its standard axes and its origin. The answer is in the given cell.
"""

import contextlib
import dataclasses
import functools
import itertools
from typing import NamedTuple

import gemmi
import moyopy
import numpy as np

from patterson_jax.crystal.expansion import GEMMI_DENOMINATOR, Expanded
from patterson_jax.crystal.grid import Grid, fast_size, local_maxima, real_transform
from patterson_jax.crystal.structure import SpaceGroup

CHANCE = 0.3  # agreement that false operations reach easily
TYPICAL = 0.8  # agreement of true operations; the identity counts as one of these
CLEAR_GAP = 0.2  # between the operations kept and the others, where the group may be certain
CLEARLY_RIGHT, CLEARLY_WRONG = 0.75, 0.5  # least agreement of true operations, highest of false ones
CHANCE_AT_MOST = 0.35  # highest agreement of operations in a crystal without symmetry
MOST_HALVES = 3  # subgroups that are tried in place of a group that is not certain
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
        agreement: of the phases with the best translation, at most 1.
    """

    rotation: np.ndarray
    translations: np.ndarray
    agreement: float


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
        rejected: highest agreement of another operation; 0 if there is no other.
        operations: all operations that were tried, one for each rotation, those of the group first.
        alternatives: frames of other groups that may be right, if the space group is not certain.
    """

    frame: Frame
    space_group: SpaceGroup
    number_kept: int
    kept: float
    rejected: float
    operations: list[Operation]
    alternatives: list[Frame]


def find_operations(hkl: np.ndarray, factors: np.ndarray, rotations: np.ndarray) -> list[Operation]:
    """Finds for each rotation the translations with which the phases agree best.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        factors: `(n,)` complex, their E values with phases.
        rotations: `(m, 3, 3)` int, those that the intensities allow; the identity is among them.

    Returns:
        The identity, then the other operations, best agreement first.
    """
    shape, total = fine_shape(hkl), np.sum(np.abs(factors) ** 2)
    operations = []
    for rotation, turned in zip(rotations, turned_factors(hkl, factors, rotations), strict=True):
        if np.array_equal(rotation, np.eye(3)):
            continue
        products = factors * np.conj(turned)
        values = real_transform(hkl, products, shape)
        peaks = local_maxima(values, ALMOST * values.max())[:MOST_PEAKS] / shape
        translations = np.array([_climb(hkl, products, peak) for peak in peaks])
        agreements = (np.exp(-2j * np.pi * (translations @ hkl.T)) @ products).real / total
        order = np.argsort(-agreements)
        operations.append(Operation(rotation, translations[order], float(agreements[order[0]])))
    identity = Operation(np.eye(3, dtype=int), np.zeros((1, 3)), 1.0)
    return [identity, *sorted(operations, key=lambda operation: -operation.agreement)]


def turned_factors(hkl: np.ndarray, factors: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Structure factors F(hR), `(m, n)`, for each rotation R; 0 where there is none.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        factors: `(n,)` complex, F(h).
        rotations: `(m, 3, 3)` int.
    """
    images = [hkl @ rotation for rotation in rotations]
    first, second, third = 2 * np.abs([hkl, *images]).max(axis=(0, 1)) + 2
    grid = Grid((first, second, third), (0, 1, 2))
    placed = grid.place(hkl, factors)
    return np.array([grid.take(placed, each) for each in images])


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
        Generators, the first ones that suffice; and for each operation but the identity which of the generators, by its
        place among them, and which earlier operation it is the product of.
    """
    generators: list[int] = []
    steps: dict[int, tuple[int, int]] = {}
    for operation in range(1, len(products)):
        if operation in steps:
            continue
        generators.append(operation)
        steps, order = {}, [0]
        for known in order:  # the list grows in the loop
            for place, generator in enumerate(generators):
                product = int(products[generator, known])
                if product and product not in steps:
                    steps[product] = place, known
                    order.append(product)
    return generators, steps


def find_space_group(expanded: Expanded, factors: np.ndarray, rotations: np.ndarray) -> FoundGroup:
    """Finds the space group of phased reflections.

    Args:
        expanded: the reflections in P1, in the primitive cell.
        factors: `(n,)` complex, their E values with phases.
        rotations: `(m, 3, 3)` int, of the Laue class, in the given cell.
    """
    primitive = np.linalg.inv(expanded.basis) @ rotations @ expanded.basis
    operations = find_operations(expanded.hkl, factors, np.unique(np.rint(primitive).astype(int), axis=0))
    placed: list[tuple[int, float, Frame]] = []
    for number, gap in closed_sets(operations):
        if placed and gap < max(placed[0][1] / 2, LEAST_GAP):
            break
        frame = place_group(expanded, factors, operations[:number])
        if frame is not None:
            placed.append((number, gap, frame))
    number, gap, _ = placed[0]
    frames = [frame for _, _, frame in placed]
    found = _found(operations, number, frames, certain=True)
    wrong = CLEARLY_WRONG if number > 1 else CHANCE_AT_MOST
    if gap >= CLEAR_GAP and found.kept >= CLEARLY_RIGHT and found.rejected <= wrong and len(frames) == 1:
        return found
    frames += half_frames(expanded, factors, operations[:number])
    return _found(operations, number, frames, certain=False)


def larger_groups(
    found: FoundGroup, expanded: Expanded, factors: np.ndarray, barely: float = BARELY_OBEYED
) -> list[FoundGroup]:
    """Groups with more operations than the one that was found, which the phases obey weakly, likeliest first.

    In a poor map of a centrosymmetric crystal the agreement of the inversion may be 0.4 only, and that of false
    operations 0.25. The widest gap is then above the inversion, so that `find_space_group` misses it. None of these
    groups is certain. `found` is the result of `find_space_group`, `barely` the agreement that is too low for any
    operation of a larger group; the other arguments are as there.
    """
    operations, larger = found.operations, []
    for number, _ in closed_sets(operations):
        if number > found.number_kept and operations[number - 1].agreement > barely:
            frame = place_group(expanded, factors, operations[:number])
            if frame is not None:
                larger.append(_found(operations, number, [frame, found.frame], certain=False))
    return larger[:MOST_LARGER]


def _found(operations, number, frames, certain):
    """A `FoundGroup` whose group is the first of the frames."""
    best = frames[0]
    kept = min(operations[number - 1].agreement, float(best.agreements.min()))
    rejected = operations[number].agreement if number < len(operations) else 0.0
    alternatives = {frame.group.hm: frame for frame in frames[1:] if frame.group.hm != best.group.hm}
    hand = enantiomorph(best.group.number)
    symbols = [*alternatives] + ([] if hand is None else [gemmi.find_spacegroup_by_number(hand).xhm()])
    group = dataclasses.replace(best.group, certain=certain, candidates=tuple(symbols))
    return FoundGroup(best, group, number, kept, rejected, operations, [*alternatives.values()])


def half_frames(expanded: Expanded, factors: np.ndarray, operations: list[Operation]) -> list[Frame]:
    """The space groups, up to `MOST_HALVES`, of subgroups with half of the operations, best agreement first.

    If a structure only comes near to the symmetry of the whole group, its true group is likely to be among them.
    """
    frames = [place_group(expanded, factors, part) for part in halves(operations)[:MOST_HALVES]]
    return [frame for frame in frames if frame is not None]


def halves(operations: list[Operation]) -> list[list[Operation]]:
    """The subgroups with half of a group's operations, best agreement first."""
    found = [[operations[each] for each in half] for half in _halves([each.rotation for each in operations])]
    return sorted(found, key=lambda part: -np.mean([operation.agreement for operation in part]))


def subgroups_without_centre(group: SpaceGroup) -> list[SpaceGroup]:
    """The subgroups with half of the rotations of a group with a centre, and no centre; at its origin, not named."""
    rotations, inverse = np.unique(group.operations[0], axis=0, return_inverse=True)
    order = np.argsort(~(rotations == np.eye(3)).all(axis=(1, 2)), kind='stable')  # the identity first
    found = []
    for half in _halves(rotations[order]):
        kept = np.isin(inverse.ravel(), order[half])
        symops = tuple(itertools.compress(group.symops, kept))
        found.append(SpaceGroup(0, f'a subgroup of {group.hm}', symops, certain=False))
    return [each for each in found if not each.has_centre]


def _halves(rotations):
    """The indices of the subgroups with half of a group's rotations, of which the first is the identity.

    Each is the kernel of a homomorphism of the group onto {1, −1}.
    """
    products = _products(rotations)
    generators, steps = derivation(products)
    found = []
    for signs in itertools.product((1, -1), repeat=len(generators)):
        values = np.ones(len(rotations), int)
        for operation, (place, known) in steps.items():
            values[operation] = signs[place] * values[known]
        if -1 in signs and np.array_equal(values[products], np.outer(values, values)):
            found.append(np.flatnonzero(values == 1))
    return found


def place_group(expanded: Expanded, factors: np.ndarray, operations: list[Operation]) -> Frame | None:
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
        for operation, (place, known) in steps.items():
            translations[operation] = (rotations[generators[place]] @ translations[known] + chosen[place]) % 1
        frames.append(_place(expanded, factors, rotations, translations))
    return max(filter(None, frames), key=lambda frame: frame.agreements.mean(), default=None)


def _place(expanded, factors, rotations, translations):
    found = _standard(expanded.cell, rotations, translations)
    if found is None:
        return None
    group, moved = _tabulated(_in_given_cell(found, expanded.basis))
    origin = _best_origin(expanded, factors, group, expanded.basis @ np.array(found.origin_shift) + moved)
    _, _, agreements = averaged(expanded, factors, group, origin)
    return Frame(group, origin, agreements)


def averaged(
    expanded: Expanded, factors: np.ndarray, group: SpaceGroup, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages the density over the operations of a group.

    Args:
        expanded: the reflections in P1.
        factors: `(n,)` complex, their structure factors.
        group: the space group, in the given cell.
        origin: `(3,)`, where its origin lies in the density, in fractions of the given edges.

    Returns:
        The structure factors `(n,)` of the mean, with the origin of the group; the factors `(n,)` that moved the
        density there; and how well the phases agree with each operation, `(operations,)`, at most 1.
    """
    hkl = expanded.in_given_cell(expanded.hkl)
    shift = np.exp(-2j * np.pi * (hkl @ origin))
    moved = factors * shift
    images = _images(hkl, moved, group)
    agreements = np.sum((moved * np.conj(images)).real, axis=1) / np.sum(np.abs(moved) ** 2)
    return np.mean(images, axis=0), shift, agreements


def enantiomorph(number: int) -> int | None:
    """The number of the group's mirror image if that is another group, as for 22 of the 230; otherwise None."""
    pairs = {76: 78, 91: 95, 92: 96, 144: 145, 151: 153, 152: 154, 169: 170, 171: 172, 178: 179, 180: 181, 212: 213}
    return pairs.get(number) or {second: first for first, second in pairs.items()}.get(number)


def _products(rotations):
    """The index of the product of each two rotations, `(n, n)`; n if the product is not among them."""
    products = np.einsum('aij,bjk->abik', rotations, rotations)
    same = np.all(products[:, :, None] == np.asarray(rotations), axis=(3, 4))
    return np.where(same.any(axis=2), same.argmax(axis=2), len(rotations))


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


def _standard(cell, rotations, translations):
    """What moyopy says of operations in a primitive cell; None if no space group has them."""
    for tolerance in TOLERANCES:
        with contextlib.suppress(ValueError, RuntimeError):
            return moyopy.SpaceGroup(
                rotations.tolist(),
                translations.tolist(),
                basis=cell.orthogonalization.T.tolist(),
                setting=moyopy.Setting.standard(),
                epsilon=tolerance,
            )
    return None


def _in_given_cell(found, basis):
    """A group that moyopy found, under its standard symbol, with its operations in fractions of the given edges.

    The centring of the given cell is added. Translations are multiples of 1/24.
    """
    standard = moyopy.operations_from_number(found.number, setting=moyopy.Setting.standard(), primitive=True)
    to_given = basis @ np.array(found.linear)
    rotations = np.rint(to_given @ np.array(standard.rotations) @ np.linalg.inv(to_given)).astype(int)
    translations = np.rint(np.array(standard.translations) @ to_given.T * GEMMI_DENOMINATOR).astype(int)
    steps = np.array([*itertools.product(range(-3, 4), repeat=3)])
    lattice = np.unique(np.rint(steps @ basis.T * GEMMI_DENOMINATOR).astype(int) % GEMMI_DENOMINATOR, axis=0)
    operation, symops = gemmi.Op(), []
    for rotation, translation in zip(rotations, translations, strict=True):
        operation.rot = (rotation * GEMMI_DENOMINATOR).tolist()
        for point in lattice:
            operation.tran = (translation + point).tolist()
            symops.append(operation.wrap().triplet())
    symbol = gemmi.find_spacegroup_by_number(found.number).xhm()
    return SpaceGroup(found.number, symbol, tuple(symops), certain=False)


@functools.lru_cache(maxsize=256)
def _tabulated(group):
    """The same group in the setting of gemmi's table with these rotations and this centring, and where its origin lies.

    Of two origin choices the second is taken, and of several origins the nearest. If the table has no such setting,
    the group stays as it is. Results are kept, because starts find the same groups again and again, and a search in the
    table takes 40 ms for a cubic group.
    """
    ours = _by_rotation(map(gemmi.Op, group.symops))
    identity = _as_key(gemmi.Op())
    table = gemmi.spacegroup_table()
    settings = [each for each in table if each.number == group.number and each.ext != '1']
    origins = np.array([*itertools.product(range(ORIGIN_STEPS), repeat=3)])
    origins = np.where(origins > ORIGIN_STEPS // 2, origins - ORIGIN_STEPS, origins)
    origins = origins[np.argsort(np.abs(origins).sum(axis=1), kind='stable')]
    for setting in settings:
        theirs = _by_rotation(setting.operations())
        if theirs.keys() != ours.keys() or theirs[identity] != ours[identity]:
            continue
        possible = origins
        for rotation, (shift, *_) in ours.items():
            turn = np.array(rotation) // GEMMI_DENOMINATOR - np.eye(3, dtype=int)
            moved = (shift + possible @ turn.T) % GEMMI_DENOMINATOR
            possible = possible[[tuple(each) in theirs[rotation] for each in moved.tolist()]]
        if len(possible):
            symops = tuple(operation.triplet() for operation in setting.operations())
            return dataclasses.replace(group, hm=setting.xhm(), symops=symops), possible[0] / ORIGIN_STEPS
    return group, np.zeros(3)


def _by_rotation(operations):
    """The translations of each rotation, both in units of 1/24."""
    table: dict[tuple, set] = {}
    for operation in operations:
        table.setdefault(_as_key(operation), set()).add(tuple(operation.tran))
    return table


def _as_key(operation):
    return tuple(map(tuple, operation.rot))


def _best_origin(expanded, factors, group, origin):
    """Moves an origin to where the phases agree best with all operations of the group."""
    hkl = expanded.in_given_cell(expanded.hkl)
    vectors = np.concatenate([hkl - hkl @ rotation for rotation in group.operations[0]])
    products = np.concatenate(factors * np.conj(_images(hkl, factors, group)))
    moving = np.any(vectors != 0, axis=1)
    return _climb(vectors[moving], products[moving], origin)


def _images(hkl, factors, group):
    """What each operation makes of the structure factors, `(operations, n)`; those of true operations are the same."""
    rotations, translations = group.operations
    waves = [np.exp(2j * np.pi * (hkl @ translation)) for translation in translations]
    return turned_factors(hkl, factors, rotations) * waves
