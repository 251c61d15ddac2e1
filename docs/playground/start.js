// ---- Start: the data out of the page, the texts that hold numbers, the two sections --------------------------------------------------

function fillTexts({ scenes: data, tunings }) {
  const put = (id, text) => (byId(id).textContent = text);
  put("deviation", `${100 * data.noise.deviation} %`);
  put("table-size", data.stops.map((axis) => axis.length).join(" \u00d7 "));
  put("error-points", data.errors.points);
  put("error-largest", data.errors.largest.toFixed(2));
  put("error-q95", data.errors.q95.toFixed(2));
  const each = Object.entries(data.errors.of).map(([name, { largest, q95 }]) => `${data.scorers[name].label} ${largest.toFixed(2)} and ${q95.toFixed(2)}`);
  put("error-of", `One by one: ${each.join(", ")}.`);
  const { settings } = tunings[0];
  const sampler = `DRaFT-${settings.k}: the last of ${settings.sampler_steps} sampler steps has the gradient`;
  const update = `${settings.steps} steps of ${settings.batch} prompts, a LoRA of rank ${settings.rank}, learning rate ${settings.lr}`;
  put("settings", `${sampler}; ${update}, no anchor (${settings.anchor}), seed ${settings.seed}.`);
  for (const node of document.querySelectorAll(".steps")) node.textContent = settings.steps;
  for (const node of document.querySelectorAll(".heldout")) node.textContent = settings.prompts;
}

async function start() {
  const recorded = JSON.parse(byId("data").textContent);
  const data = recorded.scenes;
  const field = new Int8Array((await unpack(data.noise.field)).buffer);
  for (const scene of data.scenes) {
    scene.layers = layersOf(await unpack(scene.renders), data.size, data.coarse);
    scene.scores = decodeScores(await unpack(scene.scores), data.step);
  }
  fillTexts(recorded);
  const scene = new ScenePlayground(data, field);
  const player = new TuningPlayer(recorded.tunings, data.scorers);
  const redraw = () => {
    scene.colours = player.colours = theme();
    scene.schedule();
    player.schedule();
  };
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.playground = { scene, player, curvesOf, scoresAt }; // for the tests
}

start().catch((error) => {
  const text = `This browser cannot show the playground (${error.message}). A recent Firefox, Chrome or Safari can.`;
  document.querySelector("main").prepend(Object.assign(document.createElement("p"), { className: "predict", textContent: text }));
});
