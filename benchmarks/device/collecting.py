"""Takes over results from a device: tables into docs/speed.md, weights into `pretrained/` if they are better."""

import json
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks import ROOT
from benchmarks.device.bench import REPORT
from benchmarks.device.options import PROJECTION, config_from_json, network_name
from benchmarks.device.packing import BEST, LATEST, unpack
from benchmarks.device.tables import tables
from benchmarks.machine import slug
from patterson_jax.config import validate_trained
from patterson_jax.errors import InputError, require
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.projection_comparison import NotBetterError
from patterson_jax.projection_training import ProjectionExperiment
from patterson_jax.publishing import LOG, SLICES, find_published, publish, publish_projection
from patterson_jax.runs import evaluate_experiment, read_record
from patterson_jax.writing import write_json, write_whole

PAGE = ROOT / 'docs' / 'speed.md'
BEGIN, END = '<!-- begin: tables of benchmarks.device -->', '<!-- end -->'


def collect(directory: Path, target: Path | None, results: Path, page: Path) -> None:
    """Takes over results from a device: tables into the page, and weights if they are better than the published ones.

    Args:
        directory: of the results.
        target: where to publish weights; None: where the training began, or `pretrained/NETWORK`.
        results: directory that keeps a report of each device.
        page: a file; its part between two marks is made from these reports.

    Raises:
        InputError: the directory has no report, or the page lacks the marks.
    """
    report = read_report(directory)
    device = slug(report['machine']['device'])
    write_json(results / f'device-{device}.json', report)
    write_page(page, results)
    print(f'{results / f"device-{device}.json"}, {page}')
    publish_files(directory, target)


def publish_files(directory: Path, target: Path | None) -> None:
    """Publishes the best weights in the tar files of a directory, if they are better than the published ones."""
    files = [directory / name for name in (BEST, LATEST) if (directory / name).exists()]
    if not files:
        print('there are no weights')
    with tempfile.TemporaryDirectory() as place:
        for file in files:
            workdir = Path(place) / file.stem
            step = unpack(file, workdir)
            # Which weights of a projection have the lowest loss in the log is luck: the last ones are taken.
            if file == files[-1] or network_name(recorded_config(workdir)) != PROJECTION:
                publish_if_better(workdir, step, target)
                break


def read_report(directory: Path) -> dict:
    """The content of `device.json` in a directory. Raises InputError."""
    try:
        report = json.loads((directory / REPORT).read_text(encoding='utf-8'))
        tables(report)
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{directory / REPORT}: not a report of this program; name another --collect') from error


def write_page(page: Path, results: Path) -> None:
    """Replaces the part of the page between its marks by the tables of all reports."""
    before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
    _, end, after = rest.partition(END)
    require(begin and end, str(page), 'without marks', f'a page with the lines {BEGIN} and {END}')
    reports = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(results.glob('device-*.json'))]
    text = '\n'.join([f'{before}{BEGIN}', '', *map(tables, reports), f'{END}{after}'])
    write_whole(page, lambda part: part.write_text(text, encoding='utf-8'))


def recorded_config(workdir: Path) -> ConfigDict:
    """The config in the record of a run."""
    return config_from_json(read_record(workdir)['config'])


def publish_if_better(workdir: Path, step: int, target: Path | None) -> None:
    """Evaluates and publishes a run's weights, if their validation loss is lower than that of the published ones.

    For maps these are the losses in the logs; a learned projection is compared on the same crystals.
    """
    config = recorded_config(workdir)
    experiment = validate_trained(config)
    target = target or find_published(config.train.init_from) or Path('pretrained') / network_name(config)
    rows = [row for row in read_metrics(workdir / LOG) if row['step'] == step and 'validation_loss' in row]
    if not rows:
        print(f'not published: step {step} was not validated')
        return
    if isinstance(experiment, ProjectionExperiment):
        try:
            publish_projection(experiment, config, workdir, target)
        except NotBetterError as error:
            print(f'not published: {error}')
        return
    found, before = rows[0]['validation_loss'], np.inf
    if (target / SLICES).exists():
        before = json.loads((target / SLICES).read_text(encoding='utf-8'))[-1]['validation_loss']
    if not found < before:
        print(f'not published: validation loss {found:.4g}, and {target} has {before:.4g}')
        return
    print(f'validation loss {found:.4g}, {target} has {before:.4g}')
    evaluate_experiment(experiment, config, workdir)
    publish(experiment, config, workdir, target)
