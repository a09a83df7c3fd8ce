"""Packs checkpoints of a training as tar files, small enough to bring back from a device."""

import contextlib
import io
import math
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from patterson_jax.learning.checkpoints import CHECKSUMS, copy_checkpoint
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.publishing import LOG
from patterson_jax.runs import RECORD

LATEST, BEST = 'latest.tar', 'best.tar'
PACKING_EVERY = 1.0  # seconds between two looks for a new checkpoint


@contextlib.contextmanager
def packing(workdir: Path, output: Path) -> Iterator[None]:
    """Packs each checkpoint that appears, in the background, and the last one at the end."""
    ended = threading.Event()

    def pack_until_ended():
        while not ended.wait(PACKING_EVERY):
            pack_checkpoints(workdir, output)

    thread = threading.Thread(target=pack_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pack_checkpoints(workdir, output)


def pack_checkpoints(workdir: Path, output: Path) -> None:
    """Writes a run's latest checkpoint to `latest.tar` and, if it is another one, its best to `best.tar`."""
    steps = [int(each.name) for each in (workdir / 'checkpoints').glob('*') if each.name.isdecimal()]
    if not steps:
        return
    losses = {row['step']: row.get('validation_loss', math.inf) for row in read_metrics(workdir / LOG)}
    best = min(sorted(steps, reverse=True), key=lambda step: losses.get(step, math.inf))
    wanted = {LATEST: max(steps)} | ({BEST: best} if best != max(steps) else {})
    for name, step in wanted.items():
        if packed_step(output / name) != step:
            with contextlib.suppress(FileNotFoundError, shutil.Error):  # the run has replaced it meanwhile
                pack(workdir, step, output / name)
    if BEST not in wanted:
        (output / BEST).unlink(missing_ok=True)


def pack(workdir: Path, step: int, target: Path) -> None:
    """Packs a checkpoint of a run, its record and its log as a tar file; unpacked, training can continue from it."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / str(step)
        copy_checkpoint(workdir / 'checkpoints' / str(step), copy, with_optimizer=True)
        part = target.with_name(f'.{target.name}.part')
        with tarfile.open(part, 'w') as tar:
            add_bytes(tar, 'step', str(step).encode())  # the first member, so that it is found at once
            tar.add(workdir / RECORD, RECORD)
            tar.add(workdir / LOG, LOG)
            tar.add(copy, f'checkpoints/{step}')
    part.replace(target)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file with some content to a tar file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def packed_step(path: Path) -> int | None:
    """The step of the checkpoint in a tar file, None without the file."""
    if not path.exists():
        return None
    with tarfile.open(path) as tar:
        return int(tar.extractfile('step').read())


def unpack(path: Path, workdir: Path) -> int:
    """Unpacks a tar file into the directory of a run; returns the step of its checkpoint."""
    with tarfile.open(path) as tar:
        tar.extractall(workdir, filter='data')
    step = int((workdir / 'step').read_text())
    (workdir / 'step').unlink()
    assert (workdir / 'checkpoints' / str(step) / CHECKSUMS).exists()
    return step
