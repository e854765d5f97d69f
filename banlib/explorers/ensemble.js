// Build an ensemble: the members' probabilities are averaged and judged here, in the browser.
const SMALLEST = 2 ** -24, BINS = 15; // as in banlib.ensemble
const METRICS = { error: "test error, %", nll: "negative log-likelihood, nats", ece: "calibration error, %" };

// Error in %, likelihood in nats and calibration error in % of probabilities [images x classes].
export function metrics(probabilities, labels, classes) {
  let wrong = 0, nll = 0;
  const gaps = new Float64Array(BINS + 1);
  for (let image = 0; image < labels.length; image++) {
    const row = probabilities.subarray(image * classes, (image + 1) * classes);
    let best = 0;
    for (let c = 1; c < classes; c++) if (row[c] > row[best]) best = c;
    const right = best === labels[image];
    wrong += !right;
    nll -= Math.log(Math.max(row[labels[image]], SMALLEST));
    gaps[Math.floor(row[best] * BINS)] += row[best] - right;
  }
  const apart = gaps.reduce((sum, gap) => sum + Math.abs(gap), 0);
  return { error: (100 * wrong) / labels.length, nll: nll / labels.length, ece: (100 * apart) / labels.length };
}

// A byte b stands for (b / 255)^power; rows are divided by their sums.
export function probabilitiesOf(text, classes, power) {
  const probabilities = Float32Array.from(decoded(text), byte => (byte / 255) ** power);
  for (let start = 0; start < probabilities.length; start += classes) {
    const row = probabilities.subarray(start, start + classes), sum = row.reduce((a, b) => a + b, 0);
    for (let c = 0; c < classes; c++) row[c] /= sum;
  }
  return probabilities;
}

// Eq. 4: the mean of the members' probabilities.
export function average(members) {
  const sum = new Float32Array(members[0].length);
  for (const member of members) for (let i = 0; i < sum.length; i++) sum[i] += member[i];
  return sum.map(value => value / members.length);
}

export function mount(root, data) {
  const labels = decoded(data.labels, Int16Array), state = live(), tell = live("ban-tell");
  const strips = make("div", { class: "ban-side" });
  const members = data.members.map(member => {
    const probabilities = probabilitiesOf(member.probabilities, data.classes, data.power);
    const text = `${member.name}, seed ${member.seed}`;
    const tick = make("input", { type: "checkbox", "aria-label": text, onchange: draw });
    return { ...member, text, tick, probabilities, alone: metrics(probabilities, labels, data.classes) };
  });
  const seeds = [...new Set(members.map(member => member.seed))], first = seeds[0];
  const names = [...new Set(members.map(member => member.name))];

  const choose = test => () => {
    for (const member of members) member.tick.checked = test(member);
    draw();
  };
  const presets = {
    "one lineage's students": member => member.seed === first && member.generation > 0,
    "one whole lineage": member => member.seed === first,
    "teachers alone": member => member.generation === 0,
    everything: () => true,
    nothing: () => false,
  };
  const cell = (seed, name) => {
    const member = members.find(each => each.seed === seed && each.name === name);
    return make("td", {}, ...(member ? [member.tick] : []));
  };
  const head = make("tr", {}, make("th", { scope: "col" }, "seed"), ...names.map(name => make("th", { scope: "col" }, name)));
  const rows = seeds.map(seed => make("tr", {}, make("th", { scope: "row" }, `${seed}`), ...names.map(name => cell(seed, name))));
  const table = make("table", {}, make("caption", { class: "ban-tell" }, "members of the ensemble"),
    make("thead", {}, head), make("tbody", {}, ...rows));

  function strip(metric, chosen, together) {
    const values = members.map(member => member.alone[metric]), high = Math.max(...values, together?.[metric] ?? 0) * 1.08;
    const label = `${METRICS[metric]}: ensemble and single networks.`;
    const { node, X, Y, add } = chart({ label, height: 92, left: 12, x: [0, high], y: [0, 2], xLabel: METRICS[metric], yTicks: [] });
    const points = members.map(member => {
      const x = X(member.alone[metric]), y = Y(0.3 + (0.9 * seeds.indexOf(member.seed)) / seeds.length);
      const style = `color: ${data.colors[member.name]}`;
      add("circle", { cx: x, cy: y, r: 4, class: chosen.includes(member) ? "ban-fill" : "ban-ghost", style });
      return { x, y, text: `${member.text} alone: ${number(member.alone[metric])}, run ${member.run}` };
    });
    if (together) {
      const x = X(together[metric]), y = Y(1.6);
      add("path", { d: `M${x},${y - 8}l8,8l-8,8l-8,-8z`, class: "ban-fill", style: `color: ${data.colors.ensemble}` });
      points.push({ x, y, text: `the ensemble of ${chosen.length}: ${number(together[metric])}` });
    }
    pointsThatTell(node, points, text => { tell.textContent = `${METRICS[metric]}, ${text}`; });
    return node;
  }

  function draw() {
    tell.textContent = "";
    const chosen = members.filter(member => member.tick.checked);
    const together = chosen.length && metrics(average(chosen.map(member => member.probabilities)), labels, data.classes);
    strips.replaceChildren(...Object.keys(METRICS).map(metric => strip(metric, chosen, together || null)));
    if (!together) return void (state.textContent = "Tick at least one network.");
    const alone = metric => number(mean(chosen.map(member => member.alone[metric])));
    const say = (metric, unit) => `${number(together[metric])} ${unit} (alone, on average, ${alone(metric)})`;
    const who = chosen.length === 1 ? "One network" : `${chosen.length} networks together`;
    state.textContent = `${who}: error ${say("error", "%")}, negative log-likelihood ${say("nll", "nats")}, calibration error ${say("ece", "%")}.`;
  }
  const buttons = Object.entries(presets).map(([text, test]) => button(text, choose(test)));
  root.append(make("div", { class: "ban-scroll" }, table), make("div", { class: "ban-controls" }, ...buttons), state, legend(data.colors), strips, tell);
  choose(presets[names.length > 1 ? "one lineage's students" : "teachers alone"])();
}
