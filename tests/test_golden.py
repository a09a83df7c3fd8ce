"""The solver and the shipped network against what they made of the same cases before (tests/golden)."""

import golden_cases
import numpy as np
import pytest
from golden_cases import differences, interpret, read, solve

CHUNK = 2  # cases; `python -m tests.golden_cases --check` compares all of them, by every method, in five minutes


def test_the_solver_solves_the_cases_as_it_did():
    assert differences('phase_retrieval', solve('phase_retrieval', CHUNK)) == []


def test_the_shipped_network_sees_in_the_maps_what_it_saw(monkeypatch):
    monkeypatch.setattr(golden_cases, 'NUM_CASES', CHUNK)
    for now, then in zip(interpret(), read('interpretation'), strict=False):
        np.testing.assert_allclose(now['positions'], then['positions'], atol=1e-3)
        assert now['r_factor'] == pytest.approx(then['r_factor'], abs=1e-3)
        assert now['squared_error'] == pytest.approx(then['squared_error'], rel=1e-3)
        assert now['density'] == pytest.approx(then['density'], rel=1e-3)
