"""How fast the program is on this machine, and where its time goes.

    python -m benchmarks.speed                            # everything; an hour or two on two CPU cores
    python -m benchmarks.speed --tables=network,data --batches=1,8

Five tables, printed as Markdown and written to `benchmarks/speed-DEVICE.json`, anew after each table:

    network  a training step and a forward pass of configs/base.py: ours, XLA's direct convolution, PyTorch
    parts    where the time of a spectral convolution goes, and how long the generation of a batch takes
    data     maps a second, compared with a plain NumPy program
    growth   the training step against grid size, channels and batch size
    layers   direct against spectral convolution, layer by layer: the ground for the choice of method 'auto'

A table that is not measured is kept from the file if that is from the same machine and versions. PyTorch takes part
where it is installed: `pip install -e '.[bench]'`. It has one fixed batch, while our step also makes its cases.

Every measurement is a cell: a process of its own, with its own memory and caches, and never two at once. A time is that
of a call after the first one, device synchronised; short calls are timed many in a row. Where a key says neither best
nor median, it is the best.
"""
