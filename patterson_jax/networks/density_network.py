"""The interface of every network: its maps, and the conditions that it sets for a problem."""

from typing import ClassVar, Self

import flax.linen as nn

from patterson_jax.simulation.problem import Problem

ESTIMATES = 'estimates'  # the collection for a network's estimates before its output, in training


class DensityNetwork(nn.Module):
    """Maps Patterson maps, as `simulation.encoding.network_input` makes them, to density maps.

    Both are `(batch, grid, grid, grid)`, grid even. A network is a subclass with `__call__(patterson, train=False)`.
    Its fields are those of the section `model` of a config; `__post_init__` checks them and raises InputError. In
    training it may leave earlier estimates of the density in the collection ESTIMATES; the loss counts these with
    `train.early_weight`. The shapes of its weights do not depend on the grid.

    Attributes:
        is_local: whether a voxel of the output depends on a part of the input only; inspection measures that part.
        any_grid: whether its weights can be used on other grids than the one that they were trained on.
    """

    is_local: ClassVar[bool] = True
    any_grid: ClassVar[bool] = False

    def check_problem(self, problem: Problem) -> None:
        """Raises InputError if the network cannot learn this problem; the message names the field of the config."""

    def seen(self, grid_size: int) -> int:
        """Edge in voxels of the middle of maps of edge `grid_size` that goes through the network."""
        return grid_size

    def on_whole_maps(self) -> Self:
        """The same layers for whole maps, of any edge, if the network can be made so; else the network itself."""
        return self
