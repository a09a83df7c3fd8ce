"""Finds the configs and the trained networks that come with the code.

They are inside an installed package, and beside the package in a clone of the repository (setup.py copies them). A
package may be without networks; then they are fetched (`releases`).
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

from patterson_jax.errors import InputError, require
from patterson_jax.releases import fetched_network, read_release

PACKAGE = Path(__file__).parent


def shipped_directory(kind: str) -> Path:
    """The directory `kind` that comes with the code: 'configs' or 'pretrained'."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def config_names() -> list[str]:
    """Names of the configs that come with the code."""
    return sorted(path.stem for path in shipped_directory('configs').glob('[!_]*.py'))


def network_names() -> list[str]:
    """Names of the trained networks that come with the code."""
    return sorted(path.name for path in shipped_directory('pretrained').glob('*') if (path / 'checkpoints').is_dir())


def find_config(name: str) -> Path:
    """The config file with a path or, if there is none, the shipped config with that name.

    Raises:
        InputError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name in config_names():
        return shipped_directory('configs') / f'{name}.py'
    if Path(name).stem in config_names():
        raise InputError(f'there is no such file; the config that comes with the code is called {Path(name).stem!r}')
    raise InputError(f'there is no such file, nor a config of that name; there are {", ".join(config_names())}')


def find_network(name: str | Path) -> Path:
    """The directory of a run with a path or, if there is none, of the shipped network with that name.

    A network that this version has, but that is not installed, is fetched once and kept in the user's cache.

    Raises:
        InputError: there is neither, or the network cannot be fetched.
    """
    require(isinstance(name, (str, Path)), 'the network', name, 'the name of a network, or the directory of a run')
    if Path(name).is_dir():
        return Path(name)
    if str(name) in network_names():
        return shipped_directory('pretrained') / name
    release = read_release()
    if str(name) in release.networks:
        return fetched_network(str(name), release)
    names = ', '.join(sorted({*network_names(), *release.networks}))
    raise InputError(f'{name}: no such directory, nor a network that comes with the code: {names}')


def make_configs_importable(file: Path) -> None:
    """Makes `from configs import base` work in a config file, in any directory.

    It imports the shipped configs, unless the file is a user's own and another package is called `configs`.
    """
    shipped = shipped_directory('configs')
    if file.resolve().parent != shipped.resolve() and importlib.util.find_spec('configs') is not None:
        return
    known = sys.modules.get('configs')
    if known is not None and shipped in map(Path, known.__path__):
        return
    spec = importlib.machinery.ModuleSpec('configs', None, is_package=True)
    spec.submodule_search_locations = [str(shipped)]
    sys.modules['configs'] = importlib.util.module_from_spec(spec)
