// Test error by generation: ours, for a profile and as many seeds as you like, beside the paper's.
export function mount(root, data) {
  let set = data.sets[0], reach, seeds, network = data.paper[0].network;
  const state = live(), tell = live("ban-tell"), panels = make("div", { class: "ban-side" });
  const seedsOf = () => [...new Set(set.models.flatMap(model => model.runs.map(([seed]) => seed)))];
  const most = () => ({ generations: Math.max(...set.models.map(model => model.generation)), seeds: seedsOf().length });
  ({ generations: reach, seeds } = most());
  const generationsSlider = slider("generations", { min: 0, max: reach, value: reach }, value => { reach = value; draw(); });
  const seedsSlider = slider("seeds", { min: 1, max: seeds, value: seeds, show: n => (n === 1 ? "the first" : `the first ${n}`) },
    value => { seeds = value; draw(); });
  const profile = choice("measured", data.sets.map((each, place) => [place, each.title]), value => {
    set = data.sets[value];
    reach = generationsSlider.reset({ min: 0, max: most().generations, value: most().generations });
    seeds = seedsSlider.reset({ min: 1, max: most().seeds, value: most().seeds });
    draw();
  });
  const paper = choice("the paper's row", data.paper.map(row => [row.network, row.network]),
    value => { network = value; draw(); });

  const half = errors => {
    const count = errors.length, average = mean(errors);
    if (count < 2) return null;
    return data.quantiles[count - 2] * Math.sqrt(errors.reduce((sum, e) => sum + (e - average) ** 2, 0) / (count - 1) / count);
  };
  // bars: their ends; one that is longer than all the errors leaves the picture
  const axes = (names, errors, label, bars = []) => {
    const most = 1.6 * Math.max(...errors) + 1, ends = [...errors, ...bars].map(end => Math.min(end, most));
    const low = Math.min(...ends), high = Math.max(...ends), room = 0.08 * (high - low) + 0.1;
    const short = name => (names.length > 9 ? name.replace("BAN-", "").replace("Teacher", "T") : name);
    const xTicks = names.map((name, place) => [place, short(name)]), y = [Math.max(0, low - room), high + room];
    const drawn = chart({ label, x: [-0.5, names.length - 0.5], y, xTicks, yLabel: "test error, %", staggered: names.length > 4 });
    return { ...drawn, within: end => Math.min(Math.max(end, y[0]), y[1]) };
  };

  function measured() {
    const chosen = seedsOf().slice(0, seeds), ownOf = model => model.runs.filter(([seed]) => chosen.includes(seed));
    const models = set.models.filter(model => model.generation <= reach && ownOf(model).length);
    const runs = models.map(ownOf), points = [], said = [];
    const label = `Measured test error by generation, ${set.title}.`;
    const several = runs.map(group => group.map(([, error]) => error));
    const bars = several.flatMap(errors => [-1, 1].map(side => mean(errors) + side * (half(errors) ?? 0)));
    const { node, X, Y, add, within } = axes(models.map(model => model.name), several.flat(), label, bars);
    models.forEach(({ name }, place) => {
      const errors = several[place], average = mean(errors), width = half(errors);
      const style = `color: ${data.colors[name]}`;
      for (const [order, [seed, error, run]] of runs[place].entries()) {
        const x = X(place - 0.18 + (0.36 * (order + 0.5)) / errors.length), y = Y(error);
        add("circle", { cx: x, cy: y, r: 3, class: "ban-seed", style });
        points.push({ x, y, text: `${name}, seed ${seed}: ${number(error)} % error, ${run.includes("+") ? "mean of runs" : "run"} ${run}` });
      }
      if (width != null) add("path", { d: `M${X(place)},${Y(within(average - width))}V${Y(within(average + width))}`, class: "ban-bar", style });
      add("circle", { cx: X(place), cy: Y(average), r: 5.5, class: "ban-mean", style });
      said.push(`${name} ${number(average)}${width == null ? "" : ` ± ${number(width)}`} %${errors.length < seeds ? ` (${errors.length} of them)` : ""}`);
    });
    pointsThatTell(node, points, text => { tell.textContent = text; });
    const scope = seeds > 1 ? `${seeds} seeds, mean ± 95 % interval` : "One seed, so no interval";
    state.append(`${set.title}. ${scope}: ${said.join(", ")}.`);
    return make("div", {}, make("h4", {}, "Measured"), node);
  }

  function printed() {
    const columns = Object.keys(data.paper[0].errors), points = [], said = [];
    const names = columns.map(name => (name === "Baseline" ? "Teacher" : name));
    const all = data.paper.flatMap(row => Object.values(row.errors).filter(error => error != null));
    const { node, X, Y, add } = axes(names, all, "The paper's test errors on CIFAR-100, one run each.");
    for (const row of data.paper) {
      const places = columns.map((name, place) => [place, row.errors[name]]).filter(([, error]) => error != null);
      const chosen = row.network === network;
      const line = places.filter(([place]) => !names[place].startsWith("Ens"));
      add("polyline", { points: line.map(([place, error]) => `${X(place)},${Y(error)}`).join(" "), class: chosen ? "ban-paper ban-chosen" : "ban-paper" });
      for (const [place, error] of places) {
        if (chosen) said.push(`${names[place]} ${number(error)} %`);
        add("circle", { cx: X(place), cy: Y(error), r: chosen ? 5 : 3, class: chosen ? "ban-hollow ban-chosen" : "ban-hollow" });
        points.push({ x: X(place), y: Y(error), text: `The paper, ${row.network}, ${names[place]}: ${number(error)} %, one run` });
      }
    }
    pointsThatTell(node, points, text => { tell.textContent = text; });
    state.append(` The paper’s ${network} on CIFAR-100, one run: ${said.join(", ")}.`);
    return make("div", {}, make("h4", {}, `The paper, CIFAR-100: ${network}`), node);
  }

  function draw() {
    state.replaceChildren();
    tell.textContent = "";
    panels.replaceChildren(measured(), printed());
  }
  draw();
  root.append(make("div", { class: "ban-controls" }, profile, generationsSlider, seedsSlider, paper), panels, tell, state);
}
