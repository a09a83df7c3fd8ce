"""The paper's network in PyTorch: its training step and forward pass."""

import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.speed.experiments import sections
from benchmarks.timing import measure, peak_resident_memory, reset_peak_memory
from patterson_jax.networks.paper import PattersonNet

STEP_SHARE = 0.75  # of a cell's seconds, for the training step; the rest is for the forward pass


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec('torch') is not None


def prepare_torch(backend: str) -> tuple[Any, str, Callable[[Any], Any]]:
    """PyTorch set to its fastest for float32, the name of its device, and how to wait for that."""
    import torch

    if backend == 'cpu':
        return torch, 'cpu', lambda result: None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    return torch, 'cuda', lambda result: torch.cuda.synchronize()


def torch_network(network: PattersonNet) -> Any:
    """The same network as a PattersonNet, in PyTorch: `(batch, 1, x, y, z)` in and out, without batch normalisation."""
    from torch import nn

    def convolution(channels_in, channels_out, kernel):
        return nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2)

    layers, channels = [], 1

    def hidden_layers(depth, kernel):
        nonlocal channels
        for _ in range(depth):
            layers.extend([convolution(channels, network.features, kernel), nn.ReLU()])
            channels = network.features

    hidden_layers(network.encoder_depth, network.outer_kernel_size)
    layers.append(nn.MaxPool3d(2))
    hidden_layers(network.inner_depth, network.inner_kernel_size)
    layers.append(nn.Upsample(scale_factor=2, mode='nearest'))
    hidden_layers(network.decoder_depth, network.outer_kernel_size)
    layers.extend([convolution(channels, 1, network.outer_kernel_size), nn.Tanh()])
    return nn.Sequential(*layers)


def random_images(batch: int, grid: int) -> np.ndarray:
    """Fixed random images `(batch, grid, grid, grid)`."""
    return np.random.default_rng(0).random((batch, grid, grid, grid), np.float32)


def torch_cell(cell: dict) -> dict:
    """PyTorch's training step and forward pass on one fixed batch, in one memory format and precision."""
    torch, device, wait = prepare_torch(cell['backend'])
    names = ('config',) if 'config' in cell else ('grid', 'features')  # PyTorch has a precision of its own
    problem, network, settings = sections({name: cell[name] for name in (*names, 'batch')})
    layout = getattr(torch, cell['format'])
    model = torch_network(network).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    images = torch.from_numpy(random_images(cell['batch'], problem.grid_size))[:, None].to(device, memory_format=layout)
    target = images * 0.5
    autocast = torch.autocast(device, torch.bfloat16, enabled=cell['precision'] == 'bfloat16')

    def step():
        optimizer.zero_grad()
        with autocast:
            loss = torch.nn.functional.mse_loss(model(images).float(), target)
        loss.backward()
        optimizer.step()
        return loss

    def forward():
        with torch.inference_mode(), autocast:
            return model(images)

    reset = reset_peak_memory if device == 'cpu' else torch.cuda.reset_peak_memory_stats
    found = {'step': measure(step, wait, cell['repeats'], STEP_SHARE * cell['seconds'], reset)}
    if device != 'cpu':
        found['step']['memory'] = torch.cuda.max_memory_allocated() / 1e6
    elif found['step']['at_rest'] is not None:
        found['step']['memory'] = peak_resident_memory()
    optimizer.zero_grad()
    gc.collect()
    found['forward'] = measure(forward, wait, cell['repeats'], (1 - STEP_SHARE) * cell['seconds'])
    return found
