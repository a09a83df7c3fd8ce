"""Checkpoints of a training as tar files, small enough to bring back from a device."""

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
    """Packs, beside what is done within, each checkpoint that appears, and the last one at the end."""
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
    """Makes `latest.tar` hold a run's latest checkpoint and, where that is another one, `best.tar` its best."""
    steps = [int(each.name) for each in (workdir / 'checkpoints').glob('*') if each.name.isdecimal()]
    if not steps:
        return
    losses = {row['step']: row.get('validation_loss', math.inf) for row in read_metrics(workdir / LOG)}
    best = min(sorted(steps, reverse=True), key=lambda step: losses.get(step, math.inf))
    wanted = {LATEST: max(steps)} | ({BEST: best} if best != max(steps) else {})
    for name, step in wanted.items():
        if packed_step(output / name) != step:
            with contextlib.suppress(FileNotFoundError, shutil.Error):  # replaced by the next one in the meantime
                pack(workdir, step, output / name)
    if BEST not in wanted:
        (output / BEST).unlink(missing_ok=True)


def pack(workdir: Path, step: int, target: Path) -> None:
    """One checkpoint of a run, with its record and log, as a tar file from which training goes on once unpacked."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / str(step)
        copy_checkpoint(workdir / 'checkpoints' / str(step), copy, with_optimizer=True)
        part = target.with_name(f'.{target.name}.part')
        with tarfile.open(part, 'w') as tar:
            add_bytes(tar, 'step', str(step).encode())  # the first, so that it is found at once
            tar.add(workdir / RECORD, RECORD)
            tar.add(workdir / LOG, LOG)
            tar.add(copy, f'checkpoints/{step}')
    part.replace(target)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file with this content."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def packed_step(path: Path) -> int | None:
    """The step whose checkpoint a tar file holds, None if there is no such file."""
    if not path.exists():
        return None
    with tarfile.open(path) as tar:
        return int(tar.extractfile('step').read())


def unpack(path: Path, workdir: Path) -> int:
    """Makes `workdir` a run's directory again, with the checkpoint in a tar file; returns its step."""
    with tarfile.open(path) as tar:
        tar.extractall(workdir, filter='data')
    step = int((workdir / 'step').read_text())
    (workdir / 'step').unlink()
    assert (workdir / 'checkpoints' / str(step) / CHECKSUMS).exists()
    return step
