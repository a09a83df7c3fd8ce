"""What the benchmark of real crystals says of answers that are known to be right or wrong."""

import dataclasses
import json

import gemmi
import numpy as np
import pytest
from invented import invent

from benchmarks import crystal_verdicts, crystals, hard_crystals, near_centres, space_groups
from patterson_jax.crystal.structure import CrystalSolution, Site, SpaceGroup
from patterson_jax.errors import InputError
from patterson_jax.simulation import invented_crystals
from patterson_jax.simulation.invented_crystals import Recipe
from patterson_jax.solving import crystal_groups
from patterson_jax.solving.crystal_maps import stabiliser
from patterson_jax.solving.crystal_structure import refined_atoms

SHAPE = (24, 24, 24)
ELEMENTS = ('C', 'N', 'O')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder as the program wants it, and the crystal in it."""
    folder = tmp_path_factory.mktemp('crystal')
    crystal = invent('P 21 21 21', (6.9, 7.3, 7.6, 90, 90, 90), 3, 1.0)
    rows = zip(crystal.data.hkl.tolist(), crystal.data.intensities, crystal.data.sigmas, strict=True)
    lines = [f'{h} {k} {l} {intensity:.4f} {sigma:.4f}' for (h, k, l), intensity, sigma in rows]
    (folder / 'merged.hkl').write_text('\n'.join([*lines, '0 0 0 0 0\n']), encoding='utf-8')
    atoms = [
        {'el': element, 'xyz': place.tolist(), 'occ': 1.0, 'U': ['iso', [0.03]]}
        for element, place in zip(ELEMENTS, crystal.positions[::4], strict=True)
    ]
    content = {
        'name': 'invented',
        'cell': crystal.data.cell.parameters,
        'wavelength': 0.71073,
        'spacegroup': 'P 21 21 21 (#19)',
        'symops': [each.triplet() for each in crystal.setting.operations()],
        'occ_includes_site_multiplicity': False,
        'atoms': atoms,
    }
    (folder / 'norm.json').write_text(json.dumps(content), encoding='utf-8')
    return folder


def answer(known, atoms, hand=1, shift=(0.0, 0.0, 0.0)):
    """An answer with these atoms of the truth, moved, and with the density of the true ones, moved likewise."""
    sites = tuple(
        Site(f'{atom["el"]}1', atom['el'], tuple(hand * np.array(atom['xyz']) + shift), 0.03, 1.0, 4) for atom in atoms
    )
    symops = tuple(each.wrap().triplet() for each in gemmi.SpaceGroup('P 21 21 21').operations())
    group = SpaceGroup(19, 'P 21 21 21', symops, True)
    grid = np.stack(np.meshgrid(*[np.arange(size) / size for size in SHAPE], indexing='ij'), axis=-1)
    density = np.zeros(SHAPE)
    for atom in known.atoms:
        for operator in known.operators:
            place = hand * np.array(operator.apply_to_xyz(atom['xyz'])) + shift
            differences = grid - place
            differences -= np.rint(differences)
            squared = np.sum((differences @ known.data.cell.orthogonalization.T) ** 2, axis=-1)
            density += gemmi.Element(atom['el']).atomic_number * np.exp(-squared / 0.3)
    return CrystalSolution('solved', (), group, sites, 0.05, 1.0, 2, 1.0, density)


def test_the_folder_is_read_as_it_was_written(folder):
    known = crystals.read_folder(folder)
    assert known.number == 19
    assert (known.data.laue_class, known.data.centring) == ('mmm', 'P')
    assert known.data.formula == {'C': 4.0, 'N': 4.0, 'O': 4.0}
    assert len(crystals.read_folder(folder, 1.5).data.hkl) < len(known.data.hkl)


def test_published_files_are_read_where_there_is_no_merged_one(folder, tmp_path):
    known = crystals.read_folder(folder)
    (tmp_path / 'norm.json').write_bytes((folder / 'norm.json').read_bytes())
    (tmp_path / 'notes.cif').write_text('data_a\n_cell_length_a 1\n', encoding='utf-8')
    with pytest.raises(InputError, match=r'no merged.hkl and no other reflections: .*notes.cif: no reflections'):
        crystals.read_folder(tmp_path)
    (tmp_path / 'a.ref').write_bytes((folder / 'merged.hkl').read_bytes())
    published = crystals.read_folder(tmp_path)
    np.testing.assert_array_equal(published.data.hkl, known.data.hkl)
    np.testing.assert_allclose(published.data.intensities, known.data.intensities)
    (tmp_path / 'merged.hkl').write_text(''.join(f'{h} 1 2 5 1\n' for h in range(12)), encoding='utf-8')
    assert len(crystals.read_folder(tmp_path).data.hkl) == 12
    assert len(crystals.read_folder(tmp_path, raw=True).data.hkl) == len(known.data.hkl)


@pytest.mark.parametrize(('hand', 'shift'), [(1, (0.5, 0.0, 0.5)), (-1, (0.0, 0.5, 0.0))])
def test_a_right_answer_is_right_in_any_frame(folder, hand, shift):
    known = crystals.read_folder(folder)
    scored = crystals.score(known, answer(known, known.atoms, hand, shift))
    assert scored['map'] > 0.97
    assert (scored['sites'], scored['extra'], scored['elements'], scored['group_right']) == (1, 0, 1, True)
    assert scored['right'] is True


def test_missing_wrong_and_further_atoms_are_counted(folder):
    known = crystals.read_folder(folder)
    atoms = [dict(atom) for atom in known.atoms]
    atoms[2]['el'] = 'S'
    atoms[1]['xyz'] = (np.array(atoms[1]['xyz']) + 0.12).tolist()  # 1.5 Å away, more or less
    scored = crystals.score(known, answer(known, atoms))
    assert scored['sites'] == pytest.approx(2 / 3)
    assert scored['extra'] == pytest.approx(1 / 3)
    assert (scored['elements'], scored['telling_elements']) == (0.5, 0.5)
    assert scored['right'] is False


def test_wrong_groups_and_answers_without_a_map_are_not_right(folder):
    known = crystals.read_folder(folder)
    right = answer(known, known.atoms)
    other = dataclasses.replace(right, space_group=dataclasses.replace(right.space_group, number=18, hm='P 21 21 2'))
    assert crystals.score(known, other)['right'] is False
    nothing = dataclasses.replace(right, density=None, atoms=(), space_group=None)
    scored = crystals.score(known, nothing)
    assert (scored['right'], scored['group']) == (False, None)


def test_the_table_names_wrong_verdicts(folder):
    known = crystals.read_folder(folder)
    entry = {'name': 'invented', 'known_group': 'P 21 21 21 (#19)', 'resolution': 1.0, 'verdict': 'solved'}
    entry |= {'r_factor': 0.05, 'starts': 2, 'seconds': 1.0}
    right = entry | crystals.score(known, answer(known, known.atoms))
    wrong = entry | crystals.score(known, answer(known, known.atoms[:1]))
    lines = crystals.table([right, wrong]).splitlines()
    assert '| solved |' in lines[2] and '| solved (wrong) |' in lines[3]
    assert lines[-1] == '1 of 2 right, 2 of 2 groups, 2 called solved, 1 of these wrong: invented'


def test_the_truth_remains_of_good_data_and_of_its_map(folder):
    options = crystals.parse_arguments([str(folder), '--truth'])
    result = crystals.measure_truth(folder, options)
    for kind in crystals.TRUTHS:
        assert result[kind]['right'], kind
        assert result[kind]['group'] == 'P 21 21 21'
        assert result[kind]['r_factor'] < 0.02
    lines = crystals.truth_table([result, result | {'map': result['map'] | {'right': False, 'map': None}}]).splitlines()
    assert (
        lines[2]
        == f'| invented | P 21 21 21 (#19) | {" | ".join(result[kind]["verdict"] for kind in crystals.TRUTHS)} |'
    )
    assert '✗ map –, sites 100%, extra 0%' in lines[3]
    assert lines[-1].startswith('map: 1 of 2 right')


def test_an_atom_on_a_special_position_is_full_however_it_is_written(folder):
    known = crystals.read_folder(folder)
    content = known.content | {'symops': ['x,y,z', '-x,-y,-z']}
    atom = {'el': 'C', 'xyz': [0.5, 0.0, 0.5], 'occ': 0.5, 'U': None}
    for included, expected in ((True, 1.0), (False, 0.5)):
        known = dataclasses.replace(known, content=content | {'occ_includes_site_multiplicity': included})
        assert crystals.fullness(known, atom) == expected


def test_phases_of_the_peer_are_scored_in_any_frame(folder):
    known = crystals.read_folder(folder)
    hkl = known.data.hkl[5:]
    truth = np.angle(crystals.known_structure_factors(known, hkl))
    moved = truth + np.pi * hkl.sum(axis=1)
    assert crystals.peer_map(known, np.concatenate([hkl, -hkl]), np.concatenate([moved, -moved])) > 0.999
    assert crystals.peer_map(known, hkl, np.random.default_rng(0).permutation(moved)) < 0.5
    assert crystals.peer_map(known, hkl[:0], moved[:0]) is None
    entry = {'name': 'invented', 'known_group': 'P 21 21 21 (#19)', 'resolution': 1.0, 'verdict': 'solved'}
    entry |= {'r_factor': 0.05, 'starts': 2, 'seconds': 1.0, **crystals.score(known, answer(known, known.atoms))}
    lines = crystals.table([entry | {'peer': {'map': 0.3, 'accepted': True, 'seconds': 2.0}}]).splitlines()
    assert lines[2].endswith('| 0.30 | yes (wrong) | 2.0 |')
    assert lines[-1] == 'cctbx: 0 of 1 maps right, 1 accepted, 1 of these wrong'


def test_what_is_no_folder_of_a_crystal_is_named(tmp_path):
    with pytest.raises(InputError, match='not the folder of a crystal'):
        crystals.read_folder(tmp_path)


@pytest.mark.parametrize('number', [1, 14, 76, 148, 167, 198])
def test_a_crystal_of_any_group_obeys_it_and_its_cell(number):
    known = space_groups.invent(number, 0)
    operations = gemmi.GroupOps(known.operators)
    assert gemmi.find_spacegroup_by_ops(operations).number == known.number == number
    data = known.data
    assert data.laue_class == gemmi.SpaceGroup(number).laue_str()
    images = np.array([each.apply_to_xyz(atom['xyz']) for atom in known.atoms for each in known.operators])
    differences = images[:, None] - images[:: len(known.operators)]
    distances = np.linalg.norm((differences - np.rint(differences)) @ data.cell.orthogonalization.T, axis=-1)
    assert np.sort(distances, axis=0)[1].min() > 1.4  # so that none is on a special position
    assert data.cell.volume / len(images) == pytest.approx(18)
    found = operations.find_centering()
    assert data.centring == found


@pytest.mark.parametrize(
    ('kind', 'symbol'),
    [
        ('special positions', 'P 63/m m c'),
        ('pseudo-translation', 'P 1 21 1'),
        ('pseudo-inversion', 'P n a 21'),
        ('long axis', 'P 1 21/c 1'),
        ('square lattice', 'P 21 21 21'),
        ('hexagonal lattice', 'C 2 2 21'),
    ],
)
def test_a_hard_crystal_is_of_its_kind(kind, symbol):
    known = hard_crystals.invent(kind, symbol, 1)
    data, setting = known.data, gemmi.SpaceGroup(symbol)
    assert data.laue_class == setting.laue_str()  # found from the data of lattices, claimed in others
    positions = np.array([atom['xyz'] for atom in known.atoms])
    amplitudes = np.abs(crystals.known_structure_factors(known, data.hkl))
    if kind == 'special positions':
        group = (
            np.array([each.rot for each in known.operators]) // 24,
            np.array([each.tran for each in known.operators]) / 24,
        )
        assert all(len(stabiliser(each, data.cell, group)) > 1 for each in positions)
    elif kind == 'pseudo-translation':
        longest = int(np.argmax(data.cell.parameters[:3]))
        odd = data.hkl[:, longest] % 2 == 1
        assert np.mean(amplitudes[odd] ** 2) < 0.5 * np.mean(amplitudes[~odd] ** 2)
    elif kind == 'pseudo-inversion':
        centres = (positions[: len(positions) // 2] + positions[len(positions) // 2 :]) / 2
        assert 0.01 < np.abs((centres - centres.mean(axis=0)) @ data.cell.orthogonalization.T).max() < 0.3
    elif kind == 'long axis':
        assert max(data.cell.parameters[:3]) == 51
    else:
        primitive = gemmi.GruberVector(data.cell.gemmi, setting.centring_type())
        primitive.niggli_reduce()
        edges = primitive.cell_parameters()[:3]
        assert any(np.isclose(edges[i], edges[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_what_was_missed_in_a_group_is_said():
    entry = {'known_group': 'P 41 (#76)', 'laue_class': '4/m', 'group': 'P 43', 'group_right': True, 'starts': 3}
    entry |= {'map': 0.97, 'sites': 1.0, 'extra': 0.0, 'right': True, 'verdict': 'solved', 'reasons': ['all is well']}
    missed = entry | {'group': 'P 4', 'group_right': False, 'right': False, 'verdict': 'uncertain', 'reasons': ['why']}
    lines = space_groups.summary([entry, missed]).splitlines()
    assert lines[0].startswith('2 groups: 1 right, 1 with the right group, 2 with a right map; 1 called solved, 0 of')
    assert lines[1:] == [
        '- P 41 (#76), Laue class 4/m: P 4 (wrong), map 0.97, sites 1.00, extra 0.00, uncertain (why), 3 starts'
    ]
    assert space_groups.parse_groups('1-3,62,231') == [1, 2, 3, 62]


def test_two_searches_of_the_same_crystals_are_compared_by_kind_and_centre():
    def case(index, right, verdict, seconds):
        return {'kind': 'low', 'index': index, 'right': right, 'verdict': verdict, 'cpu_seconds': seconds}

    before = [case(1, False, 'uncertain', 2.0), case(2, True, 'solved', 1.0), case(3, True, 'uncertain', 3.0)]
    after = [
        *(case(1, True, 'solved', 4.0), case(2, True, 'uncertain', 2.0), case(3, True, 'solved', 6.0)),
        case(4, True, 'solved', 9.0),  # only this search has it
    ]
    table = crystal_verdicts.compare(after, before).splitlines()[2:]
    assert table == [  # of the groups of these cases the first and the third have a centre, P2₁ has none
        '| low | yes | 2 | 1 → 2 | +1 −0 | 1 | 0 → 2 | +2 −0 | 0.5 | 0 → 0 | 2.5 → 5.0 |',
        '| low | no | 1 | 1 → 1 | +0 −0 | 1 | 1 → 0 | +0 −1 | 1 | 0 → 0 | 1.0 → 2.0 |',
        '| all |  | 3 | 2 → 3 | +1 −0 | 1 | 1 → 2 | +2 −1 | 1 | 0 → 0 | 2.0 → 4.0 |',
    ]


@pytest.mark.parametrize('group', ['P-1', 'P21/c'])
def test_a_crystal_without_its_centre_has_the_same_data_until_a_molecule_is_turned(group):
    recipe = Recipe(group, num_atoms=6, d_min=1.0)
    crystal = invented_crystals.invent(recipe, seed=4)
    expected = np.abs(crystal.structure_factors) ** 2
    parts = near_centres.without_centre(crystal, recipe, 0.0, np.random.default_rng(1))
    assert not parts.space_group.has_centre
    same = parts.data
    deviations = (same.intensities - expected) / same.sigmas
    assert np.abs(deviations).max() < 5
    assert 0.9 < deviations.std() < 1.1
    np.testing.assert_allclose(same.sigmas, crystal.data.sigmas, rtol=1e-9)
    moved = near_centres.without_centre(crystal, recipe, 0.2, np.random.default_rng(1)).data
    assert ((moved.intensities - expected) / moved.sigmas).std() > 2


def test_a_molecule_is_turned_by_the_distance_that_is_wanted():
    crystal = invented_crystals.invent(Recipe('P-1', num_atoms=6, d_min=1.0), seed=4)
    turned = near_centres._turned(crystal, crystal.positions, 0.2, np.random.default_rng(1))
    edges = crystal.data.cell.orthogonalization
    heavy = np.array([element != 'H' for element in crystal.elements])
    moves = np.linalg.norm((turned - crystal.positions) @ edges.T, axis=1)[heavy]
    assert np.sqrt(np.mean(moves**2)) == pytest.approx(0.2, rel=1e-3)
    before, after = ((each @ edges.T)[1] - (each @ edges.T)[0] for each in (crystal.positions, turned))
    assert np.linalg.norm(before) == pytest.approx(np.linalg.norm(after))


@pytest.mark.parametrize(('distance', 'doubted'), [(0.0, False), (0.3, True)])
def test_weak_reflections_tell_whether_there_is_a_centre(distance, doubted):
    recipe = Recipe('P21/c', num_atoms=6, d_min=0.9)
    whole = invented_crystals.invent(recipe, seed=4)
    parts = near_centres.without_centre(whole, recipe, distance, np.random.default_rng(1))
    models = [
        refined_atoms(
            parts.data,
            crystal.space_group,
            [
                Site(element, element, tuple(place), 0.04, 1.0, 1)
                for element, place in zip(crystal.elements, crystal.positions, strict=True)
                if element != 'H'
            ],
        )
        for crystal in (parts, whole)
    ]
    assert [len(model.positions) for model in models] == [12, 6]
    assert crystal_groups._explains_weak(*models) == doubted
