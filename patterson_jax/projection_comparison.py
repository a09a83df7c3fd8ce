"""Are new weights of the learned projection better than others? Both are given the same maps, on this machine.

The losses of two logs cannot tell: they may be of other crystals, and on a GPU maps differ from run to run. Here each
crystal gives one difference, and their spread says how much the mean of them can be trusted. Between two published
networks it is 0.013, where the loss itself has 0.17: 256 crystals tell a difference of 0.0016 from none, 64 of 0.003.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from patterson_jax.errors import InputError, require
from patterson_jax.projection_training import LATER_PASSES, ProjectionExperiment, ProjectionTask
from patterson_jax.projection_weights import load_projection_weights

AT_ONCE = 16  # crystals in one call
SURE = 2.0  # standard errors by which better weights must be better


class NotBetterError(InputError):
    """Weights are not better than others, as far as the crystals can tell. The message has the figures."""


class Comparison(NamedTuple):
    """Weights against other weights, on the same maps.

    Attributes:
        crystals: their number.
        loss_before: mean squared error of a pass with the others.
        loss: the same with these.
        standard_error: of the difference of both, from its spread over the crystals.
        later_before: how far the phases are right after `LATER_PASSES` with the others (mean cosine of their errors,
            weighted by E²).
        later: the same with these.
    """

    crystals: int
    loss_before: float
    loss: float
    standard_error: float
    later_before: float
    later: float

    @property
    def better(self) -> bool:
        """Whether the loss is lower by more than `SURE` standard errors."""
        return self.loss - self.loss_before < -SURE * self.standard_error

    def __str__(self):
        return (
            f'on {self.crystals} crystals squared error {self.loss_before:.4f} → {self.loss:.4f}, difference '
            f'{self.loss - self.loss_before:+.4f} ± {self.standard_error:.4f}; mean cosine of phase errors after '
            f'{LATER_PASSES} passes {self.later_before:.3f} → {self.later:.3f}'
        )


def compare(task: ProjectionTask, before: Any, after: Any, first: int = 0) -> Comparison:
    """Compares weights on crystals of the task's validation stream.

    Args:
        task: whose `settings.num_validation` says on how many; at least 2.
        before: variables for the network's `apply`, to compare with.
        after: those that may be better.
        first: number of the first crystal.
    """
    number = task.settings.num_validation
    require(number >= 2, 'train.num_validation', number, '2 or more to compare weights')
    make_cases, validate = _programs(task)
    at_once = min(AT_ONCE, number)
    parts: list[list[dict]] = [[], []]
    for start in range(first, first + number, at_once):
        cases = make_cases(np.arange(start, start + at_once, dtype=np.int32))
        for part, variables in zip(parts, (before, after), strict=True):
            part.append(jax.device_get(validate(variables, cases)))
    losses, later = (
        [np.concatenate([each[name] for each in part])[:number].astype(float) for part in parts]
        for name in ('loss', 'correlation_later')
    )
    error = np.std(losses[1] - losses[0], ddof=1) / np.sqrt(number)
    loss_before, loss, later_before, now = (float(np.mean(each)) for each in (*losses, *later))
    return Comparison(number, loss_before, loss, float(error), later_before, now)


@functools.lru_cache(maxsize=1)
def _programs(task):
    """What makes the cases and validates; for the next weights in the same process it is not compiled again."""
    return jax.jit(task.validation_cases), jax.jit(task.validated)


def require_better(experiment: ProjectionExperiment, published: Path, workdir: Path) -> Comparison:
    """Compares the best weights of a run with published ones of such a network.

    This is on crystals after those of the validation, by which the best checkpoint was chosen.

    Raises:
        NotBetterError: they are not better.
        InputError: the weights of one of the directories cannot be used.
    """
    before, after = (load_projection_weights(each, experiment.model).params for each in (published, workdir))
    found = compare(experiment.task, before, after, first=experiment.task.settings.num_validation)
    if not found.better:
        raise NotBetterError(
            f'{published} has weights that may be as good: {found}. The loss must be lower by {SURE:g} standard errors'
        )
    return found
