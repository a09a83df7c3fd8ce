"""The smallest training that shows what a training does, for the tests of several modules."""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np

from configs import quick
from patterson_jax.learning.checkpoints import Checkpoints, CheckpointSettings
from patterson_jax.learning.map_training import MapTask, TrainingSettings
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.training import train
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.simulation.problem import Problem

REPOSITORY = Path(__file__).parents[1]
PROBLEM = Problem(grid_size=12, num_atoms=2, min_separation=2.4, box_edge=4.0)
NETWORK = PattersonNet(
    features=4, outer_kernel_size=3, inner_kernel_size=3, encoder_depth=1, inner_depth=1, decoder_depth=1
)
NORMALISED = dataclasses.replace(NETWORK, batch_norm='all')
SETTINGS = TrainingSettings(
    num_steps=20,
    batch_size=8,
    learning_rate=1e-3,
    adam_epsilon=1e-8,
    max_gradient_norm=0.0,
    early_weight=0.3,
    filled_weight=0.0,
    warmup_steps=4,
    schedule='constant',  # with which a longer run is not compiled anew
    set_size=40,
    epochs_per_set=1,
    init_from='',
    max_minutes=0.0,
    num_validation=10,
    log_every=2,
    validate_every=4,
    steps_per_call=1,
)
PAPERS_SETS = dataclasses.replace(SETTINGS, set_size=16, epochs_per_set=3)
CHECKPOINTING = CheckpointSettings(every_steps=8, keep=1)
SEED = 5


def tiny_config(network=NETWORK, settings=SETTINGS):
    """The same as a config, with an evaluation as short."""
    config = quick.get_config()
    config.seed = SEED
    config.problem.update(PROBLEM.fields)
    config.model.update({field: getattr(network, field) for field in config.model if field != 'network'})
    config.train.update(dataclasses.asdict(settings))
    config.checkpoint.update(dataclasses.asdict(CHECKPOINTING))
    config.separate.update(num_peaks=4, num_swaps=20, num_chains=1, resolution=4.0)
    config.solve.update(method='network', max_attempts=1)
    config.evaluate.update(num_cases=4, batch_size=4, methods='')  # the others take long to compile
    return config


def users_environment():
    """For processes as users run them, with the compiler's own settings; they need not compile what one of them has."""
    return {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}


def as_flags(config):
    """Flags that make this config of configs/quick.py."""
    before, now = (each.to_dict() for each in (quick.get_config(), config))
    changed = {
        f'{section}.{field}': value
        for section, fields in now.items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if value != before[section][field]
    }
    return [f'--config.{name}={value}' for name, value in ({'seed': now['seed']} | changed).items()]


def command(config, workdir, mode='train'):
    """The command of a mode, with this config of configs/quick.py."""
    program, file = REPOSITORY / 'run_experiment.py', REPOSITORY / 'configs' / 'quick.py'
    return [sys.executable, program, f'--config={file}', *as_flags(config), f'--mode={mode}', f'--workdir={workdir}']


def run(workdir, settings=SETTINGS, network=NETWORK, checkpointing=CHECKPOINTING):
    """Trains, going on with what the workdir holds."""
    workdir.mkdir(exist_ok=True)
    return train(MapTask(network, PROBLEM, settings, SEED), checkpointing, workdir, {'seed': SEED})


def colours_of(picture):
    """How many colours a picture has, `(height, width, 3 or 4)` from 0 to 1."""
    levels = np.rint(255 * np.asarray(picture, np.float32)).astype(np.uint32)
    return len(np.unique(np.sum(levels << 8 * np.arange(levels.shape[-1], dtype=np.uint32), axis=-1)))


def without_timings(rows):
    timings = ('seconds', 'examples_per_second')
    return [{name: value for name, value in row.items() if name not in timings} for row in rows]


def damage(path):
    """Changes the last byte of a file, whatever it is."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def log_of(workdir):
    return without_timings(read_metrics(workdir / 'metrics.jsonl'))


def assert_same_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for first, second in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(first, second)


def saved_steps(workdir):
    """Steps of the checkpoints, from the names of their directories."""
    return sorted(int(entry.name) for entry in (workdir / 'checkpoints').iterdir() if entry.name.isdigit())


def last_checkpoint(workdir):
    """The arrays of the last checkpoint, and all of its counters that are not timings."""
    with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
        items = checkpoints.manager.restore(checkpoints.latest_step)
    counters = {name: value for name, value in items['counters'].items() if name != 'seconds'}
    return {item: jax.tree.map(np.asarray, items[item]) for item in ('params', 'optimizer')}, counters


def assert_same_run(workdir, whole_dir):
    """One run is bit for bit the other: checkpoints, what is kept of them, and the log but for timings."""
    assert log_of(workdir) == log_of(whole_dir)
    assert saved_steps(workdir) == saved_steps(whole_dir)
    ours, theirs = last_checkpoint(workdir), last_checkpoint(whole_dir)
    assert ours[1] == theirs[1]
    assert_same_trees(ours[0], theirs[0])
