"""The log of a training run: `metrics.jsonl`, TensorBoard events, the pace, and the learning curve."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patterson_jax.learning.parallel import is_first_process
from patterson_jax.writing import write_whole


class Clock:
    """Measures the seconds of training, with those of earlier runs, and the pace without compilation and validation."""

    def __init__(self, seconds_before: float):
        self.seconds_before = seconds_before
        self.started = time.perf_counter()
        self.skip(0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def skip(self, examples: int) -> None:
        """Measures the pace from now on; `examples` have been used so far."""
        self.last, self.examples = time.perf_counter(), examples

    def lap(self, examples: int) -> dict[str, float]:
        """Seconds so far, and examples per second since the last lap or skip."""
        pace = (examples - self.examples) / (time.perf_counter() - self.last)
        self.skip(examples)
        return {'seconds': self.seconds, 'examples_per_second': round(pace, 2)}


class MetricsLog:
    """Writes metrics.jsonl, one JSON object a line, and TensorBoard events if tensorboardX is installed.

    Lines of steps after `step` are dropped, because these steps will be taken again. Only the first process writes.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.events = None
        if is_first_process():
            kept = ''.join(json.dumps(row) + '\n' for row in read_metrics(path) if row['step'] <= step)
            write_whole(path, lambda part: part.write_text(kept))
            self.events = _event_writer(path.parent / 'tensorboard', step)

    def write(self, row: dict) -> None:
        """Appends one row."""
        if is_first_process():
            with self.path.open('a') as file:
                file.write(json.dumps(row) + '\n')
        if self.events:
            for name, value in row.items():
                self.events.add_scalar(name, value, row['step'])
            self.events.flush()


def _event_writer(directory, step):
    """A writer of TensorBoard events, None if the extra is not installed; it drops events of steps after `step`."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step + 1)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl up to the first invalid line, for example one cut short; [] without a file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors='replace').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not (isinstance(row, dict) and isinstance(row.get('step'), int)):
            break
        rows.append(row)
    return rows


class LearningCurve(NamedTuple):
    """A validation loss that falls as a power of the number of cases: factor · cases^−exponent."""

    factor: float
    exponent: float

    def loss_at(self, cases: float) -> float:
        """The loss after `cases` cases."""
        return self.factor * cases**-self.exponent

    def cases_at(self, loss: float) -> float:
        """The number of cases after which the loss is this low; infinite if it does not fall."""
        if self.exponent <= 0:
            return float('inf')
        logarithm = np.log(self.factor / loss) / self.exponent
        return float(np.exp(logarithm)) if logarithm < 100 else float('inf')


def fit_learning_curve(rows: list[dict]) -> LearningCurve | None:
    """Fits a power law to the logarithms of the validation losses, without the first quarter of the cases.

    None with fewer than three losses, or while the loss is more than half of that of empty maps: the first, slow fall
    does not predict the later one.
    """
    validated = [row for row in rows if 'validation_loss' in row]
    if not validated or validated[-1]['validation_loss'] > validated[-1]['validation_empty_loss'] / 2:
        return None
    points = [(row['examples'], row['validation_loss']) for row in validated]
    later = np.log([point for point in points if 4 * point[0] >= points[-1][0]])
    if len(later) < 3:
        return None
    cases, losses = later.T
    slope, offset = np.polyfit(cases, losses, 1)
    return LearningCurve(float(np.exp(offset)), -float(slope))
