"""The problem that is to be solved: how many atoms, of what size, where, on what grid (paper, sections 2.1 and 2.4).

Lengths are in voxels. Voxel i of an axis fills [i, i + 1), so the centre of the box lies at `grid_size / 2`, between
two voxels. Positions are relative to that centre: inversion through it is a change of sign.
"""

import dataclasses
import math
from typing import Any, Self

from patterson_jax.errors import is_real, is_whole, require
from patterson_jax.simulation.encoding import Encoding
from patterson_jax.simulation.measurement import Measurement

# Sequential insertion of equal spheres at random jams at this filled fraction of space (Torquato, Uche and Stillinger,
# Phys. Rev. E 74, 061308, 2006).
JAMMING_FRACTION = 0.384


@dataclasses.dataclass(frozen=True)
class Problem:
    """A family of cases. Raises InputError, which is a ValueError, if a field is invalid.

    Attributes:
        grid_size: number of voxels along each edge of the cubic maps; even, so that inversion maps voxels to voxels.
        num_atoms: number of equal atoms in a case.
        atom_radius: radius of an atom's sphere, voxels.
        min_separation: least distance between the centres of two atoms, voxels.
        box_edge: edge of the inner box in which the centres are drawn, before centring, voxels.
        centred: whether the mean of the positions moves to the centre of the box (2.4.1).
        empty_corner: edge of the corner of the inner box, and of the opposite one, in which neither an atom nor an
            inverse of one may lie in training, and in which one must lie in validation and evaluation; 0: no such
            corner. The paper's Discussion proposes it as a test of memorisation.
        filled_corner: edge of the corner in which an atom or an inverse must lie in every case; 0: no such corner.
        measurement: how the amplitudes are measured.
        encoding: how a network is fed.
    """

    grid_size: int = 40
    num_atoms: int = 10
    atom_radius: float = 1.0
    min_separation: float = 3.0
    box_edge: float = 12.25
    centred: bool = True
    empty_corner: float = 0.0
    filled_corner: float = 0.0
    measurement: Measurement = dataclasses.field(default_factory=Measurement)
    encoding: Encoding = dataclasses.field(default_factory=Encoding)

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
        for field in ('empty_corner', 'filled_corner'):
            fits = is_real(getattr(self, field)) and 0 <= getattr(self, field) <= self.box_edge / 2
            check(field, fits, f'from 0, for none, to half of box_edge, {self.box_edge / 2:g} voxels')
        check('filled_corner', not (self.empty_corner and self.filled_corner), '0 where there is an empty_corner')
        check(
            'num_atoms',
            self.num_atoms == 1 or self.filled_fraction <= JAMMING_FRACTION,
            f'smaller: spheres {self.min_separation:g} voxels wide with their centres at random in a box of edge '
            f'{self.box_edge:g} jam when they fill {JAMMING_FRACTION:.1%} of the space, and these would fill '
            f'{self.filled_fraction:.1%}; or take a larger box_edge or a smaller min_separation',
        )

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """A problem from the fields of a config's section `problem`, those of its parts included. Raises InputError."""
        return cls().changed(**fields)

    def changed(self, **fields: Any) -> Self:
        """The problem with other values of some fields of its own or of its parts. Raises InputError."""
        parts = {}
        for name, part in PARTS.items():
            own = {field: fields.pop(field) for field in field_types(part) if field in fields}
            parts[name] = dataclasses.replace(getattr(self, name), **own)
        return dataclasses.replace(self, **(parts | fields))

    @property
    def fields(self) -> dict[str, Any]:
        """All fields by name, with those of its parts."""
        parts = [dataclasses.asdict(getattr(self, name)) for name in PARTS]
        own = {name: getattr(self, name) for name in field_types(Problem) if name not in PARTS}
        return own | {name: value for part in parts for name, value in part.items()}

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


PARTS: dict[str, type] = {'measurement': Measurement, 'encoding': Encoding}


def field_types(kind: type) -> dict[str, Any]:
    """The types of a dataclass's own fields."""
    return {field.name: field.type for field in dataclasses.fields(kind)}


def problem_field_types() -> dict[str, Any]:
    """The types of all fields of a problem, with those of its parts."""
    own = {name: kind for name, kind in field_types(Problem).items() if name not in PARTS}
    return own | {name: kind for part in PARTS.values() for name, kind in field_types(part).items()}
