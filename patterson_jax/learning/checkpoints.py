"""Checkpoints: what they hold, which are kept, and how they are found again. No other module uses Orbax.

A checkpoint has four items: `params`, which the network's `apply` takes; the state of the `optimizer`; the resolved
`config` and the `counters` of the host, both as JSON. The latest checkpoints and the one with the lowest validation
loss are kept.

Orbax writes a checkpoint whole or not at all. We add the checksums of its files. A checkpoint whose files do not match
them is named on stderr and not used.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from patterson_jax.errors import InputError, require
from patterson_jax.learning.parallel import is_first_process, replicated, to_global, wait_for_all

VALIDATION_LOSS = 'validation_loss'
CHECKSUMS = 'checksums.json'
ITEMS = ('params', 'optimizer', 'config', 'counters')
DELETED = 'deleted'


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When to save. configs/base.py explains the fields, section `checkpoint`. Raises InputError if one is invalid."""

    every_steps: int
    keep: int

    def __post_init__(self):
        require(self.every_steps >= 1, 'every_steps', self.every_steps, '1 or more')
        require(self.keep >= 1, 'keep', self.keep, '1 or more')


class Weights(NamedTuple):
    """Trained weights.

    Attributes:
        params: what the network's `apply` takes.
        step: at which they were saved.
        config: of their training.
        counters: of that run at its latest checkpoint.
    """

    params: Any
    step: int
    config: dict
    counters: dict


class Checkpoints:
    """The checkpoints in one directory; a context manager that waits for unfinished writes when it closes.

    Damaged checkpoints are not used. With `read_only`, checkpoints without the state of the optimiser are accepted.
    Without it, damaged checkpoints are renamed `STEP.damaged`. Raises InputError if all checkpoints are damaged.
    """

    def __init__(self, directory: Path, keep: int = 1, read_only: bool = False):
        self.directory, self.read_only = Path(directory).absolute(), read_only
        self.steps = _sound_steps(self.directory, read_only)
        self.unsealed: list[int] = []

        def loss(metrics):
            return metrics[VALIDATION_LOSS]

        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=loss,
            best_mode='min',
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # left by a run that was killed while it saved
            # Old checkpoints are moved there at once, so that half of one is never left.
            todelete_subdir=None if read_only else DELETED,
            save_interval_steps=0 if read_only else 1,
            read_only=read_only,
            lightweight_initialize=read_only,  # else Orbax would read the losses of damaged checkpoints too
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
        with _only_errors():  # Orbax warns that it only reads, as it was told
            self.manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._seal()
        self.manager.close()

    @property
    def latest_step(self) -> int | None:
        """The last saved step, None without checkpoints."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The saved step with the lowest validation loss, None without checkpoints."""

        def loss(step):
            return (self.manager.metrics(step) or {}).get(VALIDATION_LOSS, math.inf)

        return min(sorted(self.steps, reverse=True), key=loss, default=None)

    def save(
        self,
        step: int,
        params: Any,
        optimizer: Any,
        config: dict,
        counters: dict,
        validation_loss: float = math.inf,
    ) -> None:
        """Starts to write a checkpoint. The arrays are copied first, so they may be donated at once.

        A run can continue from a checkpoint without a validation loss, but such a checkpoint is the best one only if
        there is no other.
        """
        self._seal()
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(to_global(params)),
            optimizer=ocp.args.StandardSave(to_global(optimizer)),
            config=ocp.args.JsonSave(config),
            counters=ocp.args.JsonSave(counters),
        )
        self.manager.save(step, args=items, metrics={VALIDATION_LOSS: validation_loss})
        self.unsealed.append(step)
        self.steps = sorted({*self.manager.all_steps(), step})

    def _seal(self):
        """Waits for the last checkpoint to be complete, writes its checksums, and removes what it replaces."""
        self.manager.wait_until_finished()
        if is_first_process() and not self.read_only:
            shutil.rmtree(self.directory / DELETED, ignore_errors=True)
        for step in self.unsealed:
            place = self.directory / str(step)
            if is_first_process() and place.is_dir():
                part = place / f'.{CHECKSUMS}.part'
                part.write_text(json.dumps(_checksums(place), indent=1))
                part.replace(place / CHECKSUMS)
        self.unsealed = []

    def restore(self, step: int, **templates: Any) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Args:
            step: of the checkpoint.
            **templates: the items to read. For `params` and `optimizer` a tree of arrays of the right shapes (from
                `jax.eval_shape`, for example; values are not used), for `config` and `counters` any value.

        Returns:
            The items. Arrays are replicated over all devices of this run, whatever the devices at saving were.

        Raises:
            InputError: the checkpoint is damaged, has other shapes, is from an incompatible Orbax, or has weights that
                are not finite.
            OSError: the system does not let us read a file.
        """

        def restore_of(item, template):
            if item in ('config', 'counters'):
                return ocp.args.JsonRestore()
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated()), template
            )
            return ocp.args.StandardRestore(abstract)

        wanted = {item: restore_of(item, template) for item, template in templates.items()}
        place = self.directory / str(step)
        try:
            items = dict(self.manager.restore(step, args=ocp.args.Composite(**wanted)))
        except Exception as error:  # Orbax and TensorStore raise exceptions of many kinds
            for item in templates:
                _require_readable(place / item)
            raise InputError(f'{place}: {self._explanation(error, place, templates)}') from error
        if 'params' in items:
            _require_finite(place, items['params'])
        return items

    def _explanation(self, error, place, templates):
        """Why a checkpoint could not be read, in words; it advises to remove only a damaged one."""
        remove = f'remove {place} to use the checkpoint before it'
        absent = [item for item in templates if not (place / item).is_dir()]
        if absent:
            return f'the checkpoint has no {", ".join(absent)}'
        fault = _fault(place, 'optimizer' in templates)
        if fault:
            return f'{fault}; {remove}'
        for item in sorted(templates.keys() - {'config', 'counters'}):
            difference = _difference(templates[item], self._stored_shapes(place, item))
            if difference:
                return f'its {item} are of another network: {difference}'
        reason = f'Orbax {ocp.__version__} cannot read it ({str(error).strip().partition(chr(10))[0][:200]})'
        if (place / CHECKSUMS).exists():
            return f'the checkpoint is whole, but {reason}; was it written by another version?'
        return f'the checkpoint has no checksums, and {reason}; if it was cut off, {remove}'

    def _stored_shapes(self, place, item):
        try:
            return self.manager.item_metadata(int(place.name))[item].tree
        except Exception:  # then there is nothing to compare with
            return None


def _require_readable(directory):
    """Raises OSError, which names the file, if the system does not let us read a file of the directory."""

    def stop(error):
        raise error

    for place, _, names in os.walk(directory, onerror=stop) if directory.is_dir() else ():
        for name in names:
            (Path(place) / name).open('rb').close()


def _difference(template, stored):
    """Names the first array that is not in both trees or has another shape; '' without one or if `stored` is None."""
    if stored is None:
        return ''
    asked, found = (
        {
            jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (template, stored)
    )
    for name in sorted(asked.keys() | found.keys()):
        if asked.get(name) != found.get(name):
            shapes = (f'of shape {each[name]}' if name in each else 'not there' for each in (found, asked))
            return '{} is {}, here {}'.format(name, *shapes)
    return ''


def _require_finite(place, params):
    """Raises InputError if a weight is NaN or infinite, because every result would be too."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise InputError(f'{place}: {bad} of the {leaf.size} numbers of {name} are NaN or infinite')


@contextlib.contextmanager
def _only_errors():
    """Silences all messages that are logged through absl, as those of Orbax are, except errors."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def has_checkpoint(directory: Path) -> bool:
    """Whether a directory exists and has at least one checkpoint, damaged or not."""
    places = (directory / str(step) for step in _saved_steps(directory))
    return any((place / 'params').is_dir() or (place / CHECKSUMS).exists() for place in places)


def _saved_steps(directory):
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir())


def _sound_steps(directory, read_only):
    """The steps whose checkpoints are whole. The others are renamed unless `read_only`."""
    steps, set_aside = _saved_steps(directory), not read_only
    faults = {step: _fault(directory / str(step), with_optimizer=not read_only) for step in steps}
    damaged = [f'{directory / str(step)}: {fault}' for step, fault in faults.items() if fault]
    if damaged and len(damaged) == len(steps):
        missing = any(fault.endswith('is missing') for fault in faults.values())
        if not set_aside:
            cure = 'Copy it again, or name another run'
        else:
            cure = f'{"Copy it again, or remove" if missing else "Remove"} {directory} to start afresh'
        raise InputError(f'every checkpoint is damaged: {"; ".join(damaged)}. {cure}')
    for line in damaged:
        if is_first_process():
            print(f'note: {line}; this checkpoint is not used', file=sys.stderr)
    if set_aside:
        wait_for_all('checkpoints checked')  # before one process moves files that another one reads
    for step, fault in faults.items():
        if fault and set_aside and is_first_process():
            place = directory / str(step)
            aside = place.with_name(f'{step}.damaged')
            shutil.rmtree(aside, ignore_errors=True)  # an earlier damaged checkpoint of the same step
            place.rename(aside)
    if set_aside:
        wait_for_all('checkpoints set aside')
    return [step for step, fault in faults.items() if not fault]


def _fault(place, with_optimizer):
    """What is wrong with the files of a checkpoint; '' if nothing is.

    A checkpoint without checksums, from a run that was killed before it wrote them, is whole if its items are there.
    The state of the optimiser may be missing altogether unless `with_optimizer`.
    """
    seal = place / CHECKSUMS
    if not seal.exists():
        missing = [item for item in (*ITEMS, 'metrics') if not (place / item).is_dir()]
        return f'{", ".join(missing)} is missing' if missing else _fault_of_metrics(place / 'metrics' / 'metrics')
    try:
        expected = dict(json.loads(seal.read_text()))
    except (ValueError, TypeError):
        return f'{CHECKSUMS} is damaged'
    passed_on = not with_optimizer and not (place / 'optimizer').exists()
    for name, checksum in expected.items():
        if passed_on and Path(name).parts[0] == 'optimizer':
            continue
        if not (place / name).is_file():
            return f'{name} is missing'
        if _checksum(place / name) != checksum:
            return f'{name} is damaged'
    return ''


def _fault_of_metrics(path):
    """What is wrong with the losses of a checkpoint. Orbax reads those of all checkpoints before we ask for any."""
    if not path.exists():
        return f'metrics/{path.name} is missing'
    try:
        return '' if isinstance(json.loads(path.read_bytes()), dict) else f'metrics/{path.name} is damaged'
    except ValueError:
        return f'metrics/{path.name} is damaged'


def _checksums(place):
    files = sorted(path for path in place.rglob('*') if path.is_file() and CHECKSUMS not in path.name)
    return {str(path.relative_to(place)): _checksum(path) for path in files}


def copy_checkpoint(source: Path, target: Path, with_optimizer: bool) -> None:
    """Copies a checkpoint without the path that Orbax noted when it wrote it, and writes new checksums.

    Args:
        source: directory of the checkpoint.
        target: directory to make.
        with_optimizer: whether to copy the state of the optimiser, which a run needs to continue.
    """
    left_out = ('commit_success*',) if with_optimizer else ('commit_success*', 'optimizer')
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*left_out))
    (target / CHECKSUMS).write_text(json.dumps(_checksums(target), indent=1))


def _checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_checkpoints(directory: Path) -> Path:
    """The directory of checkpoints, given either itself or the workdir of its run.

    Raises:
        InputError: there is no checkpoint.
    """
    for candidate in (Path(directory) / 'checkpoints', Path(directory)):
        if has_checkpoint(candidate):
            return candidate
    raise InputError(f'{directory}: it has no checkpoint; train first, or name a run that has one')
