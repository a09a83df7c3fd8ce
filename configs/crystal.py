"""A crystal from its measured intensities: a SHELX .hkl with its .ins, or a CIF that holds its reflections.

    python run_experiment.py --config=configs/crystal.py --mode=solve --input=NAME.hkl --output=solved

writes NAME.html to look at, NAME.res with NAME.hkl beside it, to refine at once in SHELXL or Olex2, NAME.cif,
NAME.json, NAME_density.ccp4 and NAME.png. It takes seconds for a usual crystal on a laptop, after up to 20 s in which
programs are compiled for the first time.

What files do not say, or say wrongly, is given by flags, which lead:

    --config.crystal.cell='7.77 8.72 10.86 90 102.98 90' --config.crystal.formula=C12H22O11 --config.crystal.laue=2/m
"""

import ml_collections
from ml_collections import config_dict


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration; it has no variants."""
    if variant:
        raise ValueError(f'{variant!r} is no variant of configs/crystal.py; it has none')
    config = ml_collections.ConfigDict()

    # Fixes the random starts.
    config.seed = 0

    config.crystal = ml_collections.ConfigDict()
    config.crystal.cell = ''  # 'a b c alpha beta gamma', Å and degrees; '': that of the files
    config.crystal.formula = ''  # as 'C10H10F2N4'; only the proportions count; '': that of the files, or any
    config.crystal.laue = ''  # as '2/m'; '': found in the data, tested against what the files claim
    config.crystal.wavelength = config_dict.placeholder(float)  # Å; None: that of the files
    config.crystal.block = ''  # of a CIF, where several have reflections
    config.crystal.max_starts = 48  # most of them; they end when the crystal is solved
    config.crystal.max_seconds = 0.0  # no start is judged after so many; 0: no limit, results do not vary
    return config
