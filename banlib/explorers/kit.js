// What all explorers share: elements, labeled controls, charts, points that tell, and mounting.

// An element or, with svg: before its name, one of SVG. Functions are listeners (onclick).
function make(name, properties = {}, ...children) {
  const svg = name.startsWith("svg:") && name.slice(4);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", svg) : document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (value != null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// A number as in the book's tables: rounded once, a true minus, a dash where there is none.
function number(value, digits = 2, sign = false) {
  if (!Number.isFinite(value)) return "—";
  const digitsOf = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  const text = (Math.abs(value) + 5e-10).toLocaleString("en-US", digitsOf); // as sums differ by rounding
  return (value < 0 && /[1-9]/.test(text) ? "−" : sign ? "+" : "") + text;
}

const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;

// Bytes of base64, in an array of any type.
function decoded(text, Kind = Uint8Array) {
  return new Kind(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
}

function slider(text, { min, max, step = 1, value, show = String }, change) {
  const shown = make("span", { class: "ban-value" }, show(value));
  const input = make("input", {
    type: "range", min, max, step, value, "aria-label": text, "aria-valuetext": show(value), disabled: min === max,
    oninput() { set(+input.value); change(+input.value); },
  });
  const set = now => {
    shown.textContent = show(now);
    input.setAttribute("aria-valuetext", show(now));
  };
  const node = make("label", { class: "ban-control" }, make("span", {}, text), input, shown);
  return Object.assign(node, {
    reset(limits) { // other limits; the value stays within them
      Object.assign(input, limits);
      input.disabled = input.min === input.max;
      set(+input.value);
      return +input.value;
    },
  });
}

// options: [[value, name], ...]
function choice(text, options, change) {
  const choose = event => change(event.target.value);
  const list = options.map(([value, name]) => make("option", { value }, name));
  return make("label", { class: "ban-control" }, make("span", {}, text), make("select", { onchange: choose }, ...list));
}

function button(text, onclick, more = {}) {
  return make("button", { type: "button", onclick, ...more }, text);
}

// Text that a screen reader hears when it changes.
function live(name = "ban-state") {
  return make("p", { class: name, role: "status", "aria-live": "polite" });
}

function ticks([low, high], count = 5) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(each => each >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
  return values.map(value => [value, number(value, digits)]);
}

// What the colors mean: {name: color}; without a color it is the text's.
function legend(colors) {
  const box = color => make("span", { style: color && `color: ${color}` }, "■ ");
  return make("div", { class: "ban-controls" }, ...Object.entries(colors).map(([name, color]) => make("span", {}, box(color), name)));
}

// Axes; x and y: [low, high]; ticks: [[value, text], ...]. Returns the SVG, its scales X and Y, and
// add(name, properties, text). staggered: long words below x alternate between two lines.
function chart({ label, height = 220, x, y, xLabel = "", yLabel = "", xTicks, yTicks, left = 46, width = 380, staggered = false }) {
  const right = 10, top = 10, bottom = (xLabel ? 38 : 22) + (staggered ? 14 : 0);
  const node = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const X = value => left + ((value - x[0]) / (x[1] - x[0])) * (width - left - right);
  const Y = value => height - bottom - ((value - y[0]) / (y[1] - y[0])) * (height - top - bottom);
  const add = (name, properties, ...text) => {
    const part = make(`svg:${name}`, properties, ...text);
    node.append(part);
    return part;
  };
  const floor = height - bottom;
  add("path", { class: "ban-axis", d: `M${left},${top}V${floor}H${width - right}` });
  for (const [place, [value, text]] of (xTicks ?? ticks(x)).entries()) {
    const lower = staggered && place % 2 ? 14 : 0;
    add("path", { class: "ban-axis", d: `M${X(value)},${floor}v${4 + lower}` });
    add("text", { x: X(value), y: floor + 16 + lower, "text-anchor": "middle" }, text);
  }
  for (const [value, text] of yTicks ?? ticks(y)) {
    add("path", { class: "ban-grid", d: `M${left},${Y(value)}H${width - right}` });
    add("text", { x: left - 6, y: Y(value) + 4, "text-anchor": "end" }, text);
  }
  add("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel);
  const middle = (top + floor) / 2;
  add("text", { x: 12, y: middle, transform: `rotate(-90 12 ${middle})`, "text-anchor": "middle" }, yLabel);
  return { node, X, Y, add };
}

// Points {x, y, text} of a chart (in its units of drawing) tell their text to pointer and keyboard.
function pointsThatTell(node, points, tell) {
  const ring = make("svg:circle", { r: 7, class: "ban-ring", visibility: "hidden" });
  let place = -1;
  const show = index => {
    place = index;
    ring.setAttribute("visibility", "visible");
    ring.setAttribute("cx", points[index].x);
    ring.setAttribute("cy", points[index].y);
    tell(points[index].text);
  };
  node.append(ring);
  node.setAttribute("role", "application");
  node.setAttribute("tabindex", 0);
  node.setAttribute("aria-label", `${node.getAttribute("aria-label")} Arrow keys step through the points.`);
  const near = event => {
    const box = node.getBoundingClientRect(), scale = node.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const far = points.map(point => Math.hypot(point.x - x, point.y - y)), least = Math.min(...far);
    if (least < 24) show(far.indexOf(least));
  };
  for (const kind of ["pointermove", "pointerdown"]) node.addEventListener(kind, near); // a tap moves nothing
  node.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    show(place < 0 ? 0 : (place + step + points.length) % points.length);
  });
}

// A color that a dark theme would swallow becomes the text's.
function adapted(data) {
  const sum = color => [1, 3, 5].reduce((total, at) => total + parseInt(color.slice(at, at + 2), 16), 0);
  const colors = Object.entries(data.colors ?? {}).map(([name, color]) => [name, sum(color) < 200 ? "inherit" : color]);
  return { ...data, colors: Object.fromEntries(colors) };
}

// On a rendered page: every figure of a kind comes alive in the place of its picture.
function mountAll(kind, mount, look) {
  if (!document.getElementById("ban-explorer-look")) {
    document.head.append(make("style", { id: "ban-explorer-look" }, look));
  }
  for (const figure of document.querySelectorAll(`figure.ban-explorer[data-kind="${kind}"]`)) {
    const root = make("div", { class: "ban-live" });
    const still = figure.querySelector(".ban-still");
    mount(root, adapted(JSON.parse(figure.querySelector("script[type='application/json']").textContent)));
    still.after(root);
    still.hidden = true;
  }
}

// In Jupyter: the widget comes alive and hides the HTML with the picture.
function render({ model, el }) {
  const root = make("div", { class: "ban-live" }), caption = make("figcaption");
  // Without this Lab takes the arrow keys from a control and walks to another cell.
  root.addEventListener("focusin", event => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
  const unmount = mount(root, adapted(model.get("data")), model);
  caption.innerHTML = model.get("caption");
  el.append(make("style", {}, `#${model.get("figure")} { display: none }`), make("figure", { class: "ban-explorer" }, root, caption));
  return unmount;
}

export default { render };
