"""The help of each mode, for `--mode=MODE --help`: its inputs and its results."""

HELP = {
    'train': """Trains a network, or continues a run that was stopped; then evaluates it and draws the figures.

takes   --config=NAME or FILE[:variant]   quick, unrolled, … or a file of your own; quick_ablations compares runs;
                                          projection trains the learned projection of crystals
        --workdir=DIR                     default runs/CONFIG; the same command continues a run that is there
        --config.section.field=value      changes any field; configs/base.py explains each
        --sweep=N, --distributed          one of the config's sweep(); with other processes
leaves  report.html to look at; config.json, metrics.jsonl, checkpoints/, evaluation.json, figures/ in the workdir;
        of a projection, which is not evaluated, no report.html and no evaluation.json

patterson-jax --config=quick
patterson-jax --config=quick --workdir=runs/wide --config.model.features=24
""",
    'evaluate': """Scores methods on the same unseen cases.

takes   --config=NAME                     the problem and the network
        --workdir=DIR, --checkpoint=DIR   the run whose best weights to use; --checkpoint=unrolled comes with the code
        --config.evaluate.methods=LIST    network, least_squares, phase_retrieval, minimum_function, auto, truth;
                                          truth begins at the true atoms
        --config.evaluate.num_cases=N
leaves  report.html to look at; evaluation.json and figures/ in the workdir

patterson-jax --config=unrolled --mode=evaluate --checkpoint=unrolled
patterson-jax --config=base --mode=evaluate --config.evaluate.methods=least_squares,minimum_function
""",
    'simulate': """Makes the Patterson map of a molecule.

takes   --config=NAME                     the grid and the size of atoms and voxels; quick has 16³ voxels of 0.5 Å
        --input=FILE.xyz                  atoms in Å; may be repeated
        --output=DIR
        --config.problem.num_atoms=N      the number of atoms in the file, if it is not that of the config
        --config.files.voxel_size=Å       and problem.noise, problem.resolution
leaves  NAME_patterson.ccp4, NAME_density.ccp4

patterson-jax --config=quick --mode=simulate --input=molecule.xyz --output=maps --config.problem.num_atoms=3
""",
    'solve': """Solves crystals from their reflections, or Patterson maps.

a crystal: --config=crystal
takes   --input=NAME.hkl                  or CIF, .fcf, .mtz; .ins, .res or .cif beside it are read; may be repeated
        --output=DIR
        --config.crystal.cell='a b c α β γ', .formula=C12H22O11, .laue=2/m, .wavelength=Å   in place of the files'
        --config.crystal.formula=any      uses no formula, also if the files have one
        --config.crystal.max_starts=N     default 48; more for a crystal that is not solved
leaves  NAME.html to look at; NAME.res and NAME.hkl to refine; NAME.cif, NAME.json, NAME.png, NAME_density.ccp4

a Patterson map: --config=base, quick, unrolled or paper, or one of your own
takes   --input=MAP.ccp4                  or MRC, gzipped or not, its origin at the first voxel; may be repeated
        --output=DIR
        --config.problem.num_atoms=N      or --config.solve.num_atoms_known=false
        --config.problem.noise=0.1        relative errors of the amplitudes; the verdict needs them
        --config.solve.method=NAME        auto, least_squares, phase_retrieval, minimum_function, network
        --checkpoint=DIR                  the network; --checkpoint=unrolled comes with the code
leaves  NAME.html to look at; NAME.json, .xyz, .pdb, .res, .cxc (ChimeraX), .png, NAME_density.ccp4

patterson-jax --config=crystal --mode=solve --input=crystal.hkl --output=solved
patterson-jax --config=base --mode=solve --input=map.ccp4 --output=solved
""",
    'inspect': """Prints the layers of a network, shapes, weights, arithmetic and receptive fields; draws an example.

takes   --config=NAME, --output=DIR       default: figures/ in the workdir
leaves  example.png

patterson-jax --config=base --mode=inspect
""",
    'publish': """Publishes the best weights of a run in a directory, unless it has better ones.

takes   --config=NAME, --workdir=DIR      the run
        --output=pretrained/NAME
leaves  the weights with checksums, config.json, evaluation.json, the log, figures and a card, README.md

patterson-jax --config=unrolled --mode=publish --output=pretrained/mine
""",
}
