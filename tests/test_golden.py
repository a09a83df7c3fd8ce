"""The solver and the shipped network against what they made of the same cases before (tests/golden)."""

import golden_cases
import numpy as np
import pytest
from golden_cases import METHODS, interpret, read, solve

CHUNK = 4  # cases, which are solved at once; `python -m tests.golden_cases` has all of them


@pytest.mark.parametrize('method', METHODS)
def test_a_method_solves_the_cases_as_it_did(method):
    for name, answers in solve(method, CHUNK).items():
        before = read(method)[name][: len(answers)]
        assert [each['verdict'] for each in answers] == [each['verdict'] for each in before]
        for now, then in zip(answers, before, strict=True):
            if then['largest_error'] <= 1:  # a wrong set is where rounding leads
                assert now['method'] == then['method']
                assert now['r_factor'] == pytest.approx(then['r_factor'], abs=2e-4)
                np.testing.assert_allclose(now['positions'], then['positions'], atol=2e-3)


def test_the_shipped_network_sees_in_the_maps_what_it_saw(monkeypatch):
    monkeypatch.setattr(golden_cases, 'NUM_CASES', CHUNK)
    for now, then in zip(interpret(), read('interpretation'), strict=False):
        np.testing.assert_allclose(now['positions'], then['positions'], atol=1e-3)
        assert now['r_factor'] == pytest.approx(then['r_factor'], abs=1e-3)
        assert now['squared_error'] == pytest.approx(then['squared_error'], rel=1e-3)
        assert now['density'] == pytest.approx(then['density'], rel=1e-3)
