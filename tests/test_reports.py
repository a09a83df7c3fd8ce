"""The HTML report: whole, well formed, without anything from elsewhere, safe, and, where there is a browser, drawn."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.pictures import Drawing, find_bonds, map_drawing
from patterson_jax.reports import (
    POLICY,
    Density,
    Report,
    Table,
    crystal_report,
    embedded,
    evaluation_report,
    map_report,
    page,
    write_report,
)

RUN = Path(__file__).parents[1] / 'pretrained' / 'unrolled'
EVIL = '</script><script>alert("x")</script><b>&amp; <!-- \u2028'
CELL = UnitCell(5.0, 6.0, 7.0, 80.0, 95.0, 105.0)
FRACTIONS = np.array([[0.1, 0.2, 0.3], [0.25, 0.35, 0.4], [-0.1, 0.9, 0.2]])
VOID = {'meta', 'input', 'img', 'link', 'br'}


class Parsed(HTMLParser):
    """The elements of a page, each closed as it was opened; the text of each kind."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *each) for each in attrs]
        self.texts.setdefault(tag, []).append('')
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (self.open, tag, self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data


def crystal_content(**changes):
    atoms = [
        {
            'label': f'{element}{n}',
            'element': element,
            'fract': fract.tolist(),
            'u_iso': 0.03,
            'occupancy': 1.0,
            'multiplicity': 1,
            'element_confidence': confidence,
        }
        for n, (element, fract, confidence) in enumerate(zip('OCS', FRACTIONS, (1.0, 0.5, 0.95), strict=True), 1)
    ]
    group = {
        'number': 1,
        'hm': 'P 1',
        'standard_hm': 'P 1',
        'symops': ['x,y,z'],
        'certain': False,
        'candidates': ['P -1'],
    }
    return {
        'input': 'a.hkl',
        'title': 'made up',
        'verdict': 'uncertain',
        'reasons': ['R1 is 0.150, where at most 0.100 is to be expected', 'the space group is not certain'],
        'space_group': group,
        'atoms': atoms,
        'r_factor': 0.15,
        'resolution': 0.8,
        'starts': 3,
        'seconds': 1.5,
        'contents': {'C': 1.0, 'H': 4.0},
        'laue_class': '-1',
        'reflections': {'unique': 100, 'merged': 200, 'r_int': 0.03, 'completeness': 0.98, 'e_statistic': 0.8},
        'warnings': ['half of the data are missing'],
    } | changes


def crystal_density():
    """Gaussians at the atoms, heights 30, 20 and 40, periodic, on a grid `(20, 24, 28)`."""
    shape = (20, 24, 28)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing='ij'), axis=-1)
    total = np.zeros(shape)
    for height, atom in zip((30, 20, 40), FRACTIONS, strict=True):
        steps = points - atom
        steps -= np.rint(steps)
        total += height * np.exp(-np.sum((steps @ CELL.orthogonalization.T) ** 2, axis=-1) / (2 * 0.35**2))
    return total


def crystal_page(**changes):
    content = crystal_content(**changes)
    places = FRACTIONS @ CELL.orthogonalization.T
    drawing = Drawing(
        places, ('O', 'C', 'S'), find_bonds(places, ('O', 'C', 'S')), CELL.orthogonalization, sites=np.arange(3)
    )
    course = [(1, 0.5, 'no promising map yet'), (2, 0.7, 'no promising map yet'), (3, 1.0, 'P 1, 1 start agrees')]
    return page(crystal_report(content, CELL, crystal_density(), drawing, course, ['three lines'], 'a'))


def map_content(**changes):
    return {
        'input': 'map.ccp4',
        'verdict': 'not solved',
        'method': 'least_squares',
        'num_atoms': 2,
        'positions': [[3.0, 3.0, 3.0], [5.0, 3.5, 3.0]],
        'voxel_size': 0.5,
        'r_factor': 0.31,
        'r_free': None,
        'r_factor_resolution': 6.0,
        'r_factor_expected': 0.0,
        'r_factor_solved_below': 0.3,
        'noise': 0.0,
        'resolution': 6.0,
        'density': 'calculated from the atoms',
        'patterson_correlation': 0.4,
        'agreeing_starts': 1,
        'starts': 16,
        'alternatives_voxels': [[[0.0, 0.0, 0.0]]],
        'alternatives_searched': False,
        'seconds': 0.5,
    } | changes


def map_page(**changes):
    content = map_content(**changes)
    density = np.zeros((16, 16, 16))
    density[6, 6, 6] = density[10, 7, 6] = 0.8
    drawing = map_drawing(np.array(content['positions']), 'X', 8.0, 0.5)
    return page(map_report(content, density, 0.3, drawing, [0.35, 0.4], 'map', True))


def drawn(text):
    return json.loads(re.search(r'<script type="application/json" id="structure">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope='module')
def pages():
    return {
        'crystal': crystal_page(),
        'map': map_page(),
        'empty': page(Report('none', 'a.hkl', 'not solved', 'Nothing.')),
    }


@pytest.mark.parametrize('kind', ['crystal', 'map', 'empty'])
def test_it_is_well_formed_and_asks_for_nothing_from_elsewhere(pages, kind):
    text = pages[kind]
    assert text.startswith('<!DOCTYPE html>')
    parsed = Parsed(text)
    for tag, name, value in parsed.attributes:
        assert name not in ('src', 'href', 'srcset', 'action') or (value or '').startswith('data:'), (tag, name, value)
        assert not name.startswith('on'), (tag, name)
    assert ('meta', 'content', POLICY) in parsed.attributes
    assert POLICY.startswith("default-src 'none';") and 'http' not in POLICY
    assert 'url(' not in ''.join(parsed.texts['style']) and '@import' not in ''.join(parsed.texts['style'])


def test_the_verdict_its_reasons_the_figures_and_what_to_do_are_said(pages):
    words = html.unescape(re.sub(r'<script.*?</script>|<[^>]*>', ' ', pages['crystal'], flags=re.S))
    for said in (
        'uncertain',
        'R1 is 0.150, where at most 0.100 is to be expected',
        'half of the data are missing',
        'not certain; others: P -1',
        'Refine in each of the candidate groups',
        'shelxl a',
        'C2 (50%)',  # an element to be checked
        'Flack',
        '1 to 2',  # starts that came to the same
        'three lines',
        'patterson_jax 0.1.0',
    ):
        assert said in words
    words = html.unescape(re.sub(r'<script.*?</script>|<[^>]*>', ' ', pages['map'], flags=re.S))
    for said in ('more than the 0.3000', '1 of 16 starts', '1 other set', 'problem.noise', 'up to |h| = 6', 'rival 2'):
        assert said in words


def test_a_solved_crystal_with_a_centre_is_not_told_to_look_for_its_hand():
    group = crystal_content()['space_group'] | {'symops': ['x,y,z', '-x,-y,-z'], 'certain': True}
    text = crystal_page(verdict='solved', space_group=group, reasons=[])
    assert 'Flack' not in text.partition('<script')[0]
    assert 'max_starts=200' not in text and 'shelxl a' in text
    assert 'Check the formula' not in text
    doubts = ['but the elements are doubtful: with Fe in place of Co R1 would be 0.050']
    assert 'Check the formula' in crystal_page(verdict='solved', reasons=doubts)


def test_what_is_odd_about_the_data_of_an_unsolved_crystal_is_said():
    def steps(**data):
        reflections = crystal_content()['reflections'] | data
        content = crystal_content(verdict='not solved', reflections=reflections, resolution=1.36 if data else 0.8)
        return ' '.join(crystal_report(content, CELL, None, None, [], [], 'a').steps)

    odd, usual = steps(r_int=0.55, completeness=0.614), steps()
    for words in ('R_int is 0.55 in Laue class -1', 'The data end at 1.36 Å', 'Only 61% of the reflections'):
        assert words in odd
    assert not any(words in usual for words in ('R_int', 'The data end', 'Only '))


def test_a_persons_text_is_text_and_nothing_else():
    safe, evil = crystal_page(), crystal_page(title=EVIL, input=EVIL, warnings=[EVIL], reasons=[EVIL])
    assert evil.count('<script') == safe.count('<script') and evil.count('</script') == safe.count('</script')
    assert EVIL in ''.join(Parsed(evil).texts['p']) and '<b>&amp' not in evil.replace('<b>About', '')
    atoms = crystal_content()['atoms']
    atoms[0]['label'] = EVIL
    evil = crystal_page(atoms=atoms)
    assert evil.count('</script') == safe.count('</script')
    assert drawn(evil)['atoms'][0]['text'].startswith(EVIL)
    assert EVIL in Parsed(evil).texts['td']


def test_embedded_json_is_the_same_after_it_is_read():
    content = {'a': EVIL, 'b': [1.5, None], 'c': '<!--<script>'}
    text = embedded(content)
    assert json.loads(text) == content
    assert not set('<>&') & set(text)


def test_atoms_and_cell_are_where_they_are(pages):
    content = drawn(pages['crystal'])
    assert np.allclose([each['position'] for each in content['atoms']], FRACTIONS @ CELL.orthogonalization.T, atol=1e-4)
    assert [each['element'] for each in content['atoms']] == ['O', 'C', 'S']
    assert np.allclose(np.linalg.norm(content['cell']['edges'], axis=1), [5, 6, 7], atol=1e-4)


@pytest.mark.parametrize('kind', ['crystal', 'map'])
def test_the_density_lies_on_the_atoms(pages, kind):
    """Its values, unpacked as the page's program does, have their maxima at the atoms, in Å by its matrix."""
    content = drawn(pages[kind])
    density = content['density']
    roots = np.frombuffer(base64.b64decode(density['values']), np.uint8).reshape(density['size'])
    values = density['highest'] * (roots / 255) ** 2
    matrix = np.reshape(density['matrix'], (4, 4))
    places = np.indices(values.shape).reshape(3, -1).T @ matrix[:3, :3].T + matrix[:3, 3]
    for atom, height in zip(content['atoms'], (30, 20, 40) if kind == 'crystal' else (0.8, 0.8), strict=True):
        near = np.linalg.norm(places - atom['position'], axis=1) < 0.8
        highest = np.argmax(np.where(near, values.ravel(), -1))
        assert np.linalg.norm(places[highest] - atom['position']) < 0.25
        assert values.ravel()[highest] == pytest.approx(height, rel=0.12)
    assert 0 < density['level'] < density['highest']


def test_a_density_without_anything_in_it_is_not_drawn():
    report = Report('a', 'b', 'solved', 'c', drawing=map_drawing(np.ones((1, 3)), 'X', 8.0, 0.5))
    flat = Density(np.zeros((4, 4, 4)), np.eye(4)[:3], 0.1, '')
    assert drawn(page(Report(**vars(report) | {'density': flat})))['density'] is None


def test_tables_keep_their_rows():
    text = page(Report('a', 'b', 'solved', 'c', atoms=Table(('x', 'y'), (('1', '2'), ('3', '4')))))
    assert Parsed(text).texts['td'] == ['1', '2', '3', '4']


@pytest.mark.parametrize('kind', ['crystal', 'map'])
def test_a_browser_draws_it_and_does_not_complain(pages, kind, tmp_path):
    """Chromium without a network: the structure is drawn, and the console is silent."""
    browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if browser is None:
        pytest.skip('there is no Chromium here')
    write_report(tmp_path / 'a.html', Report('a', 'b', 'solved', 'c'))
    (tmp_path / 'a.html').write_text(pages[kind], encoding='utf-8')
    line = [browser, '--headless', '--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']
    line += [f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr', '--virtual-time-budget=8000']
    line += ['--host-resolver-rules=MAP * ~NOTFOUND', '--dump-dom', (tmp_path / 'a.html').as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert 'CONSOLE' not in done.stderr
    atoms = len(drawn(pages[kind])['atoms'])
    assert f'data-drawn="{atoms}"' in done.stdout
    assert re.search(r'<span id="level-value">[0-9.e+-]+ ', done.stdout)


def test_a_run_is_reported_with_its_scores_its_pictures_and_its_settings(tmp_path):
    report = json.loads((RUN / 'evaluation.json').read_text(encoding='utf-8'))
    config = json.loads((RUN / 'config.json').read_text(encoding='utf-8'))
    pictures = [RUN / 'figures' / f'{name}.png' for name in ('losses', 'none')]
    text = page(evaluation_report(report, config, pictures, tmp_path / EVIL.replace('/', '')))
    parsed = Parsed(text)
    cells = parsed.texts['td']
    for stage in ('separated', 'refined', 'random'):
        scores = report[stage]
        assert f'{scores["recall"]:.2%}' in cells and f'{scores["matched"]} of {report["atoms"]}' in cells
    assert json.loads(parsed.texts['pre'][0]) == config
    (source,) = (value for tag, name, value in parsed.attributes if (tag, name) == ('img', 'src'))
    assert base64.b64decode(source.partition(',')[2]) == pictures[0].read_bytes()
    assert '<script' not in text
