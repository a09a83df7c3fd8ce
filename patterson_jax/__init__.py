"""The phase problem: crystals from measured intensities, and atoms from Patterson maps, without phases.

A crystal:

    import patterson_jax as pj

    file = pj.read_crystal('crystal.hkl')  # with crystal.ins beside it
    data = file.measurements
    solution = pj.solve_crystal(data.hkl, data.intensities, data.sigmas, file.cell, formula='C12H22O11')
    print(solution.verdict, solution.space_group, solution.atoms)

A Patterson map:

    patterson, density = pj.simulate(pj.read_xyz('ozone.xyz'), voxel_size=0.3)
    answer = pj.solve(patterson, num_atoms=3, voxel_size=0.3)
    print(answer.verdict, answer.positions)
    answer.write('solved')

`simulation` makes cases, `learning` trains `networks` on them, `crystal` has the physics of crystals, `solving` finds
the atoms, `files` reads and writes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from patterson_jax.version import __version__ as __version__

# The public names and their modules. A module is imported when a name is first used: JAX alone takes a second.
_MODULES = {
    'Answer': 'answers',
    'CrystalSolution': 'crystal.structure',
    'InputError': 'errors',
    'Map': 'files.maps',
    'Network': 'solving.attempt',
    'Simulated': 'simulation.molecules',
    'UnitCell': 'crystal.cell',
    'enable_compilation_cache': 'compilation_cache',
    'load_network': 'weights',
    'read_crystal': 'files.crystals',
    'read_map': 'files.maps',
    'read_xyz': 'files.structures',
    'simulate': 'simulation.molecules',
    'solve': 'answers',
    'solve_crystal': 'crystals',
}

__all__ = ['__version__', *_MODULES]

if TYPE_CHECKING:
    from patterson_jax.answers import Answer as Answer
    from patterson_jax.answers import solve as solve
    from patterson_jax.compilation_cache import enable_compilation_cache as enable_compilation_cache
    from patterson_jax.crystal.cell import UnitCell as UnitCell
    from patterson_jax.crystal.structure import CrystalSolution as CrystalSolution
    from patterson_jax.crystals import solve_crystal as solve_crystal
    from patterson_jax.errors import InputError as InputError
    from patterson_jax.files.crystals import read_crystal as read_crystal
    from patterson_jax.files.maps import Map as Map
    from patterson_jax.files.maps import read_map as read_map
    from patterson_jax.files.structures import read_xyz as read_xyz
    from patterson_jax.simulation.molecules import Simulated as Simulated
    from patterson_jax.simulation.molecules import simulate as simulate
    from patterson_jax.solving.attempt import Network as Network
    from patterson_jax.weights import load_network as load_network
else:

    def __getattr__(name: str) -> Any:
        """Imports a public name from its module when it is first used.

        First it sets the flags that keep JAX from computing wrongly, because JAX reads its flags only once.
        """
        if name not in _MODULES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        importlib.import_module(f'{__name__}.compiler').avoid_wrong_fusion()
        value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _MODULES.keys())
