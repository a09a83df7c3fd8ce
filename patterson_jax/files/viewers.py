"""Scripts for viewers: UCSF ChimeraX."""

import re
from pathlib import Path

from patterson_jax.writing import write_whole


def write_chimerax(path: Path, level: float, sphere_radius: float) -> None:
    """Writes NAME.cxc, a script with which UCSF ChimeraX shows NAME.pdb and NAME_density.ccp4 of the same directory.

    Args:
        path: of the file; its name gives NAME.
        level: of the map's transparent surface.
        sphere_radius: of the spheres that represent atoms, Å.
    """
    lines = [
        '# Atoms as spheres in the transparent surface of their map. In an empty session they become models #1 and #2.',
        f'open {_chimerax_name(f"{path.stem}.pdb")}',
        f'open {_chimerax_name(f"{path.stem}_density.ccp4")}',
        'show #1 atoms',
        'style #1 sphere',
        f'size #1 atomRadius {sphere_radius:g}',
        'color #1 firebrick',
        f'volume #2 style surface step 1 level {level:g} color cornflowerblue showOutlineBox true',
        'transparency #2 60',
        'view',
    ]
    text = '\n'.join(lines) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def _chimerax_name(name):
    """A file's name for ChimeraX's `open`, which knows quotes but no escapes, and parses quoted text a second time.

    Characters that this would change become `?`, the wildcard for one character.
    """
    return '"' + re.sub(r'[":;$*\[\x00-\x1f\x7f\ud800-\udfff]|^~', '?', name) + '"'
