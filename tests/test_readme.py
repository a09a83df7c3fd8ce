"""README.md: short, its figures those of the files they were measured into, its links and commands right."""

import json
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
FRONTIER = (  # the cells that the README shows: atoms, highest |h|, noise
    (10, 5.0, 0.3),
    (20, 8.0, 0.3),
    (20, 5.0, 0.3),
)
GOOD_MAP = 0.8  # correlation of a map that shows the structure
METHODS = {
    'least_squares': 'least squares',
    'phase_retrieval': 'phase retrieval',
    'minimum_function': 'minimum function',
}


def content(name):
    return json.loads((ROOT / name).read_text(encoding='utf-8'))


def row(*cells):
    return f'| {" | ".join(cells)} |'


def found(part, of):
    return f'{part} of {of}'


def frontier_cell(method, atoms, resolution, noise):
    wanted = (method, atoms, resolution, noise)
    (cell,) = (
        each
        for each in content('benchmarks/solvers-cpu.json')['cells']
        if (each['method'], each['atoms'], each['resolution'], each['noise']) == wanted
    )
    assert (cell['cases'], cell['seconds']) == (30, 1.0)
    return cell


def _has_truth(crystal):
    return crystal.get('right') is not None


def _is_solved(crystal):
    return crystal['verdict'] == 'solved'


def _right(crystals):
    return found(sum(each['right'] for each in crystals), len(crystals))


def _counts(crystals):
    """How many are right; how many are called solved, and how many of these are wrong."""
    solved = [each for each in crystals if _is_solved(each)]
    return f'{_right(crystals)}; {len(solved)}, {sum(not each["right"] for each in solved)}'


def _unused(name):
    """The crystals of a file but those that led to a change of the program."""
    measured = content(f'benchmarks/{name}.json')
    return [each for each in measured['crystals'] if each['name'] not in measured['used_for_changes']]


def measured_rows():
    """The rows of the README's tables of results, as the files have them."""
    paper, report = content('docs/paper.json'), content('pretrained/unrolled/evaluation.json')
    hours = sum(each['seconds'] for each in content('pretrained/unrolled/slices.json')) / 3600
    yield row(
        f"the paper's network ({paper['training_hours']} hours of training on a GPU)",
        f'{found(paper["matched"], paper["atoms"])} atoms',
        f'{paper["mean_error"]}',
    )
    for stage, words in (
        ('separated_in_place', f"our network ({hours:.1f} hours on two CPU cores), the paper's procedure"),
        ('refined', 'the same, refined by the solver'),
    ):
        scores = report[stage]
        digits = 3 if stage == 'separated_in_place' else 6
        yield row(words, f'{found(scores["matched"], report["atoms"])} atoms', f'{scores["mean_error"]:.{digits}f}')
    for method, words in METHODS.items():
        cell = frontier_cell(method, 10, None, 0.0)
        yield row(f'{words}, no network', f'{found(cell["solved"], cell["cases"])} cases', f'{cell["mean_error"]:.6f}')
    trained = content('pretrained/paper/evaluation.json')
    scores, at_random = trained['separated_in_place'], trained['random']['matched']
    slices = content('pretrained/paper/slices.json')
    hours = sum(each['seconds'] for each in slices) / 3600
    yield row(
        f"the paper's own network by our training, so far {hours:.1f} hours and {slices[-1]['end']} cases",
        f'{found(scores["matched"], trained["atoms"])} atoms; at random {at_random}',
        f'{scores["mean_error"]:.2f}',
    )
    crystals = content('benchmarks/crystals-cpu.json')['crystals']
    known = [each for each in crystals if each.get('right') is not None]
    solved = [each for each in crystals if each['verdict'] == 'solved']
    wrong = [each for each in solved if each.get('right') is False or not each['group_right']]
    yield f'| real crystals: {len(crystals)} published data sets, the formula known | | begun at the truth |'
    yield row('right, of those whose structure is known', found(sum(each['right'] for each in known), len(known)), '')
    yield row('right space group', found(sum(each['group_right'] for each in crystals), len(crystals)), '')
    yield row(f'called `solved` of the {len(crystals)}, of these wrong', f'{len(solved)}, {len(wrong)}', '')
    yield row('median time', f'{median(each["seconds"] for each in crystals):.1f} s', '')
    for cut in ('1.4', '1.2', '0.8'):
        at_low = content(f'benchmarks/crystals-{cut}A.json')['crystals']
        known = [each for each in at_low if _has_truth(each)]
        limit = [each['atoms'] for each in content(f'benchmarks/crystals-truth-{cut}A.json')['crystals']]
        assert all(each['group_right'] for each in at_low if _is_solved(each))
        words = 'right; called `solved`, of these wrong' if cut == '0.8' else 'the same'
        yield row(f'cut at {cut} Å: {words}', _counts(known), _counts(limit))
    peers = [each['peer'] for each in known]
    right = sum(each['map'] >= GOOD_MAP for each in peers)
    accepted = [each for each in peers if each['accepted']]
    wrong = [each for each in accepted if each['map'] < GOOD_MAP]
    yield row(
        "that at 0.8 Å by cctbx's charge flipping, given the true group: right; accepted, of these wrong",
        f'{found(right, len(peers))}; {len(accepted)}, {len(wrong)}',
        '',
    )
    yield row(
        'further real crystals, except those that changes were found on',
        _counts(_unused('further-crystals')),
        '',
    )
    more = content('benchmarks/more-crystals.json')['crystals']
    yield row('more real crystals: right; `solved`, of these wrong', _counts(more), '')
    centred = content('benchmarks/more-crystals-1.4A.json')['crystals']
    yield row('most of these with a centre, cut at 1.4 Å', _counts(centred), '')
    measured = [
        [each for run in content(f'benchmarks/light-crystals-1.3-1.45A{name}.json')['runs'] for each in run['crystals']]
        for name in ('', '-network')
    ]
    assert [each['name'] for each in measured[0]] == [each['name'] for each in measured[1]]
    begun = content('benchmarks/light-crystals-1.3-1.45A-truth.json')['runs']  # one run of each cut, without a seed
    limit = _counts([each['atoms'] for run in begun for each in run['crystals']])
    yield row('measured light ones, cut at 1.3 to 1.45 Å, six runs each', _counts(measured[0]), limit)
    yield row('with the learned projection, in more seconds', _counts(measured[1]), '')
    again = 'benchmarks/light_centred_again'
    low = [content(f'{again}{name}.json')['results'] for name in ('', '_classical', '_truths')]
    assert all([each['index'] for each in some] == [each['index'] for each in low[0]] for some in low)
    words = 'made-up ones of C, N and O with a centre, cut at 1.3 and 1.4 Å'
    yield row(words, _counts(low[1]), _counts(low[2]))
    yield row('with the learned projection, in fewer seconds', _counts(low[0]), _counts(low[2]))
    for file, words in (
        ('light_triclinic', 'made-up triclinic ones, with it'),
        ('light_axes', 'made-up ones in P2₁, Pc and P2₁2₁2₁, with it'),
    ):
        placed = content(f'benchmarks/{file}.json')['results']
        numbers = {each['index'] for each in placed}
        before, limit = (
            [each for each in content(f'benchmarks/{name}.json')['results'] if each['index'] in numbers]
            for name in ('light_crystals', 'light_truths')
        )
        assert len(before) == len(limit) == len(placed)
        yield row(f'{words}, cut at 1.2 to 1.4 Å', _counts(placed), _counts(limit))
        yield row('the same without placing atoms', _counts(before), _counts(limit))
    groups = content('benchmarks/space_groups.json')['groups']
    wrong = [each for each in groups if _is_solved(each) and not each['right']]
    words = 'made-up crystals, one in each space group: right; `solved` wrongly'
    yield row(words, f'{_right(groups)}; {len(wrong)}', '')
    yield row(
        'made-up ones with hydrogen, disorder and anisotropy, 0.75 to 1.4 Å',
        _counts(content('benchmarks/crystal_whole_ways.json')['results']),
        '',
    )
    yield row(
        'the frontier: cases of 30 solved in a second, or a first attempt',
        *METHODS.values(),
        'our network',
        'begun at the truth',
    )
    for atoms, resolution, noise in FRONTIER:
        counts = [
            frontier_cell(method, atoms, resolution, noise)['solved'] for method in (*METHODS, 'network', 'truth')
        ]
        yield row(rf'{atoms} atoms, \|h\| ≤ {resolution:g}, {100 * noise:.0f} % noise', *map(str, counts))


@pytest.mark.parametrize('line', list(measured_rows()))
def test_figures_are_those_of_the_files(line):
    assert line in README.splitlines()


def test_no_figure_is_anywhere_else():
    """What is left without code, links, formulas and the rows above has no numbers but these."""
    text = README
    for line in measured_rows():
        text = text.replace(line, '')
    text = re.sub(r'```.*?```|`[^`]*`|\[[^]]*\]\([^)]*\)', '', text, flags=re.S)
    known = {
        '3-D',
        'Python 3.11',  # setup.cfg; test_package holds that
        'about 1 Å',  # the limit of docs/solving_crystals.md
        'to 1.4 Å',  # of docs/learned_projection.md
        'arXiv:2003.13767, 2020',
        'License 2.0',
        'P1',
    }
    for words in known:
        assert words in text
        text = text.replace(words, '')
    assert re.findall(r'[^\n]*[0-9][^\n]*', text) == []


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1500


def test_it_asks_for_the_python_that_the_package_asks_for():
    assert 'python_requires = >=3.11\n' in (ROOT / 'setup.cfg').read_text(encoding='utf-8')


@pytest.mark.parametrize('page', [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))])
def test_links_lead_to_files(page):
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if not re.match('https?:|#|mailto:', target):
            assert (page.parent / target.partition('#')[0]).exists(), (page.name, target)


def test_every_page_is_in_the_site():
    listed = set(re.findall(r'[\w/]+\.(?:md|ipynb)', (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')))
    pages = {
        path.relative_to(ROOT / 'docs').as_posix()
        for kind in ('md', 'ipynb')
        for path in (ROOT / 'docs').rglob(f'*.{kind}')
    }
    assert pages <= listed
