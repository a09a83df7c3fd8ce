"""Tests and timings on a GPU that is available for minutes: correctness, speed, and some training.

    python -m benchmarks.device --minutes=9 --output=DIR
    python -m benchmarks.device --collect=DIR                                    # afterwards, on any machine
    python -m benchmarks.device --tiny --allow-cpu --output=DIR                  # to see that all of it runs

The machine needs no network, and only small files are brought back from it. Tasks, in order:

    probe     operations that some release of JAX computed wrongly, and derivatives, against float64 on the host
    truth     R1 at the true positions of the paper's problem and verdicts of least squares, by precision of products
    speed     training step and forward pass of the networks by each setting, and PyTorch's with cuDNN
    training  the network of --train, from the published weights, by the fastest setting that is right
    solving   least squares, phase retrieval and separation, many cases at once, each twice and compared

Each measurement is a process with its own time limit. Its result is in `DIR/device.json` at once, so that nothing is
lost if the program is stopped. Training packs a checkpoint each minute into `DIR/latest.tar`, and the best one into
`best.tar` if it is another. Four minutes of nine are kept for training, and solving begins only if training leaves time
for it. Cases that do not fit in the device's memory are halved in number, and a note says so.

`--train=projection:gpu` trains the learned projection of crystals, which is then the network that is timed.

`--collect` writes the tables of docs/speed.md. It publishes the weights if their validation loss is lower than that of
the published ones: for maps by the logs, and evaluates them first; for the projection on the same crystals, on this
machine. Either takes some minutes on a CPU.
"""
