// Walk through test images: what the teacher and each generation say, at any temperature.
const SMALLEST = 2 ** -24, SHOWN = 10; // classes shown at most, the likeliest

// The probabilities that the same logits give at another temperature.
export function soften(probabilities, temperature) {
  const powers = Array.from(probabilities, p => Math.max(p, SMALLEST) ** (1 / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
}

export function mount(root, data) {
  const { members, classes, label, predicted } = data, probabilities = decoded(data.probabilities, Float32Array);
  const pixels = decoded(data.pixels), [channels, height, width] = data.size, students = members.slice(1);
  const state = live(), tell = live("ban-tell"), bars = make("div", { class: "ban-side ban-small" });
  const canvas = make("canvas", { width, height, role: "img" });
  let temperature = 1, student = students.length ? 1 : 0, kind = "all", found = [], place = 0;
  const right = (image, member) => predicted[image][member] === label[image];
  const kinds = {
    all: ["all images", () => true],
    disagree: ["they disagree", image => predicted[image][0] !== predicted[image][student]],
    mended: ["the student mended an error", image => !right(image, 0) && right(image, student)],
    broke: ["the student broke a right answer", image => right(image, 0) && !right(image, student)],
  };

  const walk = slider("image", { min: 1, max: 1, value: 1, show: n => (found.length ? `${n} of ${found.length}` : "none") }, value => { place = value - 1; draw(); });
  const step = by => () => {
    place = Math.min(found.length - 1, Math.max(0, place + by));
    walk.reset({ value: place + 1 });
    draw();
    const [used, other] = by < 0 ? [back, on] : [on, back];
    if (used.disabled) other.focus(); // a disabled button would lose the keyboard
  };
  const back = button("‹ previous", step(-1)), on = button("next ›", step(1));
  const filter = choice("show", Object.entries(kinds).map(([key, [text]]) => [key, text]), value => { kind = value; sift(); });
  const who = choice("student", students.map(({ name }, i) => [i + 1, name]), value => { student = +value; sift(); });
  const warmth = slider("temperature", { min: -1, max: 4, step: 0.02, value: 0, show: v => number(2 ** v) },
    value => { temperature = 2 ** value; draw(); });

  function sift() {
    found = label.map((_, image) => image).filter(kinds[kind][1]);
    place = 0;
    walk.reset({ min: 1, max: Math.max(1, found.length), value: 1 });
    draw();
  }

  function paint(image) {
    const picture = new ImageData(width, height), area = width * height, start = image * channels * area;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) {
        const value = pixels[start + (channels === 3 ? c * area : 0) + i];
        picture.data[4 * i + c] = channels === 3 ? value : 255 - value; // digits dark on light
      }
      picture.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    canvas.setAttribute("aria-label", `test image ${data.image[image]}, class ${classes[label[image]]}`);
  }

  function panel(image, member, shown) {
    const start = (image * members.length + member) * classes.length;
    const soft = soften(probabilities.subarray(start, start + classes.length), temperature), points = [];
    const short = name => (name.length > 14 ? `${name.slice(0, 13)}…` : name);
    const mark = c => `${c === label[image] ? "▸ " : ""}${short(classes[c])}`, { name, run } = members[member];
    const left = Math.min(110, 20 + 7 * Math.max(...shown.map(c => classes[c].length)));
    const said = `${name} says ${classes[predicted[image][member]]}`;
    const { node, X, Y, add } = chart({
      label: `Probabilities of ${name}; the mark is at the true class.`, width: 190, height: 36 + 18 * shown.length, left, x: [0, 1], y: [shown.length - 0.4, -0.6],
      xTicks: [[0, "0"], [0.5, "0.5"], [1, "1"]], yTicks: shown.map((c, row) => [row, mark(c)]),
    });
    for (const [row, c] of shown.entries()) {
      add("rect", { x: left, y: Y(row) - 7, width: Math.max(0.5, X(soft[c]) - left), height: 14, class: "ban-fill", style: `color: ${data.colors[name]}` });
      points.push({ x: X(soft[c]), y: Y(row), text: `${name}, class ${classes[c]}: ${number(soft[c], 4)} at temperature ${number(temperature)}, run ${run}` });
    }
    pointsThatTell(node, points, text => { tell.textContent = text; });
    return make("div", {}, make("h4", {}, `${said} ${right(image, member) ? "✓" : "✗"}`), node);
  }

  function draw() {
    tell.textContent = "";
    const image = found[place], scope = `${members[student].name} beside the teacher, ${kinds[kind][0]}`;
    back.disabled = place === 0 || !found.length;
    on.disabled = place >= found.length - 1;
    canvas.hidden = !found.length;
    if (!found.length) {
      bars.replaceChildren();
      state.textContent = `${scope}: no image.`;
      return;
    }
    const highest = classes.map((_, c) => Math.max(...members.map((_, m) => probabilities[(image * members.length + m) * classes.length + c])));
    let shown = classes.map((_, c) => c);
    if (classes.length > SHOWN) shown = shown.sort((a, b) => highest[b] - highest[a]).slice(0, SHOWN);
    paint(image);
    bars.replaceChildren(...members.map((_, member) => panel(image, member, shown)));
    const said = members.map(({ name }, m) => `${name} says ${classes[predicted[image][m]]}`).join(", ");
    state.textContent = `${scope}: image ${place + 1} of ${found.length} (test image ${data.image[image]}), class ${classes[label[image]]}: ${said}; temperature ${number(temperature)}.`;
  }
  root.append(make("div", { class: "ban-controls" }, filter, ...(students.length > 1 ? [who] : []), walk,
    make("span", { class: "ban-control" }, back, on), warmth), state,
    make("div", { class: "ban-image" }, canvas), bars, tell);
  sift();
}
