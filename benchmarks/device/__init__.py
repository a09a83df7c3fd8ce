"""What a GPU makes of this program, in the minutes that one is at hand: is it right, how fast is it, some training.

    python -m benchmarks.device --minutes=9 --output=DIR
    python -m benchmarks.device --collect=DIR                                    # afterwards, on any machine
    python -m benchmarks.device --tiny --allow-cpu --output=DIR                  # to see that all of it runs

For machines at hand for minutes, without a network, and from which little can be brought back. Tasks, in order:

    probe     operations that some release of JAX got wrong on some device, derivatives, against float64 on the host
    truth     R1 at the true positions of the paper's problem and verdicts of least squares, by precision of products
    speed     training step and forward pass of both networks by each setting, and PyTorch's with cuDNN
    training  the network of --train, from the published weights, by the fastest setting that is right
    solving   least squares, phase retrieval and separation, many cases at once, each twice and compared

Each measurement is a process with a limit of its own. What it finds is in `DIR/device.json` at once, so that a cut
leaves what was measured; training packs a checkpoint each minute into `DIR/latest.tar` (and `best.tar`, where that is
another one). Four minutes of nine are kept for the training, and solving begins only if training leaves it time. What
does not fit in the device's memory is tried with half as many cases, and said.

`--collect` writes the tables of docs/speed.md, and publishes the weights if their validation loss is lower than that of
those that are there; this evaluates them first, some minutes on a CPU.
"""
