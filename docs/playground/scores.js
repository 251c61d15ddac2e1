// ---- The scores: from the recorded table, between its points by interpolation ------------------------------------------------------

/** Float32Array of scores in standard deviations from the differences of their codes. */
function decodeScores(bytes, step) {
  const codes = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  const values = new Float32Array(codes.length);
  for (let i = 0, code = 0; i < codes.length; i++) {
    code = (code + codes[i] << 16) >> 16; // as 16 bits hold it
    values[i] = code * step;
  }
  return values;
}

/** The last stop that is not above x, and how far x is on the way to the next one. */
function placeOf(stops, x) {
  let i = 0;
  while (i < stops.length - 2 && stops[i + 1] <= x) i++;
  return [i, (x - stops[i]) / (stops[i + 1] - stops[i])];
}

/** A score at every stop of richness, at this noise and blur. `values`: the scores of one prompt and scorer, blur the last axis. */
function richnessCurve(values, stops, noise, blur) {
  const [n, b] = [stops[1].length, stops[2].length];
  const [i, down] = placeOf(stops[1], noise);
  const [j, across] = placeOf(stops[2], blur);
  return stops[0].map((_, r) => {
    const at = (row, column) => values[(r * n + row) * b + column];
    const above = at(i, j) + across * (at(i, j + 1) - at(i, j));
    const below = at(i + 1, j) + across * (at(i + 1, j + 1) - at(i + 1, j));
    return above + down * (below - above);
  });
}

function onCurve(curve, stops, richness) {
  const [i, part] = placeOf(stops, richness);
  return curve[i] + part * (curve[i + 1] - curve[i]);
}

/** {scorer: score in standard deviations at every stop of richness}; ICT-HP is the product of ICT and HP. */
function curvesOf(scene, data, style, noise, blur) {
  const length = data.stops.reduce((product, axis) => product * axis.length, 1);
  const first = data.styles.indexOf(style) * data.towers.length;
  const curves = {};
  data.towers.forEach((name, i) => {
    const part = scene.scores.subarray((first + i) * length, (first + i + 1) * length);
    curves[name] = richnessCurve(part, data.stops, noise, blur);
  });
  return curves;
}

const toRaw = (z, [mean, deviation]) => mean + z * deviation;

function productOf(ict, hp, norms) {
  const [mean, deviation] = norms.icthp;
  return (toRaw(ict, norms.ict) * toRaw(hp, norms.hp) - mean) / deviation;
}

/** {scorer: score in standard deviations} at one richness. */
function scoresAt(curves, data, richness) {
  const scores = Object.fromEntries(Object.entries(curves).map(([name, curve]) => [name, onCurve(curve, data.stops[0], richness)]));
  return { ...scores, icthp: productOf(scores.ict, scores.hp, data.norms) };
}
