"""From the phased map of a crystal to its atoms, elements and a verdict.

Atoms are built from the map, the elements that explain the data best are found for them, and what is found is examined
and judged. Twins are not refined, and the hand is not determined.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from patterson_jax.crystal.structure import CrystalData, Site, SpaceGroup
from patterson_jax.solving import crystal_maps as maps
from patterson_jax.solving.crystal_building import SAME_ATOM, built, first_model
from patterson_jax.solving.crystal_element_search import unforeseen_elements, with_best_elements
from patterson_jax.solving.crystal_findings import examine, residues
from patterson_jax.solving.crystal_model import (
    FIRST_U,
    Model,
    Refined,
    anisotropic,
    enough_for_anisotropy,
    in_group,
    refined,
)
from patterson_jax.solving.crystal_molecule import assemble
from patterson_jax.solving.crystal_verdict import (
    MOST_WEAK,
    Evidence,
    Findings,
    explains,
    is_for_anisotropy,
    judge_crystal,
)

LEAST_DATA = 2.0  # reflections for each parameter; a model with fewer explains any data
MUCH_BETTER = 0.75  # other elements than the formula's are preferred if their R1 is below this part of R1
ATOM_CYCLES = 20  # of refinement
UNFORESEEN = 0.93  # ratio of R1 below which elements outside of the formula make its elements doubtful


@dataclasses.dataclass(frozen=True)
class Interpretation:
    """The atoms of a phased map and the verdict on them.

    Attributes:
        space_group: of the atoms.
        atoms: the asymmetric unit.
        r_factor: R1 of the isotropic model over reflections with F > 4σ(F); None without atoms.
        verdict: 'solved', 'uncertain' or 'not solved'.
        reasons: for the verdict, in words.
        density: over the given cell, roughly in electrons/Å³, with the phases of the model.
        findings: the grounds of the verdict; None without atoms.
        remarks: those of the reasons that hold whatever the verdict is.
        evidence: how the phases were found.
    """

    space_group: SpaceGroup
    atoms: tuple[Site, ...]
    r_factor: float | None
    verdict: str
    reasons: tuple[str, ...]
    density: np.ndarray
    findings: Findings | None = None
    remarks: tuple[str, ...] = ()
    evidence: Evidence = dataclasses.field(default_factory=Evidence)

    def with_findings(self, evidence: Evidence | None = None, **changed: Any) -> 'Interpretation':
        """The same atoms with findings of which some are changed, judged again, by other evidence if there is any."""
        assert self.findings is not None  # because it has atoms
        findings, evidence = dataclasses.replace(self.findings, **changed), evidence or self.evidence
        verdict, reasons = judge_crystal(findings, evidence)
        return dataclasses.replace(
            self,
            space_group=dataclasses.replace(self.space_group, certain=findings.group_certain),
            findings=findings,
            verdict=verdict,
            reasons=(*reasons, *self.remarks),
            evidence=evidence,
        )


def interpret_phases(
    data: CrystalData, space_group: SpaceGroup, hkl: np.ndarray, structure_factors: np.ndarray, evidence: Evidence
) -> Interpretation:
    """Finds atoms, elements and a verdict from phases.

    No atoms are the answer if the group has less than half of the operations of the Laue class, because no structure
    of such a group has these intensities, or if the map has so many atoms that they would explain any data.

    Args:
        data: of the crystal.
        space_group: of the crystal.
        hkl: `(n, 3)` int, reflections with phases; those without an equivalent in the data are not used.
        structure_factors: `(n,)` complex, observed amplitude times phase, in the given cell and with the origin of the
            space group.
        evidence: how the phases were found.
    """
    crystal = in_group(data, space_group)
    density = crystal.map(_phased(crystal, hkl, structure_factors))
    operations, of_the_class = len(np.unique(space_group.operations[0], axis=0)), len(data.rotations)

    def without_atoms(reason):
        return Interpretation(space_group, (), None, 'not solved', (reason,), density)

    if 2 * operations < of_the_class:
        return without_atoms(
            f'the phases show only {operations} of the {of_the_class} operations of the Laue class {data.laue_class}, '
            'and any structure has at least half of them: the map is wrong, or the class'
        )
    model = built(first_model(crystal, density))
    if not model.elements:
        return without_atoms('no atom of the map holds in refinement')
    if model.reflections_per_parameter < LEAST_DATA:
        return without_atoms(
            f'the map needs {len(model.elements)} atoms, for which {len(crystal.hkl)} reflections are too few: '
            'so many atoms explain any data'
        )
    found = _finished(model, evidence)
    if data.formula and not explains(found.findings) and found.findings.weak_intensity < MOST_WEAK:
        return _without_formula(model, evidence, found)
    return found


def judge_atoms(
    data: CrystalData, space_group: SpaceGroup, positions: np.ndarray, elements: tuple[str, ...], evidence: Evidence
) -> Interpretation:
    """Refines given atoms and judges them. No atom is dropped or added.

    Args:
        data: of the crystal.
        space_group: of the crystal.
        positions: `(n, 3)`, fractional, of the asymmetric unit; atoms near special positions are put onto them.
        elements: of the atoms; others of the same formula are tried too.
        evidence: how the atoms were found.
    """
    crystal = in_group(data, space_group)
    settled, _ = crystal.settled(positions, SAME_ATOM)
    return _finished(Model(crystal, settled, np.full(len(settled), FIRST_U), elements), evidence)


def refined_atoms(
    data: CrystalData,
    space_group: SpaceGroup,
    atoms: Sequence[Site],
    phases: tuple[np.ndarray, np.ndarray] | None = None,
) -> Refined:
    """Atoms of a crystal, refined; none is dropped or added.

    Args:
        data: of the crystal.
        space_group: of the crystal.
        atoms: some may be equivalent, and then count once.
        phases: reflections `(n, 3)` and their structure factors `(n,)`, as for `interpret_phases`: atoms begin at the
            nearest maxima of that map. None: they begin where they are.
    """
    crystal, sites = in_group(data, space_group), np.array([atom.fract for atom in atoms])
    kept = maps.apart(sites, np.zeros((0, 3)), *crystal.symmetry, least=SAME_ATOM)
    atoms, sites = [atoms[index] for index in kept], sites[kept]
    if phases is not None:
        density = crystal.map(_phased(crystal, *phases))
        number = 2 * len(sites) * len(space_group.symops)
        peaks = maps.sharp_peaks(density, *crystal.symmetry, least=density.std(), number=number)
        sites = np.array([_nearest_peak(site, peaks.positions, crystal) for site in sites])
    settled, _ = crystal.settled(sites, SAME_ATOM)
    u_iso, elements = np.array([atom.u_iso for atom in atoms]), tuple(atom.element for atom in atoms)
    return refined(Model(crystal, settled, u_iso, elements), ATOM_CYCLES)


def _nearest_peak(site, peaks, crystal):
    """The image of the nearest peak of a map, or the site itself where none is within `SAME_ATOM`."""
    if not len(peaks):
        return site
    distances, images = maps.nearest_images(site, peaks, *crystal.symmetry)
    return images[np.argmin(distances)] if distances.min() < SAME_ATOM else site


def _phased(crystal, hkl, structure_factors):
    """The crystal's amplitudes with the phases of structure factors of equivalents; 0 where there is no equivalent."""
    operations = crystal.space_group.operations
    values = maps.spectrum(hkl, structure_factors, operations, crystal.shape)[tuple(crystal.hkl.T)]
    return crystal.amplitudes * np.exp(1j * np.angle(values)) * (values != 0)


def _finished(model, evidence):
    """The last refinement, the verdict and the atoms."""
    found, sureness = with_best_elements(model)
    findings, crystal = examine(found), found.crystal
    if is_for_anisotropy(findings, evidence) and enough_for_anisotropy(found):
        freer = residues(anisotropic(found))
        findings = dataclasses.replace(findings, anisotropic=freer)
    verdict, reasons = judge_crystal(findings, evidence)
    remarks: tuple[str, ...] = ()
    if crystal.data.formula and verdict != 'not solved':
        other = unforeseen_elements(found)
        if other.r_factor < UNFORESEEN * findings.r_factor:
            sureness = np.where(np.array(other.elements) == np.array(found.elements), sureness, 0.0)
            new, old = (', '.join(dict.fromkeys(each.elements)) for each in (other, found))
            words = f'but the elements are doubtful: with {new} in place of {old} R1 would be {other.r_factor:.3f}'
            remarks = (words,)
    atoms, reasons = _sites(found, sureness), (*reasons, *remarks)
    return Interpretation(
        crystal.space_group, atoms, findings.r_factor, verdict, reasons, found.density, findings, remarks, evidence
    )


def _without_formula(model, evidence, found):
    """What is found where any elements may occur, if it is much better than what was found with the formula's."""
    data = dataclasses.replace(model.crystal.data, formula=None)
    model = built(dataclasses.replace(model, crystal=dataclasses.replace(model.crystal, data=data)))
    if not model.elements or model.reflections_per_parameter < LEAST_DATA:
        return found
    other = _finished(model, evidence)
    if not other.findings.r_factor < MUCH_BETTER * found.findings.r_factor:
        return found
    remarks = (*other.remarks, 'the elements of the formula do not explain the data; these do')
    return dataclasses.replace(other, remarks=remarks).with_findings(follows_formula=False)


def _sites(found, sureness):
    """The atoms, heaviest first, as one connected molecule where possible."""
    places = assemble(found.positions, found.elements, *found.crystal.symmetry)
    counts: collections.Counter[str] = collections.Counter()
    atoms = []
    for index in np.argsort(-found.numbers, kind='stable'):
        element = found.elements[index]
        counts[element] += 1
        label, place, u_iso = f'{element}{counts[element]}', tuple(places[index].tolist()), float(found.u_iso[index])
        multiplicity, confidence = int(found.multiplicities[index]), float(sureness[index])
        atoms.append(Site(label, element, place, u_iso, 1.0, multiplicity, confidence))
    return tuple(atoms)
