// Live training: start, stop and go on; the kernel trains in a process of its own.
export function mount(root, data, model) {
  const state = live(), tell = live("ban-tell"), panels = make("div", { class: "ban-side" });
  const seed = make("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, value: data.seed });
  const start = button("Start", () => model.send({ do: "start", seed: seed.value })), stop = button("Stop", () => model.send({ do: "stop" }));
  const said = {
    new: "Nothing is trained yet.", training: "Training.", stopped: "Stopped; nothing is lost, and it can go on.",
    finished: "Finished.", failed: "Failed.", stopping: "Saving, then stopping.",
  };

  function curve(title, column, yLabel, runs) {
    const high = Math.max(...runs.flatMap(run => run.rows.map(row => row[column])), 0) || 1, points = [];
    const { node, X, Y, add } = chart({ label: `${title} by epoch.`, x: [0, data.epochs], y: [0, 1.1 * high], xLabel: "epoch", yLabel });
    for (const { name, rows } of runs) {
      const style = `color: ${data.colors[name]}`, seen = rows.filter(row => row[column] != null);
      add("polyline", { points: seen.map(row => `${X(row[0])},${Y(row[column])}`).join(" "), class: "ban-line", style });
      const last = seen.at(-1);
      if (last) add("circle", { cx: X(last[0]), cy: Y(last[column]), r: 4, class: "ban-fill", style });
      points.push(...seen.map(row => ({ x: X(row[0]), y: Y(row[column]), text: `${name}, epoch ${row[0]}: ${number(row[column])} ${yLabel}` })));
    }
    if (points.length) pointsThatTell(node, points, text => { tell.textContent = text; });
    return make("div", {}, make("h4", {}, title), legend(Object.fromEntries(runs.map(({ name }) => [name, data.colors[name]]))), node);
  }

  function draw() {
    const { status, note, runs } = model.get("data"), now = runs.filter(run => run.rows.length);
    const busy = status === "training" || status === "stopping", held = document.activeElement;
    start.disabled = seed.disabled = busy;
    stop.disabled = status !== "training";
    start.textContent = status === "stopped" ? "Go on" : "Start";
    if (held === start && busy) stop.focus(); // a disabled button would lose the keyboard
    if (held === stop && !busy) start.focus();
    if (!panels.contains(held)) panels.replaceChildren(curve("Test error", 2, "%", now), curve("Training loss", 1, "nats", now));
    const last = now.at(-1);
    const begun = last || status !== "training" ? said[status] : "Starting a process; the first epochs show in a few seconds.";
    const where = last ? ` ${last.name}, epoch ${last.rows.at(-1)[0]} of ${data.epochs}: test error ${number(last.rows.at(-1)[2])} %.` : "";
    state.textContent = `${begun}${where} ${note}`;
  }
  model.on("change:data", draw);
  panels.addEventListener("focusout", () => setTimeout(draw)); // what a chart in use did not show
  root.append(make("div", { class: "ban-controls" }, make("label", { class: "ban-control" }, make("span", {}, "seed"), seed), start, stop), state, panels, tell);
  draw();
  return () => model.off("change:data", draw);
}
