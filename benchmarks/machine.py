"""The machine on which something was measured: device, processor, cores and versions."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')


def describe_machine(device: str, backend: str) -> dict:
    """The device's name and backend, cores, processor and versions."""
    machine = {'device': device, 'backend': backend, 'cores': available_cores(), 'processor': processor()}
    return machine | {'versions': {'python': platform.python_version()} | installed_versions(LIBRARIES)}


def installed_versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those libraries that are installed."""
    return {name: importlib.metadata.version(name) for name in libraries if importlib.util.find_spec(name)}


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def slug(device: str) -> str:
    """The name of a device as file names have it."""
    return '-'.join(''.join(each if each.isalnum() else ' ' for each in device.lower()).split())
