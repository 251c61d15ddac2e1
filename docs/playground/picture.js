// ---- The picture: pictures() of lib/icthp/microworld/playground.py, in the browser ---------------------------------------------------
// A picture is a Float32Array of size * size * 3 values from 0 to 255, row by row, channels last.

/** The bytes of a base64 text that zlib has packed. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The mean of each square of `side` x `side` pixels, enlarged again, linear between the squares' centres. */
function blurred(pixels, size, side) {
  const n = size / side;
  const coarse = new Float32Array(n * n * 3);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      for (let c = 0; c < 3; c++) {
        coarse[(Math.floor(y / side) * n + Math.floor(x / side)) * 3 + c] += pixels[(y * size + x) * 3 + c] / (side * side);
      }
    }
  }
  const places = [...Array(size).keys()].map((x) => centrePlace(x, side, n));
  const out = new Float32Array(pixels.length);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const [top, bottom, down] = places[y];
      const [left, right, across] = places[x];
      for (let c = 0; c < 3; c++) {
        const at = (row, column) => coarse[(row * n + column) * 3 + c];
        const above = at(top, left) + across * (at(top, right) - at(top, left));
        const below = at(bottom, left) + across * (at(bottom, right) - at(bottom, left));
        out[(y * size + x) * 3 + c] = above + down * (below - above);
      }
    }
  }
  return out;
}

/** Between which two squares pixel x lies, and how far on the way from the one to the other. */
function centrePlace(x, side, n) {
  const place = Math.max((x + 0.5) / side - 0.5, 0);
  const first = Math.floor(place);
  return [first, Math.min(first + 1, n - 1), place - first];
}

/** All renders of a scene, sharp and blurred, from their bytes. */
function layersOf(bytes, size, side) {
  const length = size * size * 3;
  const sharp = [...Array(bytes.length / length).keys()].map((k) => Float32Array.from(bytes.subarray(k * length, (k + 1) * length)));
  return { sharp, soft: sharp.map((pixels) => blurred(pixels, size, side)) };
}

/** Write the picture at {richness, noise, blur}, each in [0, 1], into RGBA bytes. `field`: the noise in units of 1/32. */
function paint(layers, field, deviation, { richness, noise, blur }, rgba) {
  const level = richness * (layers.sharp.length - 1);
  const below = Math.min(Math.floor(level), layers.sharp.length - 2);
  const part = level - below;
  const [a, b] = [layers.sharp[below], layers.sharp[below + 1]];
  const [softA, softB] = [layers.soft[below], layers.soft[below + 1]];
  const strength = (255 * deviation * noise) / 32;
  for (let i = 0, j = 0; i < a.length; j++) {
    for (let c = 0; c < 3; c++, i++, j++) {
      const sharp = a[i] + part * (b[i] - a[i]);
      const soft = softA[i] + part * (softB[i] - softA[i]);
      rgba[j] = sharp + blur * (soft - sharp) + strength * field[i]; // the array rounds, and keeps to 0..255
    }
    rgba[j] = 255;
  }
}
