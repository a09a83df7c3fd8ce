"""The one place that knows Orbax: what a checkpoint holds, which ones are kept, how one is found again.

A checkpoint has four items: the step's `params` and `optimizer` state, and as JSON the resolved `config` and the
`counters` of the host (step, seconds trained). Kept are the latest ones and the best by validation loss.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from patterson_jax.errors import InputError, require
from patterson_jax.learning.parallel import replicated

VALIDATION_LOSS = 'validation_loss'


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When to save; the fields are explained in configs/base.py, section `checkpoint`. Raises InputError."""

    every_steps: int
    keep: int

    def __post_init__(self):
        require(self.every_steps >= 1, 'every_steps', self.every_steps, '1 or more')
        require(self.keep >= 1, 'keep', self.keep, '1 or more')


class Checkpoints:
    """The checkpoints in one directory, a context manager that waits for writes under way when it closes."""

    def __init__(self, directory: Path, keep: int = 1, read_only: bool = False):
        def loss(metrics):
            return metrics[VALIDATION_LOSS]

        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(get_metric_fn=loss, reverse=True, n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=loss,
            best_mode='min',
            create=not read_only,
            read_only=read_only,
        )
        handlers = {
            'params': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'config': ocp.JsonCheckpointHandler(),
            'counters': ocp.JsonCheckpointHandler(),
        }
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item, handler in handlers.items():
            save = ocp.args.JsonSave if item in ('config', 'counters') else ocp.args.StandardSave
            restore = ocp.args.JsonRestore if item in ('config', 'counters') else ocp.args.StandardRestore
            registry.add(item, save, handler)
            registry.add(item, restore, handler)
        self.directory = Path(directory).absolute()
        self.manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.manager.close()

    @property
    def latest_step(self) -> int | None:
        """The last step saved, None if there is none."""
        return self.manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss, None if there is none."""
        return self.manager.best_step()

    def save(
        self, step: int, params: Any, optimizer: Any, config: dict, counters: dict, validation_loss: float
    ) -> None:
        """Starts to write a checkpoint; the arrays are copied first, so they may be donated at once."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            config=ocp.args.JsonSave(config),
            counters=ocp.args.JsonSave(counters),
        )
        self.manager.save(step, args=items, metrics={VALIDATION_LOSS: validation_loss})

    def restore(self, step: int, **templates: Any) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Args:
            step: which one.
            **templates: for each item wanted, for `params` and `optimizer` a tree of that shape (values are not
                read, `jax.eval_shape` will do), for `config` and `counters` anything.

        Returns:
            The items; arrays are replicated over all devices of this run, however many there were at saving.

        Raises:
            InputError: the checkpoint is damaged, or is not of these shapes.
        """

        def restore_of(item, template):
            if item in ('config', 'counters'):
                return ocp.args.JsonRestore()
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated()), template
            )
            return ocp.args.StandardRestore(abstract)

        wanted = {item: restore_of(item, template) for item, template in templates.items()}
        try:
            return dict(self.manager.restore(step, args=ocp.args.Composite(**wanted)))
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f'{self.directory / str(step)}: the checkpoint cannot be read ({reason}); remove that directory to use '
                'the one before it'
            ) from error


def has_checkpoint(directory: Path) -> bool:
    """Whether there is a directory that holds at least one checkpoint."""
    return directory.is_dir() and any(
        entry.name.isdigit() and (entry / 'params').is_dir() for entry in directory.iterdir()
    )


def find_checkpoints(directory: Path) -> Path:
    """The directory of checkpoints meant by a run's workdir or by that directory itself.

    Raises:
        InputError: neither holds a checkpoint.
    """
    for candidate in (Path(directory) / 'checkpoints', Path(directory)):
        if has_checkpoint(candidate):
            return candidate
    raise InputError(f'{directory}: no checkpoint there; train first, or name a run with --checkpoint')
