"""Grows molecules among their images in the cell of a crystal, by compiled code, to train networks on.

Atoms and rings are bonded one after another to atoms with free valences, with usual lengths and angles. Several trials
are made each time. A trial is valid if all its atoms keep their distances: from atoms of the same molecule by the
number of bonds between them, from all images under the space group as molecules in crystals do. When a molecule has
its size, or no trial is valid, the next molecule is begun where there is room. So no packing has to be searched
for. All shapes are fixed; `growth_limits` has their sizes.

Nothing here is shared with `invented_crystals`, on which verdicts are calibrated.
"""

from typing import NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

ELEMENTS = ('C', 'N', 'O', 'F', 'S', 'Cl', 'Br')
ATOMIC_NUMBERS = np.array([gemmi.Element(each).atomic_number for each in ELEMENTS], np.float32)
CARBON, NITROGEN, OXYGEN, FLUORINE, SULFUR, CHLORINE, BROMINE = range(len(ELEMENTS))
RADII = np.array([0.767, 0.705, 0.665, 0.59, 1.03, 0.98, 1.14], np.float32)  # Å, in single bonds
VALENCES = np.array([3, 2, 1, 0, 1, 0, 0], np.int32)  # bonds that are free beside the one to the parent
FLAT_BOND, CONJUGATED, DOUBLE_BOND = 0.032, 0.05, 1.22  # Å: how much shorter for each flat end; more to N and O; C=O
LENGTH_SPREAD = 0.012  # Å

# How neighbours stand around an atom: in multiples of its unit vectors `inward` (to where it is bonded), `across`
# (perpendicular to it; both lie in the plane of a flat atom), and the normal of both.
CLOSED, TETRAHEDRAL, TRIGONAL, IN_FLAT_RING, IN_CHAIR = range(5)
_THIRD, _HALF = 2 * np.pi / 3, np.sqrt(3) / 2
_SIDE = np.sqrt(8) / 3  # sine of the tetrahedral angle
DIRECTIONS = np.array(
    [
        [[0, 0, 0]] * 3,
        [[-1 / 3, _SIDE * np.cos(turn), _SIDE * np.sin(turn)] for turn in (0, _THIRD, -_THIRD)],
        [[-1 / 2, _HALF, 0], [-1 / 2, -_HALF, 0], [0, 0, 0]],
        [[-1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[-1 / np.sqrt(3), 0, np.sqrt(2 / 3)], [-1 / np.sqrt(3), 0, -np.sqrt(2 / 3)], [0, 0, 0]],
    ],
    np.float32,
)
CHOICES = np.any(DIRECTIONS, axis=2).sum(axis=1)  # directions of each kind

SINGLE, SIX_RING, FIVE_RING, CHAIR = range(4)
RING_SLOTS = 6
SLOTS = np.array([1, 6, 5, 6], np.int32)  # atoms of each fragment
RING_BOND, CHAIR_BOND = 1.395, 1.525  # Å
FRAGMENT_SHARES = (0.70, 0.17, 0.06, 0.07)
FLAT_SHARE = 0.5  # of single C and N
CARBONYL_SHARE = 0.6  # of the oxygen atoms at a trigonal carbon
COPLANAR_SHARE = 0.7  # of flat fragments at flat atoms
RING_NITROGEN_SHARE = 0.12  # of the atoms of flat rings

TRIALS = 12
FAILURES = 10  # in succession, after which the cell is full
TWO_BONDS_APART, MORE_BONDS_APART = 2.2, 2.7  # Å, least distances in a molecule
CONTACT, POLAR_CONTACT = 2.4, 2.4  # Å, least distances of molecules; the second for two of N and O
RIGID = 2.85  # Å: distances in a molecule that are held while molecules are moved apart
REACHES = np.array([1.72, 1.62, 1.56, 1.46, 1.80, 1.76, 1.84], np.float32)  # Å, of elements, half of a usual contact
HYDROGEN_BRIDGE = 0.42  # Å by which N and O come nearer to each other
RELAXATIONS, RELAXED, WHOLE = 30, 0.2, 1.0
BONDED = 2.0  # Å, above all bonds and below all other distances
HYDROGEN_BOND = 0.96  # Å, of X–H, as X-rays see it


class Molecules(NamedTuple):
    """Atoms of the asymmetric unit without hydrogen; only the first `number` of each array are atoms.

    Attributes:
        number: of atoms.
        positions: `(n, 3)`, Cartesian, Å; each molecule in one piece.
        elements: `(n,)` int32, of `ELEMENTS`.
        molecules: `(n,)` int32, which molecule each atom belongs to.
        kinds: `(n,)` int32, how neighbours stand around it: `CLOSED` to `IN_CHAIR`.
        free: `(n,)` int32, valences left, which hydrogen takes.
        inward: `(n, 3)`, unit vectors.
        across: `(n, 3)`, unit vectors.
    """

    number: Array
    positions: Array
    elements: Array
    molecules: Array
    kinds: Array
    free: Array
    inward: Array
    across: Array


class Surroundings(NamedTuple):
    """The crystal in which molecules grow.

    Attributes:
        axes: `(3, 3)`, rows are the edges of the cell, Å.
        inverse: of `axes`.
        rotations: `(operations, 3, 3)`, on fractional coordinates as column vectors; the first is the identity.
        translations: `(operations, 3)`.
        operations: number of them that count.
        wanted: number of atoms for the asymmetric unit.
        heavier: share of elements beyond oxygen among single atoms.
    """

    axes: Array
    inverse: Array
    rotations: Array
    translations: Array
    operations: Array
    wanted: Array
    heavier: Array


class _Progress(NamedTuple):
    atoms: Molecules
    step: Array
    failures: Array
    molecule: Array
    size: Array  # atoms of the molecule that grows
    full_size: Array


def _templates():
    """Local coordinates, inward and across vectors of all fragments, `(4, 6, 3)` each.

    The first atom is the origin; the bond to the parent comes along +x; flat fragments lie in the plane of x and y.
    """
    single = np.zeros((RING_SLOTS, 3)), np.tile([-1.0, 0, 0], (RING_SLOTS, 1)), np.tile([0, 1.0, 0], (RING_SLOTS, 1))
    return tuple(
        np.stack(each).astype(np.float32) for each in zip(single, _flat_ring(6), _flat_ring(5), _chair(), strict=True)
    )


def _flat_ring(size):
    angles = 2 * np.pi * np.arange(RING_SLOTS) / size
    radius = RING_BOND / (2 * np.sin(np.pi / size))
    outward = np.stack([-np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    across = np.stack([np.sin(angles), np.cos(angles), 0 * angles], axis=1)
    return radius * (outward + np.array([1, 0, 0])), -outward, across


def _chair():
    angles = np.pi / 3 * np.arange(RING_SLOTS)
    places = np.sqrt(8) / 3 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    places[:, 2] = (-1.0) ** np.arange(RING_SLOTS) / 6
    first, second = np.roll(places, 1, axis=0) - places, np.roll(places, -1, axis=0) - places
    inward = (first + second) / np.linalg.norm(first + second, axis=1, keepdims=True)
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    equatorial = -inward[0] / np.sqrt(3) - np.sqrt(2 / 3) * normal[0] * np.sign(normal[0] @ places[0] or 1)
    other = -inward[0] / np.sqrt(3) + np.sqrt(2 / 3) * normal[0] * np.sign(normal[0] @ places[0] or 1)
    if other @ places[0] > equatorial @ places[0]:
        equatorial = other
    x = -equatorial
    y = np.cross([0, 0, 1.0], x)
    y /= np.linalg.norm(y)
    frame = np.stack([x, y, np.cross(x, y)], axis=1)
    return CHAIR_BOND * (places - places[0]) @ frame, inward @ frame, np.cross(normal, inward) @ frame


TEMPLATES = _templates()
# Number of bonds from the first atom of a fragment to the others.
DEPTHS = np.array([[min(slot, abs(int(size) - slot)) for slot in range(RING_SLOTS)] for size in SLOTS], np.int32)


def grow(key: Array, surroundings: Surroundings, most: int, capacity: int, sizes: tuple[int, int]) -> Molecules:
    """Grows molecules until the wanted number of atoms is reached or no room is left.

    Args:
        key: of all that is random.
        surroundings: the crystal.
        most: atoms in the asymmetric unit.
        capacity: most atoms in the cell, images included.
        sizes: least and most atoms of a molecule; a rest may be smaller.

    Returns:
        Arrays of `most + 6` atoms.
    """
    room = most + RING_SLOTS
    vectors, numbers = jnp.zeros((room, 3), jnp.float32), jnp.zeros(room, jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    empty = Molecules(zero, vectors, numbers, numbers, numbers, numbers, vectors, vectors)
    start = _Progress(empty, zero, zero, zero, zero, zero)
    images = _images(surroundings, capacity)

    def unfinished(progress):
        missing = progress.atoms.number < surroundings.wanted
        return missing & (progress.failures < FAILURES) & (progress.step < 3 * most)

    def extend(progress):
        return _extend(jax.random.fold_in(key, progress.step), progress, surroundings, images, sizes)

    return jax.lax.while_loop(unfinished, extend, start).atoms


def _extend(key, progress, surroundings, images, sizes):
    """Adds the best valid one of several trials, if there is one."""
    atoms = progress.atoms
    seeding = (progress.size >= progress.full_size) | (progress.failures % 4 == 3)
    new, parents, fragments = _propose(key, progress, surroundings, seeding)
    valid, crowding = _judge(new, parents, fragments, progress, surroundings, images, seeding)
    best = jnp.argmax(jnp.where(valid, crowding, -1.0))
    found = valid[best]
    chosen = jax.tree.map(lambda each: each[best], new)
    count = jnp.asarray(SLOTS)[fragments[best]]
    parent = parents[best]
    molecule = jnp.where(seeding, progress.molecule + 1, progress.molecule)

    def put(array, values):
        added = jax.lax.dynamic_update_slice_in_dim(array, values, atoms.number, axis=0)
        return jnp.where(found, added, array)

    free = atoms.free.at[parent].add(jnp.where(seeding, 0, -1))
    grown = Molecules(
        atoms.number + jnp.where(found, count, 0),
        put(atoms.positions, chosen.positions),
        put(atoms.elements, chosen.elements),
        put(atoms.molecules, jnp.full(RING_SLOTS, molecule)),
        put(atoms.kinds, chosen.kinds),
        jnp.where(found, put(free, chosen.free), atoms.free),
        put(atoms.inward, chosen.inward),
        put(atoms.across, chosen.across),
    )
    drawn = jax.random.randint(jax.random.fold_in(key, 1), (), sizes[0], sizes[1] + 1)
    rest = surroundings.wanted - atoms.number
    full = jnp.where(rest - drawn < sizes[0], rest, drawn)
    begun = found & seeding
    return _Progress(
        grown,
        progress.step + 1,
        jnp.where(found, 0, progress.failures + 1),
        jnp.where(found, molecule, progress.molecule),
        jnp.where(begun, count, progress.size + jnp.where(found, count, 0)),
        jnp.where(begun, full, progress.full_size),
    )


def _propose(key, progress, surroundings, seeding):
    """Trials of one step: the new atoms `(trials, 6, ...)`, their parents and the fragments, `(trials,)`."""
    atoms = progress.atoms
    first, second = jax.random.split(jax.random.fold_in(key, 0))
    vectors = _unit(jax.random.normal(first, (TRIALS, 2, 3)))
    draws = jax.random.uniform(second, (RING_SLOTS + 10, TRIALS))
    room = surroundings.wanted - atoms.number
    within = jnp.arange(len(atoms.free)) < atoms.number
    open_atoms = within & (atoms.free > 0) & (atoms.molecules == progress.molecule)
    chances = jnp.cumsum(open_atoms.astype(jnp.float32))
    parents = jnp.searchsorted(chances, draws[0] * chances[-1], side='right')
    parents = jnp.minimum(parents, len(atoms.free) - 1)
    elements, kinds = atoms.elements[parents], atoms.kinds[parents]
    flat_parent = ((kinds == TRIGONAL) | (kinds == IN_FLAT_RING)) & ~seeding

    limits = jnp.cumsum(jnp.asarray(FRAGMENT_SHARES, jnp.float32))[:-1]
    fragments = jnp.sum(draws[1][:, None] > limits[None], axis=1)
    fragments = jnp.where(jnp.asarray(SLOTS)[fragments] <= room, fragments, SINGLE)
    single = fragments == SINGLE

    hetero = jnp.where(draws[2] < 0.4, NITROGEN, OXYGEN)
    light = jnp.where(draws[3] < 0.70, CARBON, hetero)
    heavy = jnp.asarray([FLUORINE, SULFUR, SULFUR, CHLORINE, CHLORINE, BROMINE])[(draws[2] * 6).astype(jnp.int32)]
    element = jnp.where(draws[4] < surroundings.heavier, heavy, light)
    lone = (elements != CARBON) & ~seeding
    element = jnp.where(lone, CARBON, element)
    element = jnp.where(seeding & (element > OXYGEN), CARBON, element)
    flat = (draws[5] < FLAT_SHARE) & ((element == CARBON) | (element == NITROGEN))
    carbonyl = single & (element == OXYGEN) & (kinds == TRIGONAL) & (draws[6] < CARBONYL_SHARE) & ~seeding
    valence = jnp.asarray(VALENCES)[element]
    kind = jnp.where(flat, TRIGONAL, TETRAHEDRAL)
    kind = jnp.where(carbonyl | (valence == 0), CLOSED, kind)
    kind = jnp.where(seeding & (kind == CLOSED), TETRAHEDRAL, kind)
    in_ring = draws[10 : 10 + RING_SLOTS].T < RING_NITROGEN_SHARE
    in_ring = in_ring & ((fragments == SIX_RING) | (fragments == FIVE_RING))[:, None]
    in_ring = in_ring & (jnp.arange(RING_SLOTS) > 0)[None]
    ring_elements = jnp.where(in_ring, NITROGEN, CARBON)
    ring_elements = jnp.where(
        ((fragments == CHAIR) & (draws[7] < 0.3))[:, None] & (jnp.arange(RING_SLOTS) == 1)[None],
        OXYGEN,
        ring_elements,
    )
    new_elements = jnp.where(single[:, None], element[:, None], ring_elements)
    ring_kind = jnp.where(fragments == CHAIR, IN_CHAIR, IN_FLAT_RING)
    new_kinds = jnp.where(single[:, None], kind[:, None], ring_kind[:, None])
    ring_free = jnp.where(ring_elements == CARBON, jnp.where(fragments == CHAIR, 2, 1)[:, None], 0)
    ring_free = jnp.where((jnp.arange(RING_SLOTS) == 0)[None], ring_free - 1, ring_free)
    single_free = jnp.where(kind == CLOSED, 0, jnp.where(flat, valence - 1, valence))
    new_free = jnp.maximum(jnp.where(single[:, None], single_free[:, None], ring_free), 0)

    choice = (draws[8] * jnp.asarray(CHOICES)[kinds].astype(jnp.float32)).astype(jnp.int32)
    coefficients = jnp.asarray(DIRECTIONS)[kinds, choice]
    inward, across = atoms.inward[parents], atoms.across[parents]
    normal = jnp.cross(inward, across)
    direction = jnp.einsum('tc,tcx->tx', coefficients, jnp.stack([inward, across, normal], axis=1))
    direction = jnp.where(seeding, vectors[:, 0], direction)
    new_flat = jnp.where(single, flat, fragments != CHAIR)
    coplanar = flat_parent & new_flat & (draws[9] < COPLANAR_SHARE)
    side = jnp.where(coplanar[:, None], normal, vectors[:, 1])
    side = _unit(jnp.cross(side, direction))
    frame = jnp.stack([direction, side, jnp.cross(direction, side)], axis=1)

    radii = jnp.asarray(RADII)
    length = radii[elements] + radii[new_elements[:, 0]]
    length = length - FLAT_BOND * (flat_parent.astype(jnp.float32) + new_flat.astype(jnp.float32))
    conjugated = flat_parent & ((element == NITROGEN) | (element == OXYGEN)) & single
    length = jnp.where(carbonyl, DOUBLE_BOND, jnp.where(conjugated, length - CONJUGATED, length))
    length = length + LENGTH_SPREAD * (2 * draws[6] - 1)
    random_start = draws[7:10].T @ surroundings.axes
    start = jnp.where(seeding, random_start, atoms.positions[parents] + length[:, None] * direction)

    places, inwards, acrosses = (jnp.einsum('tsc,tcx->tsx', jnp.asarray(each)[fragments], frame) for each in TEMPLATES)
    new = Molecules(
        jnp.asarray(SLOTS)[fragments],
        start[:, None] + places,
        new_elements.astype(jnp.int32),
        jnp.zeros_like(new_elements, jnp.int32),
        new_kinds.astype(jnp.int32),
        new_free.astype(jnp.int32),
        inwards,
        acrosses,
    )
    return new, parents, fragments


def _judge(new, parents, fragments, progress, surroundings, images, seeding):
    """Whether trials keep all distances, and how near their surroundings are, `(trials,)` each."""
    atoms = progress.atoms
    axes, inverse = surroundings.axes, surroundings.inverse
    present = jnp.arange(RING_SLOTS)[None] < new.number[:, None]
    fractional = new.positions @ inverse
    polar = (new.elements == NITROGEN) | (new.elements == OXYGEN)

    atom, operation = images
    counted = (atom < atoms.number) & (operation < surroundings.operations)
    turned = jnp.einsum('mij,mj->mi', surroundings.rotations[operation], (atoms.positions @ inverse)[atom])
    others = turned + surroundings.translations[operation]
    distances, unmoved = nearest_distances(fractional[:, :, None], others[None, None], axes)
    same = (operation == 0) & (atoms.molecules[atom] == progress.molecule) & ~seeding
    inside = same[None, None] & unmoved
    to_parent = jnp.linalg.norm(atoms.positions[parents][:, None] - atoms.positions[None], axis=-1)[:, atom]
    bonds = 1 + jnp.where(atom[None] == parents[:, None], 0, jnp.where(to_parent < BONDED, 1, 2))
    bonds = bonds[:, None] + jnp.asarray(DEPTHS)[fragments][:, :, None]
    within = jnp.where(bonds == 1, 0.0, jnp.where(bonds == 2, TWO_BONDS_APART, MORE_BONDS_APART))
    other_polar = (atoms.elements[atom] == NITROGEN) | (atoms.elements[atom] == OXYGEN)
    between = jnp.where(polar[:, :, None] & other_polar[None, None], POLAR_CONTACT, CONTACT)
    least = jnp.where(inside, within, between)
    pairs = present[:, :, None] & counted[None, None]
    kept = jnp.all(~pairs | (distances >= least), axis=(1, 2))
    near = jnp.sum(jnp.where(pairs & ~inside, jnp.exp(-((distances / 4.5) ** 2)), 0.0), axis=(1, 2))

    own = jnp.einsum('oij,tsj->tosi', surroundings.rotations, fractional) + surroundings.translations[None, :, None]
    own_distances, _ = nearest_distances(fractional[:, None, :, None], own[:, :, None], axes)
    number = jnp.arange(len(surroundings.rotations))
    counted = (number > 0) & (number < surroundings.operations)
    pairs = counted[None, :, None, None] & present[:, None, :, None] & present[:, None, None]
    kept &= jnp.all(~pairs | (own_distances >= CONTACT), axis=(1, 2, 3))
    can_grow = jnp.any(
        (jnp.arange(len(atoms.free)) < atoms.number) & (atoms.free > 0) & (atoms.molecules == progress.molecule)
    )
    return kept & (seeding | can_grow), 1 + near / jnp.sum(present, axis=1, dtype=jnp.float32)


def relax(atoms: Molecules, surroundings: Surroundings, capacity: int) -> Molecules:
    """Moves atoms that are too near to others apart, while bonds, angles and rings keep their shape.

    Every pair that is too near, and every pair of neighbours in a molecule whose distance has changed, is moved a part
    of the way to the distance that it should have; the molecules follow as wholes.
    """
    atom, operation = _images(surroundings, capacity)
    number = jnp.arange(len(atoms.free))
    present = number < atoms.number
    counted = (atom < atoms.number) & (operation < surroundings.operations)
    pairs = present[:, None] & counted[None] & ((operation > 0)[None] | (number[:, None] != atom[None]))
    same = (operation == 0)[None] & (atoms.molecules[:, None] == atoms.molecules[atom][None])
    reaches = jnp.asarray(REACHES)[atoms.elements]
    polar = (atoms.elements == NITROGEN) | (atoms.elements == OXYGEN)
    least = reaches[:, None] + reaches[atom][None] - jnp.where(polar[:, None] & polar[atom][None], HYDROGEN_BRIDGE, 0.0)
    members = jax.nn.one_hot(atoms.molecules, len(number), dtype=jnp.float32) * present[:, None].astype(jnp.float32)
    members = members / jnp.maximum(jnp.sum(members, axis=0), 1)[None]

    def steps_between(positions):
        fractional = positions @ surroundings.inverse
        turned = jnp.einsum('mij,mj->mi', surroundings.rotations[operation], fractional[atom])
        others = turned + surroundings.translations[operation]
        steps = [fractional[:, None, axis] - others[None, :, axis] for axis in range(3)]
        shifts = [jnp.round(each) for each in steps]
        unmoved = (shifts[0] == 0) & (shifts[1] == 0) & (shifts[2] == 0)
        steps = [each - shift for each, shift in zip(steps, shifts, strict=True)]
        axes = surroundings.axes
        cartesian = [sum(steps[row] * axes[row, column] for row in range(3)) for column in range(3)]
        return cartesian, jnp.sqrt(sum(each * each for each in cartesian) + 1e-6), same & unmoved

    _, distances, inside = steps_between(atoms.positions)
    held = pairs & inside & (distances < RIGID)
    lengths = distances

    def move(positions, strength):
        cartesian, distances, inside = steps_between(positions)
        wanted = jnp.where(inside, MORE_BONDS_APART, least)
        apart = jnp.where(pairs & ~held, strength * jnp.maximum(wanted - distances, 0), 0.0)
        change = jnp.where(held, lengths - distances, apart) / distances
        moves = RELAXED * jnp.stack([jnp.sum(each * change, axis=1) for each in cartesian], axis=1)
        pushed = jnp.where(held, 0.0, change)
        pushes = RELAXED * jnp.stack([jnp.sum(each * pushed, axis=1) for each in cartesian], axis=1)
        whole = members @ jnp.einsum('nm,nx->mx', jnp.sign(members), pushes)
        return positions + moves + WHOLE * whole, None

    strengths = jnp.minimum(1.0, jnp.linspace(3.0, 0.0, RELAXATIONS))  # in the end bonds alone
    positions, _ = jax.lax.scan(move, atoms.positions, strengths)
    return atoms._replace(positions=positions)


def _images(surroundings, capacity):
    """The atom and the operation of each place in the cell, `(capacity,)` each."""
    slots = jnp.arange(capacity)
    wanted = jnp.maximum(surroundings.wanted, 1)
    return slots % wanted, slots // wanted


def nearest_distances(first: Array, second: Array, axes: Array) -> tuple[Array, Array]:
    """Distances, Å, of points from the nearest lattice images of others, and whether these are the points given.

    The nearest image is found by rounding, which is right for distances below half of the cell's least width.

    Args:
        first: `(..., 3)`, fractional.
        second: `(..., 3)`, fractional; of a shape that broadcasts with the first.
        axes: `(3, 3)`, rows are the edges of the cell.
    """
    metric = axes @ axes.T
    steps = [first[..., axis] - second[..., axis] for axis in range(3)]  # one loop over pairs, without small products
    shifts = [jnp.round(each) for each in steps]
    x, y, z = (step - shift for step, shift in zip(steps, shifts, strict=True))
    squares = x * (metric[0, 0] * x + 2 * (metric[0, 1] * y + metric[0, 2] * z))
    squares += y * (metric[1, 1] * y + 2 * metric[1, 2] * z) + metric[2, 2] * z * z
    unmoved = (shifts[0] == 0) & (shifts[1] == 0) & (shifts[2] == 0)
    return jnp.sqrt(jnp.maximum(squares, 0)), unmoved


def hydrogens(atoms: Molecules) -> tuple[Array, Array]:
    """Places of hydrogen at the free valences, and which of them are taken.

    Returns:
        `(n, 3, 3)` Cartesian, three for each atom, and `(n, 3)` bool.
    """
    number = jnp.arange(len(atoms.free))
    frame = jnp.stack([atoms.inward, atoms.across, jnp.cross(atoms.inward, atoms.across)], axis=1)
    directions = jnp.einsum('ndc,ncx->ndx', jnp.asarray(DIRECTIONS)[atoms.kinds], frame)
    exists = jnp.arange(3)[None] < jnp.asarray(CHOICES)[atoms.kinds][:, None]
    ahead = atoms.positions[:, None] + 1.45 * directions
    distances = jnp.linalg.norm(ahead[:, :, None] - atoms.positions[None, None], axis=-1)
    distances = jnp.where((number < atoms.number)[None, None], distances, jnp.inf)
    taken = jnp.min(distances, axis=-1) < 0.9
    free = exists & ~taken & (number < atoms.number)[:, None]
    free &= jnp.cumsum(free, axis=1) <= atoms.free[:, None]
    return atoms.positions[:, None] + HYDROGEN_BOND * directions, free


def _unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
