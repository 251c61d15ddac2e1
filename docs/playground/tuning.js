// ---- Section 2: recorded tunings ----------------------------------------------------------------------------------------------------

class TuningPlayer {
  /** tunings: the files tuning_REWARD.json, in the order of the menu; scorers: their labels and colours. */
  constructor(tunings, scorers) {
    this.tunings = tunings;
    this.scorers = scorers;
    this.colours = theme();
    this.makeMenu();
    this.makeFilm(tunings[0]);
    this.listen();
    this.choose(tunings[0].reward);
  }

  // ---- the page's parts ----

  makeMenu() {
    this.tunings.forEach(({ reward }, i) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "reward", value: reward, checked: i === 0 });
      const text = Object.assign(document.createElement("span"), { textContent: this.scorers[reward].label });
      label.append(input, text);
      byId("rewards").append(label);
    });
  }

  makeFilm({ prompts }) {
    this.figures = prompts.map((prompt) => {
      const figure = document.createElement("figure");
      figure.setAttribute("role", "listitem");
      figure.innerHTML = '<canvas width="64" height="64" role="img"></canvas><figcaption><span></span><br><span class="number"></span></figcaption>';
      figure.querySelector("span").textContent = prompt;
      figure.querySelector("canvas").setAttribute("aria-label", prompt);
      byId("film").append(figure);
      return { context: figure.querySelector("canvas").getContext("2d"), number: figure.querySelector(".number") };
    });
  }

  listen() {
    byId("rewards").addEventListener("input", (event) => this.choose(event.target.value));
    byId("step").addEventListener("input", () => {
      this.pause();
      this.schedule();
    });
    byId("play").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
  }

  // ---- choose, play, pause ----

  async choose(reward) {
    this.pause();
    this.tuning = this.tunings.find((tuning) => tuning.reward === reward);
    const { steps, settings } = this.tuning;
    Object.assign(byId("step"), { min: 0, max: steps.at(-1), step: settings.every, value: 0 });
    this.reached = 0;
    this.frames = [];
    this.schedule();
    const frames = await Promise.all(this.tuning.frames.map(decodeFrame));
    if (this.tuning.reward !== reward) return; // another one was chosen meanwhile
    this.frames = frames;
    this.schedule();
  }

  /** Milliseconds of a frame; longer for those who want little motion. */
  pace() {
    return matchMedia("(prefers-reduced-motion: reduce)").matches ? 1200 : 450;
  }

  /** One frame after the other. */
  play() {
    const step = byId("step");
    if (step.valueAsNumber >= Number(step.max)) step.value = 0;
    this.playing = setInterval(() => {
      step.stepUp();
      this.schedule();
      if (step.valueAsNumber >= Number(step.max)) this.pause();
    }, this.pace());
    byId("play").textContent = "Pause";
    this.schedule();
  }

  pause() {
    clearInterval(this.playing);
    this.playing = undefined;
    byId("play").textContent = "Play";
  }

  // ---- draw ----

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    const i = this.tuning.steps.indexOf(byId("step").valueAsNumber);
    this.reached = Math.max(this.reached, i);
    document.querySelector("output[for=step]").textContent = this.tuning.steps[i];
    this.drawFilm(i);
    this.drawScores(i);
    this.drawPrompts(i);
    byId("tuned").textContent = this.conclusion(i);
  }

  drawFilm(i) {
    const { reward, shown_reward: rewards, shown_fulfilled: fulfilled } = this.tuning;
    this.figures.forEach(({ context, number }, k) => {
      if (this.frames[i]) context.drawImage(this.frames[i], 64 * k, 0, 64, 64, 0, 0, 64, 64);
      number.textContent = `${this.scorers[reward].label} ${rawText(rewards[i][k])}, ${fulfilled[i][k] ? "\u2713 fulfilled" : "\u2717 missed"}`;
    });
  }

  drawScores(i) {
    const { reward, scores } = this.tuning;
    const seen = this.tuning.steps.slice(0, this.reached + 1);
    const extremes = Object.values(scores).flat();
    const y = [Math.min(-0.5, ...extremes), Math.max(0.5, ...extremes)];
    const names = Object.keys(scores).sort((a, b) => (a === reward) - (b === reward)); // the reward on top
    const lines = names.map((name) => ({
      name, x: seen, y: scores[name].slice(0, seen.length), wide: name === reward, label: this.scorers[name].label, colour: this.colourOf(name),
    }));
    const dots = Object.fromEntries(names.map((name) => [name, scores[name][i]]));
    drawChart(byId("scores-chart"), this.colours, { lines, dots, y, ...this.steps(i) });
  }

  drawPrompts(i) {
    const seen = this.tuning.steps.slice(0, this.reached + 1);
    const { fulfilled } = this.tuning;
    const lines = [{ name: "fulfilled", x: seen, y: fulfilled.slice(0, seen.length), wide: true, colour: this.colours.ink, label: "" }];
    const options = { lines, dots: { fulfilled: fulfilled[i] }, y: [0, 1], percent: true, ...this.steps(i) };
    drawChart(byId("prompts-chart"), this.colours, options);
  }

  steps(i) {
    const last = this.tuning.steps.at(-1);
    const xTicks = [0, last / 2, last].map((step) => [step, String(step)]);
    return { x: [0, last], now: this.tuning.steps[i], xTicks, xLabel: "steps done" };
  }

  colourOf(name) {
    return name === "edges" ? this.colours.ink : this.scorers[name].colour;
  }

  /** What has happened up to this step, in one sentence. */
  conclusion(i) {
    const { reward, scores, fulfilled, steps, settings } = this.tuning;
    if (i === 0) return `Step 0, untuned: ${percentOf(fulfilled[0])} of ${settings.prompts} prompts fulfilled. Press Play.`;
    const rest = Object.keys(scores).filter((name) => name !== reward).map((name) => `${this.scorers[name].label} ${signed(scores[name][i])}`);
    const own = `the reward, ${this.scorers[reward].label}, ${signed(scores[reward][i])} standard deviations`;
    return `Step ${steps[i]}: ${own}; ${rest.join(", ")}. Prompts fulfilled: ${percentOf(fulfilled[i])}, untuned ${percentOf(fulfilled[0])}.`;
  }
}

const percentOf = (share) => `${Math.round(100 * share)} %`;

async function decodeFrame(base64) {
  const image = new Image();
  image.src = `data:image/webp;base64,${base64}`;
  await image.decode();
  return image;
}
