// Draws the structure of a report: atoms, bonds, the cell and its density, from the JSON of the page. Fetches nothing.
'use strict';
const MOST_POINTS = 3e6; // of the density's grid when it is drawn
(function () {
  const holder = document.getElementById('structure');
  const place = document.getElementById('view');
  if (!holder || !place) return;
  const content = JSON.parse(holder.textContent);
  let viewer;
  try {
    viewer = $3Dmol.createViewer(place, { backgroundColor: 'white', antialias: true, disableFog: true });
  } catch (error) {
    viewer = null;
  }
  if (!viewer) {
    place.textContent = 'This browser has no WebGL; the picture (.png) beside this file shows the structure.';
    return;
  }

  function point(values) {
    return { x: values[0], y: values[1], z: values[2] };
  }

  const model = viewer.addModel();
  const atoms = content.atoms.map((atom, serial) => ({
    elem: atom.element, serial: serial, index: serial, ...point(atom.position), bonds: [], bondOrder: [],
    properties: { text: atom.text }, colour: atom.colour, radius: atom.radius, hetflag: true,
  }));
  for (const [first, second] of content.bonds) {
    atoms[first].bonds.push(second);
    atoms[first].bondOrder.push(1);
    atoms[second].bonds.push(first);
    atoms[second].bondOrder.push(1);
  }
  model.addAtoms(atoms);
  // Unseen points at the corners of the cell, so that zooming takes all of it into view.
  if (content.cell) {
    const [a, b, c] = content.cell.edges;
    const ends = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [0, 1, 2].map(
      (axis) => content.cell.origin[axis] + (n & 1) * a[axis] + ((n >> 1) & 1) * b[axis] + (n >> 2) * c[axis]));
    const corners = viewer.addModel();
    corners.addAtoms(ends.map((end, serial) => ({ elem: 'H', serial, index: serial, ...point(end), bonds: [], bondOrder: [] })));
    corners.setStyle({}, {});
  }
  const kinds = new Map(atoms.map((atom) => [`${atom.elem} ${atom.radius} ${atom.colour}`, atom]));
  for (const kind of kinds.values()) {
    const chosen = { predicate: (atom) => atom.elem === kind.elem && atom.radius === kind.radius };
    model.setStyle(chosen, {
      sphere: { radius: kind.radius, color: kind.colour },
      stick: { radius: content.bondRadius, color: kind.colour },
    });
  }

  let label = null;
  function forget() {
    if (label) viewer.removeLabel(label);
    label = null;
  }
  viewer.setHoverable({}, true, (atom) => {
    forget();
    label = viewer.addLabel(atom.properties.text, {
      position: atom, fontSize: 13, fontColor: 'black', backgroundColor: 'white', backgroundOpacity: 0.85,
    });
  }, forget);

  let edges = [];
  function drawCell(shown) {
    edges.forEach((shape) => viewer.removeShape(shape));
    edges = [];
    if (!shown || !content.cell) return;
    const [a, b, c] = content.cell.edges;
    const corner = (i, j, k) => point([0, 1, 2].map((n) => content.cell.origin[n] + i * a[n] + j * b[n] + k * c[n]));
    for (const i of [0, 1]) {
      for (const j of [0, 1]) {
        for (const [start, end] of [
          [corner(0, i, j), corner(1, i, j)],
          [corner(i, 0, j), corner(i, 1, j)],
          [corner(i, j, 0), corner(i, j, 1)],
        ]) {
          edges.push(viewer.addCylinder({ start, end, radius: content.cell.radius, color: '#7a8ca5' }));
        }
      }
    }
  }

  // The surface goes through the middles of cells and is then smoothed, which makes it too small on a coarse grid: so
  // the grid is made finer first, by lines between neighbours along one axis after another.
  function finer(values, size, axis, times) {
    const to = size.map((count, n) => (n === axis ? (count - 1) * times + 1 : count));
    const result = new Float32Array(to[0] * to[1] * to[2]);
    const stride = [size[1] * size[2], size[2], 1];
    let place = 0;
    for (let i = 0; i < to[0]; i += 1) {
      for (let j = 0; j < to[1]; j += 1) {
        for (let k = 0; k < to[2]; k += 1, place += 1) {
          const index = [i, j, k];
          const part = (index[axis] % times) / times;
          index[axis] = Math.floor(index[axis] / times);
          const start = index[0] * stride[0] + index[1] * stride[1] + index[2];
          const next = part > 0 ? values[start + stride[axis]] : 0;
          result[place] = values[start] * (1 - part) + next * part;
        }
      }
    }
    return { values: result, size: to };
  }

  let volume = null;
  if (content.density) {
    const { size, matrix, highest, values } = content.density;
    const roots = Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0)); // square roots: low values have fine steps
    const times = Math.max(1, Math.min(4, Math.floor(Math.cbrt(MOST_POINTS / roots.length))));
    let grid = { values: Float32Array.from(roots, (root) => highest * (root / 255) ** 2), size: size };
    for (const axis of [0, 1, 2]) grid = finer(grid.values, grid.size, axis, times);
    volume = new $3Dmol.VolumeData('', 'none');
    volume.size = point(grid.size);
    volume.data = grid.values;
    volume.matrix = new $3Dmol.Matrix4(...matrix.map((value, n) => (n % 4 === 3 ? value : value / times)));
  }
  let surface = null;
  function drawDensity(level) {
    if (surface) viewer.removeShape(surface);
    surface = null;
    if (volume && level !== null) {
      surface = viewer.addIsosurface(volume, { isoval: level, color: '#3b6fd8', opacity: 0.4, smoothness: 3 });
    }
  }

  const byId = (name) => document.getElementById(name);
  const slider = byId('level');
  const levelOf = () => content.density.highest * (Number(slider.value) / 1000) ** 2;
  function refresh() {
    drawCell(byId('show-cell') && byId('show-cell').checked);
    if (content.density) {
      byId('level-value').textContent = `${levelOf().toPrecision(2)} ${content.density.unit}`;
      drawDensity(byId('show-density').checked ? levelOf() : null);
    }
    viewer.render();
  }
  if (content.density) {
    slider.value = 1000 * Math.sqrt(content.density.level / content.density.highest);
    slider.addEventListener('change', refresh);
    slider.addEventListener('input', () => {
      byId('level-value').textContent = `${levelOf().toPrecision(2)} ${content.density.unit}`;
    });
    byId('show-density').addEventListener('change', refresh);
  }
  if (byId('show-cell')) byId('show-cell').addEventListener('change', refresh);
  viewer.setView([0, 0, 0, 0, ...content.view]);
  viewer.zoomTo({}); // before anything else is drawn, which would count too
  refresh();
  if (!content.cell) viewer.zoom(content.atoms.length > 6 ? 0.8 : content.atoms.length > 1 ? 1.4 : 0.5);
  viewer.setSlab(-10000, 10000); // else zooming to the atoms cuts off what is before and behind them
  viewer.render();
  place.dataset.drawn = String(atoms.length);
})();
