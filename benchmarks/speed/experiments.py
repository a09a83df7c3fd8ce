"""The problem, the network and the training that a cell measures, and the machine it runs on."""

import runpy
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import ROOT
from patterson_jax.config import validate
from patterson_jax.inspection import layer_table
from patterson_jax.learning.map_training import TrainingSettings
from patterson_jax.networks.convolution import fastest_method
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.simulation.problem import Problem


def base_sections(cell: dict) -> tuple[Problem, PattersonNet, TrainingSettings]:
    """Problem, network and training settings of configs/base.py with the cell's sizes.

    On a smaller grid the box shrinks with it, and there are fewer atoms, so that they fill no more of it.
    """
    config = runpy.run_path(str(ROOT / 'configs' / 'base.py'))['get_config']()
    base, model, training = (config[section].to_dict() for section in ('problem', 'model', 'train'))
    filled = Problem.of(**base).filled_fraction
    grid = cell.get('grid') or base['grid_size']
    box = {'grid_size': grid, 'box_edge': min(base['box_edge'], grid - 2 * base['atom_radius'])}
    most = max(1, int(filled / Problem.of(**base | box | {'num_atoms': 1}).filled_fraction + 1e-6))
    problem = Problem.of(**base | box | {'num_atoms': min(base['num_atoms'], most)})
    del model['network']
    model |= {name: cell[name] for name in model if cell.get(name)}
    training |= {'batch_size': cell.get('batch', 1)}
    return problem, PattersonNet(**model), TrainingSettings(**training)


def sections(cell: dict) -> tuple[Problem, Any, TrainingSettings]:
    """Problem, network and training settings of the config that a cell holds, or else of `base_sections`."""
    if 'config' not in cell:
        return base_sections(cell)
    config = ConfigDict(cell['config'])
    config.model.update({name: cell[name] for name in ('convolution', 'precision') if name in cell})
    config.train.batch_size = cell['batch']
    experiment = validate(config)
    return experiment.problem, experiment.model, experiment.train


def machine_cell(cell: dict) -> dict:
    """The device, the method that 'auto' chooses there, sizes of the base network and operations of its forward pass.

    The operations are those of one example.
    """
    problem, network, _ = base_sections(cell)
    grid, features, kernel = problem.grid_size, network.features, network.inner_kernel_size
    operations = sum(layer.operations for layer in layer_table(network, grid))
    auto = fastest_method((grid // 2,) * 3 + (features, 8), (kernel,) * 3 + (features, features))
    device = jax.devices()[0]
    return {
        'backend': device.platform,
        'device': device.device_kind,
        'auto': auto,
        'grid': grid,
        'features': features,
        'inner_kernel': kernel,
        'outer_kernel': network.outer_kernel_size,
        'operations': operations,
    }
