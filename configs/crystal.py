"""A crystal from its measured intensities: a SHELX .hkl with its .ins, or a CIF that holds its reflections.

    python run_experiment.py --config=configs/crystal.py --mode=solve --input=NAME.hkl --output=solved

writes NAME.html to look at, NAME.res and NAME.hkl to refine at once in SHELXL or Olex2, NAME.cif, NAME.json,
NAME_density.ccp4 and NAME.png. A usual crystal takes seconds on a laptop. The first time, compilation takes some
seconds more.

Flags give what the files do not say or say wrongly; they take precedence:

    --config.crystal.cell='7.77 8.72 10.86 90 102.98 90' --config.crystal.formula=C12H22O11 --config.crystal.laue=2/m
"""

import ml_collections
from ml_collections import config_dict


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration; it has no variants."""
    if variant:
        raise ValueError(f'{variant!r} is not a variant of configs/crystal.py; it has none')
    config = ml_collections.ConfigDict()

    # Fixes the random starts.
    config.seed = 0

    config.crystal = ml_collections.ConfigDict()
    config.crystal.cell = ''  # 'a b c alpha beta gamma', Å and degrees; '': that of the files
    config.crystal.formula = (
        ''  # best of the cell, like 'C20H20F4N8', or a part of it; '': the files'; 'any': not known
    )
    config.crystal.laue = ''  # like '2/m'; '': found from the data and the claims of the files
    config.crystal.wavelength = config_dict.placeholder(float)  # Å; None: that of the files
    config.crystal.block = ''  # name of the data block, for a CIF in which several have reflections
    config.crystal.max_starts = 48  # fewer if the crystal is solved before
    config.crystal.max_seconds = 0.0  # no start is judged after these; 0: no limit, so that results do not vary
    # A learned projection finishes maps: 'none', a name or a directory; 'projection' is ours, for 1.1 to 1.5 Å.
    config.crystal.network = 'none'
    return config
