"""Grows molecules among their images in the cell of a crystal, by compiled code: the content of training crystals.

Atoms and rings are bonded one after another to atoms with free valences, with usual lengths, angles and torsions. A few
trials are made each time. A trial is valid if its atoms keep their distances. In a molecule, the least distance follows
from the number of bonds between two atoms. Between molecules, and to the images under the space group, it is somewhat
less than in real crystals. When a molecule has its size, or no trial is valid, the next one is begun where there is
room. So the cell is filled without a search for a packing. Then atoms that are too near are moved apart, while
molecules keep their shape.

The first molecule may be the complex of a metal. It is begun with the metal and the atoms that are bonded to it, from
which it then grows like any other. The metal may lie on an inversion centre, which then makes the other half.

Shapes are fixed: arrays have room for the most atoms, of which `number` count. Nothing is shared with
`invented_crystals`, on which verdicts are calibrated.
"""

from typing import NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

METALS = ('Ti', 'Fe', 'Cu', 'Mo', 'Pd', 'Sn')  # of those from 22 to 50 electrons
ELEMENTS = ('C', 'N', 'O', 'F', 'S', 'Cl', 'Br', 'Si', 'P', 'I', *METALS)
ATOMIC_NUMBERS = np.array([gemmi.Element(each).atomic_number for each in ELEMENTS], np.float32)
FIRST_METAL = len(ELEMENTS) - len(METALS)
CARBON, NITROGEN, OXYGEN, FLUORINE, SULFUR, CHLORINE, BROMINE, SILICON, PHOSPHORUS, IODINE = range(FIRST_METAL)
# Å, in single bonds; metals have `METAL_BOND` instead
RADII = np.array([0.767, 0.705, 0.665, 0.59, 1.03, 0.98, 1.14, 1.11, 1.07, 1.33] + [1.3] * len(METALS), np.float32)
# Bonds that are free beside the one to the parent.
VALENCES = np.array([3, 2, 1, 0, 1, 0, 0, 3, 2, 0] + [0] * len(METALS), np.int32)
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

SINGLE, SIX_RING, FIVE_RING, CHAIR, FUSED = range(5)  # the last: a flat ring that shares a bond with another one
RING_SLOTS = 6
SLOTS = np.array([1, 6, 5, 6, 4], np.int32)  # atoms of each fragment
RING_BOND, CHAIR_BOND = 1.395, 1.525  # Å
FRAGMENT_SHARES = (0.64, 0.11, 0.06, 0.07, 0.12)  # where a ring cannot be fused, it is a six-ring
BRANCHING = 3.0  # how much more often atoms grow that are not at an end
NITROGEN_SHARE = 0.38  # of N and O
# Elements beyond oxygen, in these proportions.
HEAVIER = (FLUORINE, FLUORINE, SILICON, PHOSPHORUS, *[SULFUR] * 3, *[CHLORINE] * 3, BROMINE, IODINE)
FILLED = 12.0  # how much more often atoms grow that are Si or P, so that they seldom keep hydrogen
OXIDE_SHARE, OXIDE_BOND = 0.5, 1.58  # of the atoms at Si and P, oxygen; Å
FLAT_SHARE = 0.45  # of single C and N
CARBONYL_SHARE = 0.6  # of the oxygen atoms at a trigonal carbon
ORDERED_SHARE = 0.8  # of flat fragments at flat atoms, in their plane, and of tetrahedral ones, staggered
RING_NITROGEN_SHARE = 0.1  # of the atoms of flat rings
RING_OXYGEN_SHARE = 0.3  # of chairs

# Unit vectors from a metal to the atoms bonded to it. The last three are halves, for inversion centres.
_OCTAHEDRON = np.concatenate([np.eye(3), -np.eye(3)])
COORDINATIONS = {
    'linear': _OCTAHEDRON[[0, 3]],
    'trigonal': np.array([[1, 0, 0], [-1 / 2, _HALF, 0], [-1 / 2, -_HALF, 0]]),
    'tetrahedral': np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3),
    'square': _OCTAHEDRON[[0, 3, 1, 4]],
    'pyramid': _OCTAHEDRON[[0, 3, 1, 4, 2]],
    'octahedral': _OCTAHEDRON,
    'half of linear': _OCTAHEDRON[:1],
    'half of square': _OCTAHEDRON[:2],
    'half of octahedral': _OCTAHEDRON[:3],
}
COORDINATION_SHARES = (1, 1, 2, 2, 1, 3)  # of whole ones; of halves: those of linear, square and octahedral
LIGANDS = (NITROGEN, NITROGEN, NITROGEN, OXYGEN, OXYGEN, OXYGEN, OXYGEN, CHLORINE)  # in these proportions
MOST_LIGANDS = 6
METAL_BOND = (1.9, 2.2)  # Å, mean of the bonds of a metal to N and O
CHLORIDE, LONGEST_METAL_BOND = 0.2, 2.4  # Å, how much longer bonds to Cl are; the longest of all
METAL_SPREAD, ANGLE_SPREAD = 0.06, 0.1  # Å; of unit vectors
FLAT_LIGANDS = 0.6
PLACES = 32  # tried for a complex
METAL_CONTACT = 2.6  # Å, least distance from a metal to atoms that are not bonded to it
LEAST_WITH_METAL = 6  # atoms in the asymmetric unit

TRIALS = 8
DRAWS = 25  # random numbers for each
FAILURES = 12  # in succession, after which the cell is full
NEXT_MOLECULE = 6  # every so many of them another molecule is tried
CROWDED = 4.5  # Å, how far the neighbourhood of atoms reaches; a trial in a crowded one is preferred
# Least distances, Å: in a molecule, of atoms one, two, three and more bonds apart; and of molecules before they are
# moved apart. The usual density would not be reached with those of crystals.
APART = np.array([0.0, 2.2, 2.7, 2.95], np.float32)
CONTACT = 2.4
RIGID = 2.85  # Å: distances in a molecule that are held while molecules are moved apart
# Å, of elements, half of a usual contact.
REACHES = np.array([1.72, 1.62, 1.56, 1.46, 1.80, 1.76, 1.84, 2.0, 1.85, 1.98] + [2.0] * len(METALS), np.float32)
HYDROGEN_REACH = 0.08  # Å, that each hydrogen adds to the reach of carbon
HYDROGEN_BRIDGE = 0.42  # Å by which N and O come nearer to each other
RELAXATIONS, RELAXED = 40, 0.22  # steps, and the part of a deviation that each takes back
SHORTEST = 1e-3  # Å, so that coinciding atoms do no harm
BONDED, NEXT_BONDED = 2.0, 2.65  # Å, above distances of neighbours, and of their neighbours
HYDROGEN_BOND, HYDROGEN_APART = 0.96, 1.6  # Å: of X–H, as X-rays see it; least distance from other atoms


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
        hetero: share of N and O among single atoms.
        heavier: share of elements beyond oxygen among single atoms.
        metal: of `ELEMENTS`, that of the first molecule; 0: it has none.
        keeper: the inversion on whose centre the metal lies; 0, the identity: it lies anywhere.
    """

    axes: Array
    inverse: Array
    rotations: Array
    translations: Array
    operations: Array
    wanted: Array
    hetero: Array
    heavier: Array
    metal: Array
    keeper: Array


class _Progress(NamedTuple):
    atoms: Molecules
    step: Array
    failures: Array
    molecule: Array
    size: Array  # atoms of the molecule that grows
    full_size: Array


def _templates():
    """Local coordinates, inward and across vectors of all fragments, `(5, 6, 3)` each.

    The first atom is the origin; the bond to the parent comes along +x; flat fragments lie in the plane of x and y.
    """
    single = np.zeros((RING_SLOTS, 3)), np.tile([-1.0, 0, 0], (RING_SLOTS, 1)), np.tile([0, 1.0, 0], (RING_SLOTS, 1))
    return tuple(
        np.stack(each).astype(np.float32)
        for each in zip(single, _flat_ring(6), _flat_ring(5), _chair(), _fused_ring(), strict=True)
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


def _fused_ring():
    """Four atoms of a hexagon whose other two are the parent, at the origin, and its neighbour along +y."""
    centre = RING_BOND * np.array([np.sqrt(3) / 2, 1 / 2, 0])
    angles = np.radians([-90, -30, 30, 90, 0, 0])
    outward = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    across = np.stack([-np.sin(angles), np.cos(angles), 0 * angles], axis=1)
    return centre + RING_BOND * outward, -outward, across


TEMPLATES = _templates()
# Number of bonds from the atoms that are bonded to the first and the second parent to all atoms of a fragment.
_AROUND = [[min(slot, abs(int(size) - slot)) for slot in range(RING_SLOTS)] for size in SLOTS[:FUSED]]
_ALONG = [[0, 1, 2, 3, 0, 0], [3, 2, 1, 0, 0, 0]]
DEPTHS = np.array([*([each, each] for each in _AROUND), _ALONG], np.int32)


def grow(key: Array, surroundings: Surroundings, most: int, capacity: int, sizes: tuple[int, int]) -> Molecules:
    """Grows molecules until the wanted number of atoms is reached or no room is left.

    Args:
        key: of all that is random.
        surroundings: the crystal.
        most: atoms in the asymmetric unit.
        capacity: most atoms in the cell, images included.
        sizes: least and most atoms of a molecule; a rest may be smaller.

    Returns:
        Arrays of `most + 7` atoms. Atoms that stayed alone are the oxygen of water. A metal is the first atom.
    """
    room = most + MOST_LIGANDS + 1
    zero = jnp.zeros((), jnp.int32)
    begun, size = _begin_complex(jax.random.fold_in(key, 3 * most), surroundings, room, sizes)
    start = _Progress(begun, zero, zero, zero, begun.number, size)
    images = _images(surroundings, capacity)

    def unfinished(progress):
        missing = progress.atoms.number < surroundings.wanted
        return missing & (progress.failures < FAILURES) & (progress.step < 3 * most)

    def extend(progress):
        return _extend(jax.random.fold_in(key, progress.step), progress, surroundings, images, sizes)

    atoms = jax.lax.while_loop(unfinished, extend, start).atoms
    present = (jnp.arange(room) < atoms.number).astype(jnp.int32)
    members = jax.ops.segment_sum(present, atoms.molecules, room)
    lone = members[atoms.molecules] == 1
    return atoms._replace(elements=jnp.where(lone, OXYGEN, atoms.elements), free=jnp.where(lone, 2, atoms.free))


def _begin_complex(key, surroundings, room, sizes):
    """A metal with the atoms that are bonded to it, if there is a place for them; and the atoms its molecule will have.

    Of several places and orientations, the one is taken in which they are farthest from their images.
    """
    kind_key, atom_key, place_key, turn_key = jax.random.split(key, 4)
    kind, length, size = jax.random.uniform(kind_key, (3,))
    atom_draws = jax.random.uniform(atom_key, (6, MOST_LIGANDS))
    whole, half = COORDINATION_SHARES, tuple(COORDINATION_SHARES[each] for each in (0, 3, 5))
    chosen = jnp.sum(kind > jnp.cumsum(jnp.asarray(whole, jnp.float32) / sum(whole))[:-1])
    chosen_half = len(whole) + jnp.sum(kind > jnp.cumsum(jnp.asarray(half, jnp.float32) / sum(half))[:-1])
    on_centre = surroundings.keeper > 0
    chosen = jnp.where(on_centre, chosen_half, chosen)
    shapes = np.zeros((len(COORDINATIONS), MOST_LIGANDS, 3), np.float32)
    for shape, vectors in zip(shapes, COORDINATIONS.values(), strict=True):
        shape[: len(vectors)] = vectors
    counts = jnp.asarray(np.array([len(each) for each in COORDINATIONS.values()], np.int32))
    count = jnp.minimum(counts[chosen], surroundings.wanted - 1)
    along = jnp.asarray(shapes)[chosen] + ANGLE_SPREAD * (2 * atom_draws[:3].T - 1)
    along = along / (jnp.linalg.norm(along, axis=-1, keepdims=True) + SHORTEST)
    elements = jnp.asarray(LIGANDS, jnp.int32)[(atom_draws[3] * len(LIGANDS)).astype(jnp.int32)]
    chloride = elements == CHLORINE
    flat = (atom_draws[4] < FLAT_LIGANDS) & ~chloride
    lengths = METAL_BOND[0] + (METAL_BOND[1] - METAL_BOND[0]) * length + METAL_SPREAD * (2 * atom_draws[5] - 1)
    lengths = jnp.clip(lengths + jnp.where(chloride, CHLORIDE, 0.0), METAL_BOND[0], LONGEST_METAL_BOND)

    turn = jax.random.uniform(turn_key, (4, PLACES))
    first, other = _direction(*turn[:2]), _direction(*turn[2:])
    second = _unit(jnp.cross(first, other))
    axes = jnp.stack([first, second, jnp.cross(first, second)], axis=1)
    along = jnp.einsum('lc,tcx->tlx', along, axes)
    centres = jax.random.uniform(place_key, (PLACES, 3))
    centres = jnp.where(on_centre, surroundings.translations[surroundings.keeper][None] / 2, centres)
    steps = jnp.concatenate([jnp.zeros((PLACES, 1, 3), along.dtype), lengths[None, :, None] * along], axis=1)
    places = (centres @ surroundings.axes)[:, None] + steps
    best, distance = _farthest_from_images(places, count + 1, surroundings)
    exists = (surroundings.metal > 0) & (distance >= CONTACT)

    def padded(metal, ligands):
        both = jnp.concatenate([jnp.broadcast_to(metal, (1, *ligands.shape[1:])).astype(ligands.dtype), ligands])
        wide = jnp.zeros((room, *both.shape[1:]), both.dtype).at[: len(both)].set(both)
        return jnp.where(exists, wide, jnp.zeros_like(wide))

    zero = jnp.zeros((), jnp.int32)
    inward = -along[best]
    sideways = _unit(jnp.cross(inward, jnp.roll(inward, 1, axis=1) + jnp.array([0.3, -0.2, 0.1], inward.dtype)[None]))
    tetrahedral = jnp.where(elements == NITROGEN, 3, 2)
    atoms = Molecules(
        jnp.where(exists, count + 1, 0),
        padded(places[best, 0], places[best, 1:]),
        padded(surroundings.metal, elements),
        padded(zero, jnp.zeros_like(elements)),
        padded(zero, jnp.where(chloride, CLOSED, jnp.where(flat, TRIGONAL, TETRAHEDRAL))),
        padded(zero, jnp.where(chloride, 0, jnp.where(flat, tetrahedral - 1, tetrahedral))),
        padded(jnp.zeros(3, inward.dtype), inward),
        padded(jnp.zeros(3, inward.dtype), sideways),
    )
    full = count + 1 + sizes[0] + (size * (sizes[1] + 1 - sizes[0])).astype(jnp.int32)
    return atoms, jnp.where(exists, full, 0)


def _farthest_from_images(places, count, surroundings):
    """Which of several complexes `(trials, atoms, 3)` is farthest from its images, and how far it is, in Å.

    Distances from the metal, the first atom, are taken for less by what it needs more.
    """
    fractional = places @ surroundings.inverse
    images = jnp.einsum('oij,taj->toai', surroundings.rotations, fractional)
    images = images + surroundings.translations[None, :, None]
    metric = surroundings.axes @ surroundings.axes.T
    _, distances, unmoved = nearest_steps(fractional[:, None, :, None], images[:, :, None], metric)
    operation = jnp.arange(len(surroundings.rotations))
    itself = ((operation == 0) | (operation == surroundings.keeper))[None, :, None, None] & unmoved
    present = jnp.arange(places.shape[1]) < count
    counted = (operation < surroundings.operations)[:, None, None] & present[None, :, None] & present[None, None]
    metal = jnp.arange(places.shape[1]) == 0
    distances = distances - jnp.where(metal[:, None] | metal[None], METAL_CONTACT - CONTACT, 0.0)[None, None]
    least = jnp.min(jnp.where(counted[None] & ~itself, distances, jnp.inf), axis=(1, 2, 3))
    best = jnp.argmax(least)
    return best, least[best]


def _extend(key, progress, surroundings, images, sizes):
    """Adds the best valid one of several trials, if there is one."""
    atoms = progress.atoms
    seeding = (progress.size >= progress.full_size) | (progress.failures % NEXT_MOLECULE == NEXT_MOLECULE - 1)
    draws = jax.random.uniform(key, (DRAWS, TRIALS))
    new, fragments, parents = _propose(draws, progress, surroundings, seeding)
    valid, crowding = _judge(new, fragments, parents, progress, surroundings, images, seeding)
    best = jnp.argmax(jnp.where(valid, crowding, -1.0))
    found = valid[best]
    chosen = jax.tree.map(lambda each: each[best], new)
    count, fused = chosen.number, fragments[best] == FUSED
    used = jnp.where(seeding, 0, jnp.stack([1, fused.astype(jnp.int32)]))
    molecule = jnp.where(seeding, progress.molecule + 1, progress.molecule)

    def put(array, values):
        added = jax.lax.dynamic_update_slice_in_dim(array, values, atoms.number, axis=0)
        return jnp.where(found, added, array)

    used = jnp.where(found, used, 0)
    free = atoms.free.at[parents[best]].add(-used)
    grown = Molecules(
        atoms.number + jnp.where(found, count, 0),
        put(atoms.positions, chosen.positions),
        put(atoms.elements, chosen.elements),
        put(atoms.molecules, jnp.full(RING_SLOTS, molecule)),
        put(atoms.kinds, chosen.kinds),
        put(free, chosen.free),
        put(atoms.inward, chosen.inward),
        put(atoms.across, chosen.across),
    )
    drawn = sizes[0] + (draws[24, 0] * (sizes[1] + 1 - sizes[0])).astype(jnp.int32)
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


def _propose(draws, progress, surroundings, seeding):
    """Trials of one step.

    Returns:
        The new atoms `(trials, 6, ...)`, the fragments `(trials,)`, and the two atoms to which their first and last
        atoms are bonded, `(trials, 2)`: the same one twice except for fused rings.
    """
    atoms = progress.atoms
    parents = _choose_parents(draws[0], progress)
    room = surroundings.wanted - atoms.number
    limits = jnp.cumsum(jnp.asarray(FRAGMENT_SHARES, jnp.float32))[:-1]
    fragments = jnp.sum(draws[1][:, None] > limits[None], axis=1)
    fused = (fragments == FUSED) & _can_be_fused(parents, atoms) & ~seeding
    fragments = jnp.where((fragments == FUSED) & ~fused, SIX_RING, fragments)
    fragments = jnp.where(jnp.asarray(SLOTS)[fragments] <= room, fragments, SINGLE)
    fused = fragments == FUSED
    single = fragments == SINGLE
    parent_element, parent_kind = atoms.elements[parents], atoms.kinds[parents]

    element, kind, free = _single_atoms(draws[2:7], parent_element, parent_kind, surroundings, seeding)
    elements, kinds, frees = _ring_atoms(draws[7:14], fragments)
    elements = jnp.where(single[:, None], element[:, None], elements)
    kinds = jnp.where(single[:, None], kind[:, None], kinds)
    frees = jnp.where(single[:, None], free[:, None], frees)
    flat = (kinds[:, 0] == TRIGONAL) | (kinds[:, 0] == IN_FLAT_RING)
    flat_parent = ((parent_kind == TRIGONAL) | (parent_kind == IN_FLAT_RING)) & ~seeding

    partners = jnp.where(fused, jnp.minimum(parents + 1, len(atoms.free) - 1), parents)
    staggered = single & (kind == TETRAHEDRAL) & ((parent_kind == TETRAHEDRAL) | (parent_kind == IN_CHAIR)) & ~seeding
    frame = _frames(draws[14:20], parents, partners, atoms, flat & flat_parent, staggered, fused, seeding)
    length = jnp.asarray(RADII)[parent_element] + jnp.asarray(RADII)[elements[:, 0]]
    length = length - FLAT_BOND * (flat.astype(length.dtype) + flat_parent.astype(length.dtype))
    conjugated = flat_parent & single & ((element == NITROGEN) | (element == OXYGEN))
    length = jnp.where(conjugated, length - CONJUGATED, length)
    double = single & (kind == CLOSED) & (element == OXYGEN)
    oxide = (element == OXYGEN) & single & ((parent_element == SILICON) | (parent_element == PHOSPHORUS)) & ~seeding
    length = jnp.where(oxide, OXIDE_BOND, length)
    length = jnp.where(double, DOUBLE_BOND, length) + LENGTH_SPREAD * (2 * draws[20] - 1)
    length = jnp.where(fused, 0, length)  # its template begins at the parent
    start = atoms.positions[parents] + length[:, None] * frame[:, 0]
    start = jnp.where(seeding, draws[21:24].T @ surroundings.axes, start)
    places, inward, across = (jnp.einsum('tsc,tcx->tsx', jnp.asarray(each)[fragments], frame) for each in TEMPLATES)
    new = Molecules(
        jnp.asarray(SLOTS)[fragments],
        start[:, None] + places,
        elements,
        jnp.zeros_like(elements),
        kinds,
        frees,
        inward,
        across,
    )
    return new, fragments, jnp.stack([parents, partners], axis=1)


def _choose_parents(draws, progress):
    """Atoms of the growing molecule with free valences; more often those that are not at an end."""
    atoms = progress.atoms
    open_atoms = (jnp.arange(len(atoms.free)) < atoms.number) & (atoms.free > 0)
    open_atoms &= atoms.molecules == progress.molecule
    flat = (atoms.kinds == TRIGONAL).astype(jnp.int32)
    at_end = ((atoms.kinds == TETRAHEDRAL) | (atoms.kinds == TRIGONAL)) & (
        atoms.free >= jnp.asarray(VALENCES)[atoms.elements] - flat
    )
    filled = (atoms.elements == SILICON) | (atoms.elements == PHOSPHORUS)
    often = jnp.where(filled, FILLED, jnp.where(at_end, 1.0, BRANCHING))
    chances = jnp.cumsum(jnp.where(open_atoms, often, 0))
    parents = jnp.searchsorted(chances, draws * chances[-1], side='right')
    return jnp.minimum(parents, len(atoms.free) - 1)


def _can_be_fused(parents, atoms):
    """Whether a ring can share the bond from each atom to the one after it."""
    others = jnp.minimum(parents + 1, len(atoms.free) - 1)
    flat = (atoms.kinds[parents] == IN_FLAT_RING) & (atoms.kinds[others] == IN_FLAT_RING)
    free = (atoms.free[parents] > 0) & (atoms.free[others] > 0) & (others < atoms.number)
    distances = jnp.linalg.norm(atoms.positions[parents] - atoms.positions[others], axis=1)
    return flat & free & (distances < RING_BOND + 0.02) & (atoms.molecules[parents] == atoms.molecules[others])


def _single_atoms(draws, parent_element, parent_kind, surroundings, seeding):
    """Element, kind and free valences of single atoms, `(trials,)` each."""
    which, light, rare, flat, double = draws
    element = jnp.where(light < surroundings.hetero, jnp.where(which < NITROGEN_SHARE, NITROGEN, OXYGEN), CARBON)
    others = jnp.asarray(HEAVIER)
    element = jnp.where(rare < surroundings.heavier, others[(which * len(others)).astype(jnp.int32)], element)
    oxide = ((parent_element == SILICON) | (parent_element == PHOSPHORUS)) & (light < OXIDE_SHARE)
    element = jnp.where(parent_element != CARBON, jnp.where(oxide, OXYGEN, CARBON), element)
    element = jnp.where(seeding, CARBON, element)
    flat = (flat < FLAT_SHARE) & ((element == CARBON) | (element == NITROGEN))
    double = (element == OXYGEN) & (parent_kind == TRIGONAL) & (double < CARBONYL_SHARE)
    valence = jnp.asarray(VALENCES)[element]
    kind = jnp.where(double | (valence == 0), CLOSED, jnp.where(flat, TRIGONAL, TETRAHEDRAL))
    return element, kind, jnp.where(double, 0, jnp.where(flat, valence - 1, valence))


def _ring_atoms(draws, fragments):
    """Elements, kinds and free valences of the atoms of rings, `(trials, 6)` each."""
    slots, chair = jnp.arange(RING_SLOTS)[None], (fragments == CHAIR)[:, None]
    nitrogen = (draws[:RING_SLOTS].T < RING_NITROGEN_SHARE) & ~chair & (slots > 0)
    oxygen = chair & (slots == 1) & (draws[RING_SLOTS] < RING_OXYGEN_SHARE)[:, None]
    elements = jnp.where(nitrogen, NITROGEN, jnp.where(oxygen, OXYGEN, CARBON))
    free = jnp.where(elements == CARBON, jnp.where(chair, 2, 1), 0)
    bonded = (slots == 0) & (fragments != FUSED)[:, None]
    return elements, jnp.where(chair, IN_CHAIR, jnp.full_like(elements, IN_FLAT_RING)), free - bonded.astype(free.dtype)


def _frames(draws, parents, partners, atoms, flat, staggered, fused, seeding):
    """Axes of the fragments, `(trials, 3, 3)`: along the bond from the parent, to a side, and the normal of both."""
    which, together, *sphere = draws
    choices = jnp.asarray(CHOICES)[atoms.kinds[parents]]
    choice = (which * choices.astype(which.dtype)).astype(jnp.int32)
    inward, across = atoms.inward[parents], atoms.across[parents]
    normal = jnp.cross(inward, across)
    coefficients = jnp.asarray(DIRECTIONS)[atoms.kinds[parents], choice]
    along = jnp.einsum('tc,tcx->tx', coefficients, jnp.stack([inward, across, normal], axis=1))
    along = jnp.where(seeding, _direction(*sphere[:2]), along)
    kinds = atoms.kinds[parents]
    around = jnp.where((kinds == IN_CHAIR)[:, None], inward, -inward)  # a bond from the new atom here is staggered
    ordered = jnp.where(flat[:, None], jnp.cross(normal, along), around)
    ordered = jnp.where((together < ORDERED_SHARE)[:, None], ordered, _direction(*sphere[2:]))
    ordered = jnp.where((flat | staggered)[:, None], ordered, _direction(*sphere[2:]))
    side = ordered - jnp.sum(ordered * along, axis=1, keepdims=True) * along
    side = jnp.where(fused[:, None], atoms.positions[partners] - atoms.positions[parents], side)
    along, side = _unit(along), _unit(side)
    return jnp.stack([along, side, jnp.cross(along, side)], axis=1)


def _judge(new, fragments, parents, progress, surroundings, images, seeding):
    """Whether trials keep all distances, and how near their surroundings are, `(trials,)` each."""
    atoms = progress.atoms
    metric, inverse = surroundings.axes @ surroundings.axes.T, surroundings.inverse
    present = jnp.arange(RING_SLOTS)[None] < new.number[:, None]
    fractional = new.positions @ inverse
    atom, operation = images
    counted = (atom < atoms.number) & (operation < surroundings.operations)
    turned = jnp.einsum('mij,mj->mi', surroundings.rotations[operation], (atoms.positions @ inverse)[atom])
    others = turned + surroundings.translations[operation]
    _, distances, unmoved = nearest_steps(fractional[:, :, None], others[None, None], metric)
    same = (operation == 0) & (atoms.molecules[atom] == progress.molecule) & ~seeding
    inside = same[None, None] & unmoved
    ends = atoms.positions[parents]
    to_ends = jnp.linalg.norm(ends[:, :, None] - atoms.positions[None, None], axis=-1)
    number = jnp.arange(len(atoms.free))[None, None]
    away = jnp.where(to_ends < BONDED, 1, jnp.where(to_ends < NEXT_BONDED, 2, 3))
    away = jnp.where(number == parents[:, :, None], 0, away)[:, :, atom]
    bonds = jnp.min(1 + away[:, :, None] + jnp.asarray(DEPTHS)[fragments][..., None], axis=1)
    within = jnp.asarray(APART)[jnp.minimum(bonds, len(APART)) - 1]
    contact = jnp.where(atoms.elements >= FIRST_METAL, METAL_CONTACT, CONTACT)[atom]
    least = jnp.where(inside, within, contact[None, None])
    pairs = present[:, :, None] & counted[None, None]
    kept = jnp.all(~pairs | (distances >= least), axis=(1, 2))
    near = jnp.sum(jnp.where(pairs & ~inside, jnp.exp(-((distances / CROWDED) ** 2)), 0.0), axis=(1, 2))

    own = jnp.einsum('oij,tsj->tosi', surroundings.rotations, fractional) + surroundings.translations[None, :, None]
    _, own_distances, _ = nearest_steps(fractional[:, None, :, None], own[:, :, None], metric)
    number = jnp.arange(len(surroundings.rotations))
    counted = (number > 0) & (number < surroundings.operations)
    pairs = counted[None, :, None, None] & present[:, None, :, None] & present[:, None, None]
    kept &= jnp.all(~pairs | (own_distances >= CONTACT), axis=(1, 2, 3))
    can_grow = atoms.free[parents[:, 0]] > 0
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
    halves = on_centre(atoms, surroundings) & (atoms.molecules == 0)  # both are one complex, whose metal cannot move
    same |= (operation == surroundings.keeper)[None] & halves[:, None] & halves[atom][None]
    pinned = halves & (number == 0)
    attached = jnp.where(atoms.elements == CARBON, atoms.free, 0).astype(jnp.float32)
    reaches = jnp.asarray(REACHES)[atoms.elements] + HYDROGEN_REACH * attached
    polar = (atoms.elements == NITROGEN) | (atoms.elements == OXYGEN)
    least = reaches[:, None] + reaches[atom][None] - jnp.where(polar[:, None] & polar[atom][None], HYDROGEN_BRIDGE, 0.0)
    members = jax.nn.one_hot(atoms.molecules, len(number), dtype=jnp.float32) * present[:, None].astype(jnp.float32)
    members = members / jnp.maximum(jnp.sum(members, axis=0), 1)[None]

    def measure(positions):
        fractional = positions @ surroundings.inverse
        turned = jnp.einsum('mij,mj->mi', surroundings.rotations[operation], fractional[atom])
        return nearest_steps(fractional[:, None], (turned + surroundings.translations[operation])[None], metric)

    metric = surroundings.axes @ surroundings.axes.T
    _, lengths, unmoved = measure(atoms.positions)
    held = pairs & same & unmoved & (lengths < RIGID)

    def move(positions, strength):
        steps, distances, unmoved = measure(positions)
        wanted = jnp.where(same & unmoved, APART[-1], least)
        missing = jnp.where(held, lengths - distances, strength * jnp.maximum(wanted - distances, 0))
        shares = jax.lax.optimization_barrier(jnp.where(pairs, missing / (distances + SHORTEST), 0))
        moves = jnp.stack([jnp.sum(shares * each, axis=1) for each in steps], axis=1) @ surroundings.axes
        moves = RELAXED * moves
        whole = members @ (jnp.sign(members).T @ moves)  # what acts between atoms of one molecule cancels
        whole = jnp.where(halves[:, None], 0, whole)
        return positions + jnp.where(pinned[:, None], 0, moves + whole), None

    strengths = jnp.clip(jnp.linspace(3.0, -0.8, RELAXATIONS), 0, 1)  # in the end bonds alone
    positions, _ = jax.lax.scan(move, atoms.positions, strengths)
    return atoms._replace(positions=positions)


def on_centre(atoms: Molecules, surroundings: Surroundings) -> Array:
    """Whether the first atom is a metal on an inversion centre, so that two of its images coincide."""
    return (surroundings.keeper > 0) & (atoms.elements[0] >= FIRST_METAL)


def _images(surroundings, capacity):
    """The atom and the operation of each place in the cell, `(capacity,)` each."""
    slots = jnp.arange(capacity)
    wanted = jnp.maximum(surroundings.wanted, 1)
    return slots % wanted, slots // wanted


def nearest_steps(first: Array, second: Array, metric: Array) -> tuple[list[Array], Array, Array]:
    """From the nearest lattice images of points to other points.

    The nearest image is found by rounding, which is right for distances below half of the cell's least width.

    Args:
        first: `(..., 3)`, fractional.
        second: `(..., 3)`, fractional; of a shape that broadcasts with the first.
        metric: `(3, 3)`, scalar products of the edges of the cell, Å².

    Returns:
        Three fractional components, distances in Å, and whether the nearest image is the point itself.
    """
    steps = [first[..., axis] - second[..., axis] for axis in range(3)]  # one loop over pairs, without small products
    shifts = [jnp.round(each) for each in steps]
    x, y, z = steps = [step - shift for step, shift in zip(steps, shifts, strict=True)]
    squares = x * (metric[0, 0] * x + 2 * (metric[0, 1] * y + metric[0, 2] * z))
    squares += y * (metric[1, 1] * y + 2 * metric[1, 2] * z) + metric[2, 2] * z * z
    unmoved = (shifts[0] == 0) & (shifts[1] == 0) & (shifts[2] == 0)
    return steps, jnp.sqrt(jnp.maximum(squares, 0)), unmoved


def hydrogens(atoms: Molecules, surroundings: Surroundings) -> tuple[Array, Array]:
    """Places of hydrogen at the free valences, and which of them are taken.

    Returns:
        `(n, 3, 3)` Cartesian, three for each atom, and `(n, 3)` bool.
    """
    number = jnp.arange(len(atoms.free))
    frame = jnp.stack([atoms.inward, atoms.across, jnp.cross(atoms.inward, atoms.across)], axis=1)
    directions = jnp.einsum('ndc,ncx->ndx', jnp.asarray(DIRECTIONS)[atoms.kinds], frame)
    exists = jnp.arange(3)[None] < jnp.asarray(CHOICES)[atoms.kinds][:, None]
    places = atoms.positions[:, None] + HYDROGEN_BOND * directions
    distances = jnp.linalg.norm(places[:, :, None] - atoms.positions[None, None], axis=-1)
    others = (number < atoms.number)[None, None] & (number[:, None] != number[None])[:, None]
    taken = jnp.any(others & (distances < HYDROGEN_APART), axis=-1)
    opposite = 2 * atoms.positions[:1] - atoms.positions  # of a complex with a centre, the other half
    distances = jnp.linalg.norm(places[:, :, None] - opposite[None, None], axis=-1)
    half = on_centre(atoms, surroundings) & (number < atoms.number) & (atoms.molecules == 0)
    taken |= jnp.any(half[None, None] & (distances < HYDROGEN_APART), axis=-1)
    free = exists & ~taken & (number < atoms.number)[:, None]
    free &= jnp.cumsum(free, axis=1) <= atoms.free[:, None]
    return places, free


def _direction(height, turn):
    """Unit vectors `(n, 3)`, uniform over the sphere, of numbers from 0 to 1."""
    height, angle = 2 * height - 1, 2 * np.pi * turn
    radius = jnp.sqrt(1 - height**2)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), height], axis=-1)


def _unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
