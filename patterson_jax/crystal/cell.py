"""The unit cell of a crystal: Å, fractional coordinates and 1/d."""

import dataclasses
import functools

import gemmi
import numpy as np


@dataclasses.dataclass(frozen=True)
class UnitCell:
    """A unit cell: edges in Å, angles in degrees."""

    a: float
    b: float
    c: float
    alpha: float
    beta: float
    gamma: float

    @property
    def parameters(self) -> tuple[float, float, float, float, float, float]:
        """(a, b, c, α, β, γ)."""
        return dataclasses.astuple(self)

    @functools.cached_property
    def gemmi(self) -> gemmi.UnitCell:
        """The same cell for gemmi."""
        return gemmi.UnitCell(*self.parameters)

    @property
    def volume(self) -> float:
        """In Å³."""
        return self.gemmi.volume

    @property
    def orthogonalization(self) -> np.ndarray:
        """The matrix `(3, 3)` from fractional to Cartesian coordinates in Å, both column vectors."""
        return np.array(self.gemmi.orth.mat.tolist())

    @property
    def metric(self) -> np.ndarray:
        """Scalar products of the edges, `(3, 3)` in Å²."""
        return self.orthogonalization.T @ self.orthogonalization

    def inverse_spacings(self, hkl: np.ndarray) -> np.ndarray:
        """1/d of reflections `(n, 3)`, `(n,)` in 1/Å."""
        return np.linalg.norm(np.asarray(hkl) @ np.linalg.inv(self.orthogonalization), axis=-1)
