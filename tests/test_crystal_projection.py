"""The shipped learned projection on crystals: when it is used, what it is told, and a crystal that it solves."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from invented import invent
from tiny import REPOSITORY, users_environment

import patterson_jax as pj
from benchmarks import crystal_verdicts
from configs import crystal
from patterson_jax import shipped
from patterson_jax.crystals import CrystalSettings, projection_of
from patterson_jax.errors import InputError
from patterson_jax.projection_weights import load_projection
from patterson_jax.releases import ADDRESS
from patterson_jax.solving.crystal_phasing import eliminated, phase, prepare_crystal
from patterson_jax.solving.crystal_projection import projection_on, sharpeners


def data_to(d_min):
    data = invent('P 1', (5, 6, 7, 80, 85, 95), 2, d_min).data
    return dataclasses.replace(data, formula={'C': 1, 'N': 1})


CLASSICAL = json.loads(
    (Path(crystal_verdicts.__file__).parent / 'light_crystals_classical.json').read_text(encoding='utf-8')
)


def test_a_network_is_used_only_where_it_is_named():
    assert projection_of(CrystalSettings(**crystal.get_config().crystal).network) is None
    assert projection_of('projection') is not None


def test_a_network_that_is_none_of_crystals_is_refused_in_words():
    with pytest.raises(InputError, match='these weights are not those of a learned projection of crystals'):
        projection_of('unrolled')
    with pytest.raises(InputError, match='these weights are of a network for crystals, not for Patterson maps'):
        pj.load_network('projection')
    with pytest.raises(InputError, match=r"network is ''; it must be 'none', or the name"):
        projection_of('')


def test_a_network_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, 'PACKAGE', tmp_path / 'patterson_jax')  # where there is no pretrained/
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv(ADDRESS, raising=False)
    with pytest.raises(InputError, match='projection is not installed, and no address is known'):
        projection_of('projection')


def test_what_the_network_is_told_is_of_the_crystal():
    data = data_to(1.25)
    lost = np.arange(len(data.hkl)) % 10 > 0
    fewer = dataclasses.replace(
        data, hkl=data.hkl[lost], intensities=data.intensities[lost], sigmas=0.2 * data.intensities[lost]
    )
    learned = projection_on(prepare_crystal(fewer), load_projection('projection'))
    told = learned.told
    assert 1.24 < told.d_min < 1.28
    assert 0.85 < told.completeness < 0.95
    lengths = sorted(np.linalg.norm(told.axes, axis=1).tolist())
    np.testing.assert_allclose(lengths, sorted(data.cell.parameters[:3]), rtol=1e-4)


def test_the_network_is_told_the_noise_of_e_values_as_in_its_training():
    """There it is the mean size of their errors, relative to their mean; here errors are drawn from σ."""
    data, rng = data_to(1.25), np.random.default_rng(3)
    far = data.cell.inverse_spacings(data.hkl) > 0.6
    sigmas = np.where(far, 0.2, 0.02) * data.intensities
    crystal = prepare_crystal(dataclasses.replace(data, sigmas=sigmas))
    intensities, values = crystal.expanded.intensities, crystal.normalised
    measured = intensities + crystal.expanded.sigmas * rng.standard_normal((1000, len(values)))
    errors = values * np.abs(np.sqrt(np.maximum(measured, 0) / intensities) - 1)
    told = projection_on(crystal, load_projection('projection')).told
    np.testing.assert_allclose(told.noise, errors.mean() / values.mean(), rtol=0.02)


@pytest.mark.parametrize(
    ('formula', 'eliminates'), [({'C': 4, 'H': 6, 'O': 1}, False), ({'C': 4, 'S': 1}, True), (None, True)]
)
def test_the_network_works_alone_where_all_elements_are_known_to_be_light(formula, eliminates):
    crystal = prepare_crystal(dataclasses.replace(data_to(1.3), formula=formula))
    ways = sharpeners(crystal, load_projection('projection'))
    assert (eliminated in ways) == eliminates
    assert len(ways) == 1 + eliminates
    assert sharpeners(crystal, None) == (eliminated,)


SOLVES = """
import json
from patterson_jax.compiler import avoid_wrong_fusion
avoid_wrong_fusion()
from benchmarks.crystal_verdicts import Search, measure
from patterson_jax.projection_weights import load_projection
search = Search(16, load_projection('projection'), light=True)
print(json.dumps(measure('whole way, 1.4 Å', 425, 'evaluation', few=True, search=search)))
"""


def test_the_network_solves_a_light_crystal_that_elimination_does_not():
    """P-1 at 1.4 Å, a case of light_crystals_classical.json that 40 starts of elimination did not solve.

    In a process with the compiler's own settings, which takes half the time.
    """
    line = [sys.executable, '-c', SOLVES]
    done = subprocess.run(line, cwd=REPOSITORY, env=users_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    case = json.loads(done.stdout)
    assert case['right'] and case['verdict'] == 'solved', done.stdout
    (before,) = (each for each in CLASSICAL['results'] if each['index'] == 425)
    assert (before['kind'], before['right'], CLASSICAL['network']) == ('whole way, 1.4 Å', False, 'none')


def test_of_two_ways_to_finish_a_start_the_better_map_is_taken():
    """The second way turns phases by chance before it eliminates."""
    crystal = prepare_crystal(data_to(1.2))

    def turned(factors, crystal):
        return eliminated(np.conj(factors) * np.exp(2j * np.random.default_rng(0).normal(size=factors.shape)), crystal)

    def reached(*ways):
        (found,) = phase(crystal, jax.random.key(0), 1, ways)
        return found

    alone = [reached(way) for way in (eliminated, turned)]
    assert alone[0].rank != alone[1].rank
    for ways in ((eliminated, turned), (turned, eliminated)):
        both = reached(*ways)
        assert both.rank == max(each.rank for each in alone)
        assert both.learned == (alone[1].rank > alone[0].rank)
