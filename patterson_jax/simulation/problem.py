"""The problem that is to be solved: how many atoms, of what size, where, on what grid (paper, sections 2.1 and 2.4).

Lengths are in voxels. Voxel i of an axis fills [i, i + 1), so the centre of the box lies at `grid_size / 2`, between
two voxels. Positions are relative to that centre: inversion through it is a change of sign.
"""

import dataclasses
import math

from patterson_jax.errors import is_real, is_whole, require

TARGETS = ('both', 'original')
ORIGINS = ('centre', 'corner')
# Sequential insertion of equal spheres at random jams at this filled fraction of space (Torquato, Uche and Stillinger,
# Phys. Rev. E 74, 061308, 2006).
JAMMING_FRACTION = 0.384


@dataclasses.dataclass(frozen=True)
class Problem:
    """One family of cases. Checks itself: raises InputError, which is a ValueError.

    Attributes:
        grid_size: voxels along each edge of the cubic maps; even, so that inversion maps voxels to voxels.
        num_atoms: equal atoms in a case.
        atom_radius: radius of an atom's sphere.
        min_separation: least distance between the centres of two atoms.
        box_edge: edge of the inner box in which the centres are drawn, before centring.
        centred: move the mean of the positions to the centre of the box (2.4.1).
        target: 'both', the network's target is (A + B) / 2 with B the inverse of A (2.4.2); 'original', it is A / 2.
        input_scale: height that the self-vector peak of one atom has in the network's input.
        origin: where the network's input has the origin of the Patterson map: 'centre', at voxel grid_size / 2, or
            'corner', at voxel 0.
        empty_corner: edge of the corner of the inner box, and of the opposite one, in which neither an atom nor an
            inverse of one may lie in training, and in which one must lie in validation and evaluation; 0: no such
            corner. The paper's Discussion proposes it as a test of memorisation.
        filled_corner: edge of the corner in which an atom or an inverse must lie in every case; 0: no such corner.
        noise: standard deviation of the measured amplitudes |F| as a part of them.
        resolution: amplitudes are measured up to this |h|, the others are zero in the Patterson map; None: all are.
    """

    grid_size: int = 40
    num_atoms: int = 10
    atom_radius: float = 1.0
    min_separation: float = 3.0
    box_edge: float = 12.25
    centred: bool = True
    target: str = 'both'
    input_scale: float = 0.7
    origin: str = 'centre'
    empty_corner: float = 0.0
    filled_corner: float = 0.0
    noise: float = 0.0
    resolution: float | None = None

    def __post_init__(self):
        def check(field, condition, allowed):
            require(condition, field, getattr(self, field), allowed)

        def positive(value):
            return is_real(value) and value > 0

        even = is_whole(self.grid_size) and self.grid_size >= 8 and self.grid_size % 2 == 0
        check('grid_size', even, 'an even number, 8 or more')
        check('num_atoms', is_whole(self.num_atoms) and self.num_atoms >= 1, 'a whole number, 1 or more')
        fits = positive(self.atom_radius) and 2 * self.atom_radius < self.grid_size
        check('atom_radius', fits, f'more than 0 and less than half of grid_size, {self.grid_size / 2:g} voxels')
        not_negative = is_real(self.min_separation) and self.min_separation >= 0
        check('min_separation', not_negative, 'a number of voxels, 0 or more')
        widest = self.grid_size - 2 * self.atom_radius
        fits = positive(self.box_edge) and self.box_edge <= widest
        check('box_edge', fits, f'more than 0 and at most grid_size - 2 * atom_radius = {widest:g} voxels')
        check('target', self.target in TARGETS, f'one of {", ".join(TARGETS)}')
        check('input_scale', positive(self.input_scale), 'a positive number')
        check('origin', self.origin in ORIGINS, f'one of {", ".join(ORIGINS)}')
        for field in ('empty_corner', 'filled_corner'):
            fits = is_real(getattr(self, field)) and 0 <= getattr(self, field) <= self.box_edge / 2
            check(field, fits, f'from 0, for none, to half of box_edge, {self.box_edge / 2:g} voxels')
        check('noise', is_real(self.noise) and 0 <= self.noise <= 1, 'from 0 to 1')
        complete = self.resolution is None or (is_real(self.resolution) and self.resolution >= 1)
        check('resolution', complete, 'a number, 1 or more, or None where every amplitude is measured')
        check('filled_corner', not (self.empty_corner and self.filled_corner), '0 where there is an empty_corner')
        check(
            'num_atoms',
            self.num_atoms == 1 or self.filled_fraction <= JAMMING_FRACTION,
            f'smaller: spheres {self.min_separation:g} voxels wide with their centres at random in a box of edge '
            f'{self.box_edge:g} jam when they fill {JAMMING_FRACTION:.1%} of the space, and these would fill '
            f'{self.filled_fraction:.1%}; or take a larger box_edge or a smaller min_separation',
        )

    @property
    def testing(self) -> 'Problem':
        """The problem of validation and evaluation: the corner that training leaves empty is filled."""
        if not self.empty_corner:
            return self
        return dataclasses.replace(self, empty_corner=0.0, filled_corner=self.empty_corner)

    @property
    def atom_volume(self) -> float:
        """Volume of one atom in voxels, which is also its total density."""
        return 4 / 3 * math.pi * self.atom_radius**3

    @property
    def filled_fraction(self) -> float:
        """Part of the inner box, widened by half a sphere on each side, that the exclusion spheres fill."""
        spheres = self.num_atoms * math.pi / 6 * self.min_separation**3
        return spheres / (self.box_edge + self.min_separation) ** 3
