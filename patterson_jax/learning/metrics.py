"""What a training run tells of itself: `metrics.jsonl`, TensorBoard events beside it, and its pace."""

import json
import time
from pathlib import Path

from patterson_jax.learning.parallel import is_first_process


class Clock:
    """Seconds of training, those of earlier runs included, and its pace without compilation and validation."""

    def __init__(self, seconds_before: float):
        self.seconds_before = seconds_before
        self.started = time.perf_counter()
        self.skip(0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def skip(self, examples: int) -> None:
        """Measures the pace from here on, where `examples` have been used in all."""
        self.last, self.examples = time.perf_counter(), examples

    def lap(self, examples: int) -> dict[str, float]:
        """Seconds in all, and examples per second since the last lap or skip."""
        pace = (examples - self.examples) / (time.perf_counter() - self.last)
        self.skip(examples)
        return {'seconds': self.seconds, 'examples_per_second': round(pace, 2)}


class MetricsLog:
    """metrics.jsonl: one JSON object a line, and TensorBoard events beside it where tensorboardX is installed.

    Lines of steps after `step`, which will be taken again, are dropped. The first process writes for all.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.events = None
        if is_first_process():
            kept = ''.join(json.dumps(row) + '\n' for row in read_metrics(path) if row['step'] <= step)
            part = path.with_name(f'.{path.name}.part')
            part.write_text(kept)
            part.replace(path)
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
    """A writer of TensorBoard events, if the extra is installed; events of later steps than `step` are dropped."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step + 1)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl up to the first that is none, such as a last line cut short; no file, no rows."""
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
