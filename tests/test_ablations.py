"""Comparisons: runs that differ in just what they say, done once each, and tables of what came out."""

import json
import os
import shutil

import matplotlib.image
import pytest
from ml_collections import ConfigDict
from tiny import colours_of, log_of, tiny_config

from configs import ablations, quick_ablations
from patterson_jax import experiment, runs
from patterson_jax.ablations import comparison_runs
from patterson_jax.config import SECTIONS, differences
from patterson_jax.errors import InputError
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.weights import WEIGHT_FIELDS

CONFIGS = {'ablations': ablations, 'quick_ablations': quick_ablations}
EVERY_SECTION = ('seed', *SECTIONS)


pytestmark = pytest.mark.usefixtures('optax_promotes_types')


@pytest.fixture
def undrawn(monkeypatch):
    """Whether the atoms of a config can be placed is tested in test_config.py, and takes long to compile."""
    monkeypatch.setattr('patterson_jax.config.check_drawable', lambda problem: None)


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_every_run_differs_from_the_baseline_in_its_changes_and_nothing_else(config):
    every = comparison_runs(config.get_config())
    by_name = {run.name: run for run in every}
    baseline = by_name['baseline'].config.to_dict()
    assert by_name['baseline'].changes == {} and len(every) == 21
    for run in every:
        resolved = run.config.to_dict()
        assert 'ablation' not in resolved
        expected = []
        for section, change in run.changes.items():
            before = baseline[section]
            fields = {section: (before, change)}
            if isinstance(change, dict):
                fields = {f'{section}.{field}': (before[field], value) for field, value in change.items()}
            changed = {name: values for name, values in fields.items() if values[0] != values[1]}
            expected += [f'{name} was {was!r} and is {value!r}' for name, (was, value) in changed.items()]
        found = differences(baseline, resolved, EVERY_SECTION)
        assert sorted(found) == sorted(expected)
        assert bool(found) == (run.name not in ('baseline', 'one_set_against_both'))  # which has other weights
        assert run.experiment.seed == resolved['seed']
        assert run.experiment.problem.num_atoms == resolved['problem']['num_atoms']
    assert len({run.label for run in every}) == len(every)
    assert len({(run.weights, json.dumps(run.config.to_dict())) for run in every}) == len(every)


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_weights_are_evaluated_only_where_they_fit(config):
    every = comparison_runs(config.get_config())
    by_name = {run.name: run for run in every}
    borrowed = {run.name: run.weights for run in every if run.weights}
    assert borrowed == {
        'baseline_on_filled_corner': 'baseline',
        'greedy': 'baseline',
        'one_chain': 'baseline',
        'greedy_one_chain': 'baseline',
        'one_set_against_both': 'one_set',
    }
    assert {run.name for run in every[-5:]} == set(borrowed)  # after what they need
    for name, source in borrowed.items():
        run, trained = by_name[name].experiment, by_name[source].experiment
        assert not by_name[source].weights
        assert (run.model, run.train) == (trained.model, trained.train)
        for field in WEIGHT_FIELDS:
            assert run.problem.fields[field] == trained.problem.fields[field]


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_lengths_follow_the_epochs_and_the_size_of_sets_and_batches_in_every_run(config):
    changed = config.get_config('figure8')
    before = changed.train.num_steps, changed.train.set_size, changed.train.batch_size
    assert before == {'ablations': (37_500, 3000, 8), 'quick_ablations': (2000, 80, 4)}[config.__name__.split('.')[-1]]
    changed.ablation.num_epochs = 33
    changed.train.set_size = 60
    changed.train.batch_size = 6
    changed.train.warmup_steps = 5
    for run in comparison_runs(changed):
        train = run.experiment.train
        assert (train.set_size, train.batch_size, train.epochs_per_set) == (60, 6, 3)
        assert (train.num_steps, train.log_every, train.validate_every) == (330, 10, 20)
        assert train.sets_begun(train.num_steps) == 11


@pytest.mark.usefixtures('undrawn')
def test_another_seed_is_another_one_than_the_baselines():
    config = quick_ablations.get_config('figure8')
    config.seed = 1
    seeds = {run.name: run.experiment.seed for run in comparison_runs(config)}
    assert (seeds['baseline'], seeds['baseline_again']) == (1, 2)


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize('figure', ablations.FIGURES)
def test_a_variant_is_one_figure_with_its_runs(config, figure):
    variant = config.get_config(figure)
    assert dict(variant.ablation.figures.items()) == {figure: ablations.FIGURES[figure]}
    assert {run.name for run in comparison_runs(variant)} == set(ablations.FIGURES[figure])


@pytest.mark.usefixtures('undrawn')
def test_a_sweep_trains_each_run_that_is_trained_once():
    """The others need the weights of one that is."""
    for config in CONFIGS.values():
        for variant in ('', *ablations.FIGURES):
            trained = [run.name for run in comparison_runs(config.get_config(variant)) if not run.weights]
            sweep = config.sweep(variant)
            assert sorted(each['ablation.only'] for each in sweep) == sorted(trained)
            assert all(len(each) == 1 for each in sweep)


@pytest.mark.usefixtures('undrawn')
def test_a_run_alone_is_that_of_the_whole_comparison():
    config = quick_ablations.get_config('figure8')
    whole = {run.name: run for run in comparison_runs(config)}
    config.ablation.only = 'one_set'
    (alone,) = comparison_runs(config)
    assert alone.config.to_dict() == whole['one_set'].config.to_dict()


@pytest.mark.usefixtures('undrawn')
def test_an_unknown_run_is_refused_with_those_there_are():
    config = quick_ablations.get_config('figure8')
    config.ablation.only = 'uncentred'
    with pytest.raises(InputError) as refusal:
        comparison_runs(config)
    names = 'baseline, baseline_again, one_set, one_set_against_both, one_set_twice_the_atoms'
    assert str(refusal.value) == f"ablation.only is 'uncentred'; it must be one of {names}"


@pytest.mark.parametrize('locked', [False, True])
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'problem': {'num_atoms': 0}}, 'problem.num_atoms is 0; it must be a whole number, 1 or more'),
        ({'problem': {'num_atms': 2}}, 'problem has no field num_atms; did you mean num_atoms?'),
        ({'sed': 2}, 'config has no field sed; did you mean seed?'),
        ({'train': {'num_steps': 'many'}}, "Could not override field 'num_steps'"),
        ({'train': 3}, ''),
    ],
)
def test_a_bad_change_is_refused_with_the_name_of_its_run(changes, message, locked):
    config = quick_ablations.get_config('figure8')
    config.ablation.runs.one_set.changes = ConfigDict(changes)
    if locked:  # as the command line leaves it
        config.lock()
    with pytest.raises(InputError) as refusal:
        comparison_runs(config)
    assert str(refusal.value).startswith(f'ablation run one_set: {message}')
    assert len(str(refusal.value).splitlines()) == 1


def test_a_comparison_is_trained_and_nothing_else(tmp_path, work):
    for mode in ('evaluate', 'solve', 'inspect'):
        with pytest.raises(InputError) as refusal:
            experiment.run(mode, quick_ablations.get_config(), tmp_path)
        assert str(refusal.value) == f'--mode is {mode!r}; it must be train for a comparison of runs'


def small_comparison():
    """Two runs that are trained, the second one shorter, and one with the first one's weights."""
    config = tiny_config()
    config.ablation = ConfigDict(
        {
            'only': '',
            'figures': {'length': ('first', 'fewer', 'short'), 'cases': ('first', 'fewer')},
            'runs': {
                'first': {'label': 'as it is', 'weights': '', 'changes': {}},
                'short': {'label': 'briefly', 'weights': '', 'changes': {'train': {'num_steps': 12}}},
                'fewer': {'label': 'fewer cases', 'weights': 'first', 'changes': {'evaluate': {'num_cases': 3}}},
            },
        }
    )
    return config.lock()


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
    """The directory of a comparison, done once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ('draw_maps', 'draw_separation', 'draw_errors', 'draw_losses'):
            patch.setattr(runs, name, lambda *arguments: None)
        directory = tmp_path_factory.mktemp('comparison') / 'runs'
        experiment.run('train', small_comparison(), directory, overrides={'seed': 5})
        yield directory


@pytest.fixture
def copy(comparison, tmp_path):
    """A copy of it, with its times."""
    return shutil.copytree(comparison, tmp_path / 'runs')


@pytest.fixture
def work(monkeypatch):
    """The runs that are trained and evaluated, though they are not."""
    done = []
    from patterson_jax import ablations

    def record(kind):
        return lambda run, config, directory, *_: done.append((kind, directory.name))

    monkeypatch.setattr(ablations, 'train_experiment', record('train'))
    monkeypatch.setattr(ablations, 'evaluate_experiment', record('evaluate'))
    monkeypatch.setattr(ablations, '_show', lambda *arguments: None)
    return done


def test_a_comparison_leaves_its_runs_figures_and_tables(comparison):
    assert sorted(path.name for path in comparison.iterdir()) == ['fewer', 'figures', 'first', 'short']
    figures = sorted(path.name for path in (comparison / 'figures').iterdir())
    # With a single curve there is nothing to compare.
    assert figures == ['cases.json', 'cases.md', 'length.json', 'length.md', 'length.png']
    picture = matplotlib.image.imread(comparison / 'figures' / 'length.png')
    assert min(picture.shape[:2]) > 500
    assert colours_of(picture[..., :3]) > 20
    assert not (comparison / 'fewer' / 'metrics.jsonl').exists()
    record = json.loads((comparison / 'short' / 'config.json').read_text())
    assert record['overrides'] == {'seed': 5, 'train': {'num_steps': 12}}
    assert record['config']['train']['num_steps'] == 12


def test_the_table_has_what_the_logs_and_evaluations_of_its_runs_have(comparison):
    rows = json.loads((comparison / 'figures' / 'length.json').read_text())['runs']
    assert [row['run'] for row in rows] == ['first', 'fewer', 'short']
    assert [row['label'] for row in rows] == ['as it is', 'fewer cases', 'briefly']
    lines = (comparison / 'figures' / 'length.md').read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count('|') for line in lines}) == 1
    for row, line in zip(rows, lines[2:], strict=True):
        report = json.loads((comparison / row['run'] / 'evaluation.json').read_text())
        assert row['error'] == report['map']['mse'] / report['map']['mse_of_empty_map']
        assert row['correlation'] == report['map']['correlation']
        assert row['recall'] == report['separated']['recall']
        assert row['recall_in_place'] == report['separated_in_place']['recall']
        assert row['mean_error'] == report['separated']['mean_error']
        assert row['mean_error_in_place'] == report['separated_in_place']['mean_error']
        assert row['random_recall'] == report['random']['recall']
        assert row['recall_in_corner'] is None and row['recall_elsewhere'] is None
        assert row['cases'] == report['cases'] == (3 if row['run'] == 'fewer' else 4)
        assert row['examples_seen'] == 8 * report['weights']['step']
        measured = None
        if row['run'] != 'fewer':
            last = read_metrics(comparison / row['run'] / 'metrics.jsonl')[-1]
            assert last['step'] == {'first': 20, 'short': 12}[row['run']]
            measured = last['validation_loss'] / last['validation_empty_loss']
        assert row['validation_error'] == measured
        columns = ('error', 'correlation', 'recall', 'recall_in_place', 'mean_error_in_place', 'random_recall')
        shown = ['' if measured is None else f'{measured:.3f}', *(f'{row[name]:.3f}' for name in columns)]
        assert [cell.strip() for cell in line.strip('|').split('|')] == [row['label'], *shown]
    first, fewer, short = rows
    assert first['validation_error'] != short['validation_error']
    assert len({first['error'], fewer['error'], short['error']}) == 3
    assert fewer['examples_seen'] == first['examples_seen']


def test_weights_of_another_run_give_what_they_give_there(comparison, tmp_path):
    """With as many cases as the first run had."""
    config = small_comparison()
    config.ablation.runs.fewer.changes.evaluate.num_cases = 4
    copy = shutil.copytree(comparison, tmp_path / 'runs')
    experiment.run('train', config, copy)
    paths = [copy / name / 'evaluation.json' for name in ('first', 'fewer', 'short')]
    first, fewer, short = (json.loads(path.read_text()) for path in paths)
    for report in (first, fewer):
        report['separated'].pop('seconds_per_case')
    assert first == fewer
    assert first['map'] != short['map']


def test_the_table_has_the_corner_where_one_is(copy):
    path = copy / 'first' / 'evaluation.json'
    report = json.loads(path.read_text())
    corner = {'inside': {'atoms': 2, 'recall': 0.25, 'mean_error': None}, 'elsewhere': {'atoms': 6, 'recall': 0.125}}
    path.write_text(json.dumps(report | {'corner': corner}))
    experiment.run('train', small_comparison(), copy)
    rows = json.loads((copy / 'figures' / 'length.json').read_text())['runs']
    columns = ('recall_in_corner', 'recall_elsewhere')
    assert [[row[name] for name in columns] for row in rows] == [[0.25, 0.125], [None, None], [None, None]]
    lines = (copy / 'figures' / 'length.md').read_text().splitlines()
    assert [line.split('|')[-3:-1] for line in lines[2:]] == [[' 0.250 ', ' 0.125 '], ['  ', '  '], ['  ', '  ']]


@pytest.mark.parametrize('field', ['problem.num_atoms', 'model.features', 'separate.num_peaks'])
def test_what_the_runs_were_made_from_cannot_be_changed_by_a_flag(tmp_path, work, field):
    with pytest.raises(InputError, match=rf'^{field} cannot be changed here, .*; change it in the config file$'):
        experiment.run('train', quick_ablations.get_config(), tmp_path / 'runs', overrides={field: 4})
    assert not (tmp_path / 'runs').exists()


def test_a_comparison_needs_cases_to_evaluate(tmp_path, work):
    config = small_comparison()
    config.evaluate.num_cases = 0
    with pytest.raises(InputError) as refusal:
        experiment.run('train', config, tmp_path / 'runs')
    assert str(refusal.value) == 'evaluate.num_cases is 0; it must be 1 or more to compare runs'
    assert work == [] and not (tmp_path / 'runs').exists()


def times(directory):
    files = [path for path in directory.rglob('*') if path.is_file() and 'figures' not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_second_call_trains_and_evaluates_nothing(copy, capsys):
    before = times(copy)
    assert len(before) > 50
    for path in (copy / 'figures').iterdir():
        path.unlink()
    experiment.run('train', small_comparison(), copy)
    assert times(copy) == before
    assert len(list((copy / 'figures').iterdir())) == 5
    assert 'run 3 of 3, fewer: fewer cases' in capsys.readouterr().err


def test_only_what_is_missing_is_done(copy, work):
    for name, kind in (('short', 'train'), ('fewer', 'evaluate')):
        aside = (copy / name).rename(copy.parent / name)
        experiment.run('train', small_comparison(), copy)
        assert work == [(kind, name)]
        work.clear()
        aside.rename(copy / name)
    experiment.run('train', small_comparison(), copy)
    assert work == []


def test_a_run_that_was_removed_is_trained_again_as_it_was(copy):
    evaluation = copy / 'short' / 'evaluation.json'
    expected, logged = json.loads(evaluation.read_text()), log_of(copy / 'short')
    others = {path: time for path, time in times(copy).items() if 'short' not in path.parts}
    shutil.rmtree(copy / 'short')
    experiment.run('train', small_comparison(), copy)
    assert {path: time for path, time in times(copy).items() if 'short' not in path.parts} == others
    again = json.loads(evaluation.read_text())
    for report in (again, expected):
        report['separated'].pop('seconds_per_case')
    assert again == expected
    assert log_of(copy / 'short') == logged


def test_what_is_not_finished_or_out_of_date_is_done_again(copy, work):
    def done():
        experiment.run('train', small_comparison(), copy)
        found, work[:] = list(work), []
        return found

    assert done() == []
    log = copy / 'first' / 'metrics.jsonl'
    lines = log.read_text().splitlines(keepends=True)
    stamp = log.stat().st_mtime_ns
    log.write_text(''.join(lines[:-1]))  # stopped before its last step
    os.utime(log, ns=(stamp, stamp))
    assert done() == [('train', 'first'), ('evaluate', 'fewer')]
    log.write_text(''.join(lines))  # trained after it was evaluated
    assert done() == [('train', 'first'), ('evaluate', 'fewer')]
    os.utime(log, ns=(stamp, stamp))
    assert done() == []
    evaluation = copy / 'short' / 'evaluation.json'
    evaluation.write_text(evaluation.read_text()[:100])
    assert done() == [('train', 'short')]


@pytest.mark.parametrize(
    ('section', 'field', 'value'),
    [('evaluate', 'batch_size', 2), ('evaluate', 'methods', 'network'), ('solve', 'max_attempts', 2)],
)
def test_other_ways_to_evaluate_evaluate_again(copy, work, section, field, value):
    config = small_comparison()
    config[section][field] = value
    experiment.run('train', config, copy)
    assert work == [('train', 'first'), ('train', 'short'), ('evaluate', 'fewer')]


def test_a_comparison_of_another_config_is_refused_and_left_alone(copy):
    before = times(copy)
    config = small_comparison()
    config.train.warmup_steps = 3
    with pytest.raises(InputError) as refusal:
        experiment.run('train', config, copy)
    expected = f'{copy / "first"} has a run of another config: train.warmup_steps was 4 and is 3. Name another'
    assert str(refusal.value).startswith(expected)
    assert times(copy) == before


def test_one_run_alone_is_trained_without_drawing(tmp_path, work, capsys):
    config = small_comparison()
    config.ablation.only = 'short'
    experiment.run('train', config, tmp_path / 'runs')
    assert work == [('train', 'short')]
    assert not (tmp_path / 'runs' / 'figures').exists()
    assert 'run 1 of 1, short: briefly' in capsys.readouterr().err
