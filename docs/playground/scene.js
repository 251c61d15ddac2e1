// ---- Section 1: one scene, three sliders, three prompts, five scores ----------------------------------------------------------------

const AXIS = [-7, 3]; // of the bars, in standard deviations
const SLIDERS = ["richness", "noise", "blur"];
const NOTES = {
  short: "It names the objects.",
  long: "It names all that the picture shows at richness 1.",
  wrong: "It names another colour of the first object.",
};
const byId = (id) => document.getElementById(id);

class ScenePlayground {
  /** data: scenes.json, whose scenes have their `layers` and decoded `scores`; field: the noise in units of 1/32. */
  constructor(data, field) {
    this.data = data;
    this.field = field;
    this.state = { scene: 0, style: "short", richness: 0, noise: 0, blur: 0 };
    this.names = Object.keys(data.norms);
    this.image = new ImageData(data.size, data.size);
    this.context = byId("picture").getContext("2d");
    this.colours = theme();
    this.rows = this.makeBars();
    this.makeScenes();
    this.listen();
    this.refresh();
  }

  // ---- the page's parts ----

  makeBars() {
    byId("bars-axis").innerHTML = "<b></b><span></span><b></b>";
    for (const value of [-6, -4, -2, 0, 2]) {
      const mark = Object.assign(document.createElement("i"), { textContent: value ? signed(value, 0) : "0" });
      mark.style.left = `${100 * shareOf(value)}%`;
      byId("bars-axis").children[1].append(mark);
    }
    return Object.fromEntries(this.names.map((name) => [name, this.makeBar(name)]));
  }

  makeBar(name) {
    const bar = Object.assign(document.createElement("div"), { className: "bar" });
    bar.setAttribute("role", "listitem");
    bar.style.setProperty("--colour", this.data.scorers[name].colour);
    bar.style.setProperty("--zero", `${100 * shareOf(0)}%`);
    bar.innerHTML = '<b></b><div class="track"><div class="fill"></div><span class="over"></span></div><span class="value"></span>';
    bar.querySelector("b").textContent = this.data.scorers[name].label;
    byId("bars").append(bar);
    return { fill: bar.querySelector(".fill"), over: bar.querySelector(".over"), value: bar.querySelector(".value") };
  }

  makeScenes() {
    this.data.scenes.forEach((scene, i) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "scene", value: i, checked: i === 0 });
      input.setAttribute("aria-label", scene.prompts.short);
      const canvas = Object.assign(document.createElement("canvas"), { width: this.data.size, height: this.data.size });
      const image = new ImageData(this.data.size, this.data.size);
      paint(scene.layers, this.field, 0, { richness: 0.5, noise: 0, blur: 0 }, image.data);
      canvas.getContext("2d").putImageData(image, 0, 0);
      label.append(input, canvas);
      byId("scenes").append(label);
    });
  }

  listen() {
    byId("controls").addEventListener("input", () => {
      this.touched = true;
      this.read();
    });
    byId("whole").addEventListener("click", () => {
      this.dragged = [0, 1];
      this.schedule();
    });
  }

  // ---- from the hand to the picture ----

  /** Take the state from the form, and draw once in the next frame, however many events come before it. */
  read() {
    const form = new FormData(byId("controls"));
    const scene = Number(form.get("scene"));
    const style = form.get("style");
    const values = Object.fromEntries(SLIDERS.map((name) => [name, byId(name).valueAsNumber]));
    const same = scene === this.state.scene && style === this.state.style && values.noise === this.state.noise && values.blur === this.state.blur;
    this.state = { scene, style, ...values };
    if (!same) this.refresh();
    else this.schedule();
  }

  /** New curves, for another scene, prompt, noise or blur; the trail begins anew. */
  refresh() {
    const { scene, style, noise, blur, richness } = this.state;
    this.curves = curvesOf(this.data.scenes[scene], this.data, style, noise, blur);
    this.curves.icthp = this.curves.ict.map((ict, i) => productOf(ict, this.curves.hp[i], this.data.norms));
    this.dragged = [richness, richness];
    this.schedule();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    const start = performance.now();
    const { scene, richness } = this.state;
    this.dragged = [Math.min(this.dragged[0], richness), Math.max(this.dragged[1], richness)];
    paint(this.data.scenes[scene].layers, this.field, this.data.noise.deviation, this.state, this.image.data);
    this.context.putImageData(this.image, 0, 0);
    const scores = scoresAt(this.curves, this.data, richness);
    this.drawBars(scores);
    this.drawCurve(scores);
    this.drawTexts();
    this.lastDraw = performance.now() - start;
    this.draws = (this.draws ?? 0) + 1;
    this.settle(scores);
  }

  drawBars(scores) {
    for (const name of this.names) {
      const { fill, over, value } = this.rows[name];
      const low = Math.max(Math.min(scores[name], 0), AXIS[0]);
      const high = Math.min(Math.max(scores[name], 0), AXIS[1]);
      fill.style.transform = `translateX(${100 * shareOf(low)}%) scaleX(${shareOf(high) - shareOf(low)})`;
      over.textContent = scores[name] < AXIS[0] ? `\u25c2 ${signed(scores[name])}` : "";
      value.textContent = rawText(toRaw(scores[name], this.data.norms[name]));
    }
  }

  drawCurve(scores) {
    const stops = this.data.stops[0];
    const [low, high] = this.dragged;
    const inside = stops.filter((stop) => stop > low && stop < high);
    const x = low < high ? [low, ...inside, high] : [low];
    const extreme = Math.max(...this.names.flatMap((name) => this.curves[name].map((z) => Math.abs(z - this.curves[name][0]))));
    const range = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 15].find((limit) => limit >= extreme) ?? 20;
    const lines = this.names.map((name) => {
      const y = x.map((value) => onCurve(this.curves[name], stops, value) - this.curves[name][0]);
      return { name, x, y, label: this.data.scorers[name].label, colour: this.data.scorers[name].colour };
    });
    const dots = Object.fromEntries(this.names.map((name) => [name, scores[name] - this.curves[name][0]]));
    drawChart(byId("curve"), this.colours, {
      lines, dots, x: [0, 1], y: [-range, range], now: this.state.richness, xTicks: [[0, "plain"], [0.5, "0.5"], [1, "rich"]], xLabel: "richness",
    });
  }

  drawTexts() {
    for (const name of SLIDERS) document.querySelector(`output[for=${name}]`).textContent = this.state[name].toFixed(2);
    const { scene, style } = this.state;
    byId("prompt").textContent = this.data.scenes[scene].prompts[style];
    byId("style-note").textContent = NOTES[style];
    byId("found").textContent = this.conclusion();
  }

  /** What the trail shows, once it reaches from plain to rich. */
  conclusion() {
    const [low, high] = this.dragged;
    if (low > 0.05 || high < 0.95) return "Drag richness from left to right to see what the five scores do.";
    const changes = this.names.map((name) => [name, this.curves[name].at(-1) - this.curves[name][0]]);
    const text = (wanted) =>
      changes.filter(([, change]) => wanted(change)).map(([name, change]) => `${this.data.scorers[name].label} (${signed(change)})`).join(", ");
    const [fall, rise, stay] = [text((z) => z < -0.1), text((z) => z > 0.1), text((z) => Math.abs(z) <= 0.1)];
    const parts = [fall && `lower: ${fall}`, rise && `higher: ${rise}`, stay && `about the same: ${stay}`].filter(Boolean);
    return `From plain to rich, in standard deviations \u2013 ${parts.join("; ")}. ${this.everyScene()}`;
  }

  /** In how many of the scenes each score falls from plain to rich, with this kind of prompt, this noise and this blur. */
  everyScene() {
    const { style, noise, blur } = this.state;
    const ends = this.data.scenes.map((scene) => {
      const curves = curvesOf(scene, this.data, style, noise, blur);
      return [0, 1].map((richness) => scoresAt(curves, this.data, richness));
    });
    const counts = this.names.map((name) => `${this.data.scorers[name].label} ${ends.filter(([plain, rich]) => rich[name] < plain[name]).length}`);
    return `In how many of the ${ends.length} scenes it is lower: ${counts.join(", ")}.`;
  }

  /** What a screen reader hears, half a second after the hand has come to rest. */
  settle(scores) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const values = this.names.map((name) => `${this.data.scorers[name].label} ${rawText(toRaw(scores[name], this.data.norms[name]))}`);
      const at = SLIDERS.map((name) => `${name} ${this.state[name].toFixed(2)}`);
      const text = `${at.join(", ")}: ${values.join(", ")}`;
      if (this.touched) byId("status").textContent = text;
      byId("picture").setAttribute("aria-label", `The picture of \u201c${this.data.scenes[this.state.scene].prompts.short}\u201d, ${at.join(", ")}`);
      byId("curve").setAttribute("aria-label", byId("found").textContent);
    }, 500);
  }
}

/** Where on the axis of the bars a score lies, in [0, 1]. */
const shareOf = (z) => (z - AXIS[0]) / (AXIS[1] - AXIS[0]);

/** A score in three significant digits or two decimals. */
const rawText = (raw) => (Math.abs(raw) < 10 ? raw.toFixed(3) : raw.toFixed(2)).replace("-", "\u2212");
