// ---- Charts: lines on a canvas, sharp on every screen, legible in grey -------------------------------------------------------------

const DASHES = { clip: [], pickscore: [7, 3], ict: [2, 3], hp: [10, 3, 2, 3], icthp: [4, 4], edges: [], fulfilled: [] };
const MARGIN = { left: 46, right: 90, top: 8, bottom: 34 };

/** Colours of the page's theme. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), soft: read("--soft"), grid: read("--grid"), paper: read("--paper") };
}

/** The canvas' 2D context in CSS pixels, cleared, and its size. */
function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "12px system-ui, sans-serif";
  return { context, width, height };
}

/** A step of 0.2, 0.5, 1, 2, 5, ... for about `count` ticks over a length. */
function tickStep(length, count = 5) {
  const power = 10 ** Math.floor(Math.log10(length / count));
  return [1, 2, 5, 10].map((k) => k * power).find((step) => length / step <= count) ?? 10 * power;
}

/**
 * Draw lines [{name, label, colour, x, y, wide}] over the range x of [low, high], y of [low, high]; `xTicks`: [value, text];
 * a vertical line at `now`, and a dot on each line there where `dots` has its value.
 */
function drawChart(canvas, colours, { lines, x, y, xTicks, xLabel, now, dots = {}, percent = false }) {
  const { context, width, height } = prepare(canvas);
  if (!width) return;
  const right = width - (lines.some((line) => line.label) ? MARGIN.right : 12);
  const bottom = height - MARGIN.bottom;
  const px = (value) => MARGIN.left + ((value - x[0]) / (x[1] - x[0])) * (right - MARGIN.left);
  const py = (value) => bottom - ((value - y[0]) / (y[1] - y[0])) * (bottom - MARGIN.top);
  drawAxes(context, colours, { px, py, right, bottom, y, xTicks, xLabel, percent });
  if (now !== undefined) {
    context.strokeStyle = colours.soft;
    context.lineWidth = 1;
    segment(context, px(now), MARGIN.top, px(now), bottom);
  }
  for (const line of lines) drawLine(context, line, px, py);
  for (const line of lines) {
    if (line.name in dots) drawDot(context, line, px(now), py(dots[line.name]), colours);
  }
  drawLabels(context, lines, py, right, colours, height);
}

function segment(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function drawAxes(context, colours, { px, py, right, bottom, y, xTicks, xLabel, percent }) {
  const step = percent ? 0.25 : tickStep(y[1] - y[0]);
  context.lineWidth = 1;
  context.fillStyle = colours.soft;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let tick = Math.ceil(y[0] / step) * step; tick <= y[1] + 1e-9; tick += step) {
    const zero = Math.abs(tick) < 1e-9;
    context.strokeStyle = zero ? colours.soft : colours.grid;
    segment(context, MARGIN.left, py(tick), right, py(tick));
    context.fillText(percent ? `${Math.round(100 * tick)} %` : signed(zero ? 0 : tick, step < 1 ? 1 : 0), MARGIN.left - 8, py(tick));
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const [value, text] of xTicks) context.fillText(text, px(value), bottom + 4);
  context.fillText(xLabel, (MARGIN.left + right) / 2, bottom + 18);
}

function drawLine(context, { colour, name, x, y, wide }, px, py) {
  context.strokeStyle = colour;
  context.lineWidth = wide ? 4 : 2;
  context.setLineDash(DASHES[name] ?? []);
  context.beginPath();
  x.forEach((value, i) => (i ? context.lineTo(px(value), py(y[i])) : context.moveTo(px(value), py(y[i]))));
  context.stroke();
  context.setLineDash([]);
}

function drawDot(context, { colour, wide }, x, y, colours) {
  context.fillStyle = colour;
  context.strokeStyle = colours.paper;
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(x, y, wide ? 6 : 4.5, 0, 7);
  context.fill();
  context.stroke();
}

/** Names at the right, each beside its line's end, moved apart where they would overlap. */
function drawLabels(context, lines, py, right, colours, height) {
  const labels = lines.filter((line) => line.label).map((line) => ({ ...line, at: py(line.y.at(-1)) })).sort((a, b) => a.at - b.at);
  labels.forEach((label, i) => (label.at = Math.max(label.at, i ? labels[i - 1].at + 14 : 8)));
  const room = height - 8;
  labels.reverse().forEach((label, i) => (label.at = Math.min(label.at, i ? labels[i - 1].at - 14 : room)));
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const { label, colour, name, at, wide } of labels) {
    context.strokeStyle = colour;
    context.lineWidth = wide ? 4 : 2;
    context.setLineDash(DASHES[name] ?? []);
    segment(context, right + 4, at, right + 18, at);
    context.setLineDash([]);
    context.fillStyle = colours.ink;
    context.fillText(label, right + 21, at);
  }
}

/** "+1.2", "−0.5", "0.0". */
function signed(value, digits = 1) {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : "\u2212") + text;
}
