"""What is drawn of a structure, and that it is drawn."""

import gemmi
import matplotlib.image
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import Site, SpaceGroup
from patterson_jax.pictures import COLOURS, Drawing, best_view, cell_view, crystal_drawing, draw_structure, find_bonds


def group(symbol):
    found = gemmi.SpaceGroup(symbol)
    return SpaceGroup(found.number, found.xhm(), tuple(each.triplet() for each in found.operations()), True)


def site(element, *fract):
    return Site(f'{element}1', element, fract, 0.03, 1.0, 1)


CELL = UnitCell(10.0, 11.0, 12.0, 80.0, 95.0, 100.0)


def test_a_molecule_on_an_inversion_centre_is_completed():
    atoms = (site('Cu', 0.5, 0.5, 0.5), site('O', 0.65, 0.55, 0.5), site('C', 0.75, 0.63, 0.55))
    drawing = crystal_drawing(CELL, group('P -1'), atoms)
    assert sorted(drawing.elements) == ['C', 'C', 'Cu', 'O', 'O']
    assert len(drawing.bonds) == 4
    assert not drawing.endless
    middle = CELL.orthogonalization @ np.full(3, 0.5)
    np.testing.assert_allclose(np.mean(drawing.positions, axis=0), middle, atol=1e-6)


def test_a_molecule_scattered_over_several_cells_is_put_together():
    atoms = (site('C', 0.02, 0.1, 0.1), site('C', 0.97, 0.2, 0.1))  # 1.3 Å apart through the cell's face
    drawing = crystal_drawing(CELL, group('P 1'), atoms)
    assert len(drawing.positions) == 2
    assert len(drawing.bonds) == 1


def test_rock_salt_is_shown_as_a_cell_with_all_its_faces():
    atoms = (site('Cl', 0.0, 0.0, 0.0), site('Na', 0.5, 0.5, 0.5))
    drawing = crystal_drawing(UnitCell(5.64, 5.64, 5.64, 90.0, 90.0, 90.0), group('F m -3 m'), atoms)
    assert (drawing.elements.count('Cl'), drawing.elements.count('Na')) == (14, 13)
    assert len(drawing.bonds) == 54
    assert drawing.endless


def test_single_atoms_are_shown_as_a_cell_and_a_shared_place_once():
    atoms = (site('Ar', 0.0, 0.0, 0.0), site('Kr', 0.0, 0.0, 0.0))
    drawing = crystal_drawing(UnitCell(9.0, 9.0, 9.0, 90.0, 90.0, 90.0), group('P 1'), atoms)
    assert drawing.elements == ('Ar',) * 8
    assert drawing.endless


def test_a_chain_without_end_is_not_followed():
    chain = (site('Se', 0.1, 0.1, 0.1),)
    drawing = crystal_drawing(UnitCell(2.3, 9.0, 9.0, 90.0, 90.0, 90.0), group('P 1'), chain)
    assert drawing.endless
    assert len(drawing.positions) >= 2


def test_bonds_are_between_near_atoms_that_are_not_both_metals():
    positions = np.array([[0, 0, 0], [1.5, 0, 0], [0, 2.2, 0], [0, 0, 2.6], [0, 1.8, 2.3], [9, 9, 9], [0, 0, 0.3]])
    found = find_bonds(positions, ('C', 'O', 'Fe', 'Fe', 'Fe', 'X', 'C'))
    assert {tuple(map(int, each)) for each in found} == {(0, 1), (0, 2), (1, 6), (2, 6), (3, 6)}


def test_views_are_rotations():
    for view in (best_view(np.random.default_rng(0).normal(size=(9, 3))), cell_view(CELL.orthogonalization)):
        np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(view) == pytest.approx(1)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_balls_bonds_and_the_cell_are_seen(tmp_path, count):
    positions = np.array([[0, 0, 0], [1.4, 0, 0], [2.8, 0, 0]])[:count]
    elements = ('O', 'C', 'N')[:count]
    drawing = Drawing(positions, elements, find_bonds(positions, elements), 5 * np.eye(3), (-2, -2, -2))
    path = tmp_path / 'new' / 'a.png'
    draw_structure(path, drawing, 'title')
    image = matplotlib.image.imread(path)[..., :3]
    for element in elements:
        colour = [int(COLOURS[element][place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert np.sum(np.linalg.norm(image - colour, axis=-1) < 0.25) > 100
    assert np.mean(np.all(image > 0.99, axis=-1)) > 0.3
    assert not list(path.parent.glob('.*'))
