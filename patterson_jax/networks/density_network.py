"""What a network is to the rest of the program, whichever it is: its maps, and what it asks of a problem."""

from typing import ClassVar

import flax.linen as nn

from patterson_jax.simulation.problem import Problem

ESTIMATES = 'estimates'  # the collection in which a network leaves those before its output, in training


class DensityNetwork(nn.Module):
    """From Patterson maps as `simulation.encoding.network_input` makes them to density maps.

    Both are `(batch, grid, grid, grid)`, grid even. A network is a subclass with `__call__(patterson, train=False)`,
    whose fields are those of the section `model` of a config and are checked in `__post_init__`, which raises
    InputError. It may leave estimates that it makes before its output in the collection ESTIMATES; they are in the
    loss with `train.early_weight`. Weights do not depend on the grid.

    Attributes:
        is_local: whether a voxel of the output depends only on a part of the input, which inspection measures.
    """

    is_local: ClassVar[bool] = True

    def check_problem(self, problem: Problem) -> None:
        """Raises InputError if the network cannot learn this problem, and names the field of the config."""

    def check_crop(self, crop: int) -> None:
        """Raises InputError if the network cannot learn from the middle of its maps, of edge `crop`, alone."""
