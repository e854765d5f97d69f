// The ledger: sort by a heading, filter by table, dataset and verdict, open a row for the rest.
const NAMES = {
  table: "table", network: "network", column: "model", paper: "paper (CIFAR-100), %", dataset: "our dataset", measured: "measured, %", verdict: "verdict",
  ci95: "95 % interval of measured, ±", seeds: "seeds", profile: "profile", hardware: "hardware", commit: "commit", difference: "measured minus paper, points",
  trained: "network trained", reference: "reference", paper_improvement: "the paper’s improvement, points", improvement: "our improvement, points",
  improvement_ci95: "its 95 % interval, ±", paper_share: "the paper’s share of errors gone, %", share: "our share, %", p_seeds: "p over seeds", p_images: "p over images",
  binomial: "95 % over test images, ±", control_gain: "gain over labels x2, points", control_gain_ci95: "its 95 % interval, ±", why: "why",
};
const SIGNED = ["difference", "paper_improvement", "improvement", "paper_share", "share", "control_gain"];

export function mount(root, data) {
  const { rows, columns } = data, numeric = name => rows.some(row => typeof row[name] === "number");
  const rest = Object.keys(rows[0]).filter(name => !columns.includes(name));
  const filters = { table: "", dataset: "", verdict: "" }, state = live(), body = make("tbody");
  const order = { by: null, sign: 1 }, open = new Set();
  const text = (row, name) => {
    const value = row[name];
    if (name.startsWith("p_") && value != null) return value < 0.001 ? "< 0.001" : number(value, value < 0.01 ? 3 : 2);
    if (typeof value === "string") return value;
    if (Number.isInteger(value) && ["table", "seeds"].includes(name)) return `${value}`;
    return number(value, 2, SIGNED.includes(name));
  };
  const shown = (row, name) => (name === "measured" && row.ci95 != null ? `${text(row, name)} ± ${number(row.ci95)}` : text(row, name));

  const pick = (name, all) => {
    const values = [...new Set(rows.map(row => row[name]))].filter(value => value != null);
    return choice(NAMES[name], [["", all], ...values.map(value => [value, `${value}`])], value => { filters[name] = value; draw(); });
  };
  const heads = columns.map(name => {
    const sort = () => {
      if (order.by !== name) Object.assign(order, { by: name, sign: 1 });
      else if (order.sign === 1) order.sign = -1;
      else order.by = null;
      draw();
    };
    return make("th", { scope: "col", class: numeric(name) && "ban-right" }, button(NAMES[name], sort, { class: "ban-sort" }));
  });

  const compare = (a, b) => {
    const [one, other] = [a[order.by], b[order.by]];
    if (one == null || other == null) return (one == null) - (other == null); // what is missing comes last
    return order.sign * (typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true }));
  };

  function line(row) {
    const isOpen = open.has(row), which = `${row.network} ${row.column}`;
    const flip = () => {
      open[isOpen ? "delete" : "add"](row);
      draw();
      body.querySelector(`button[data-row="${rows.indexOf(row)}"]`).focus();
    };
    const more = button(isOpen ? "−" : "+", flip, { "aria-expanded": `${isOpen}`, "aria-label": `more about ${which}`, "data-row": rows.indexOf(row) });
    const cells = columns.map(name => make("td", { class: numeric(name) && "ban-right" }, shown(row, name)));
    const lines = [make("tr", {}, make("td", {}, more), ...cells)];
    if (isOpen) {
      const facts = rest.filter(name => row[name] != null && row[name] !== "").flatMap(name => [make("dt", {}, NAMES[name] ?? name), make("dd", {}, text(row, name))]);
      lines.push(make("tr", {}, make("td", { colspan: columns.length + 1 }, make("dl", { class: "ban-facts" }, ...facts))));
    }
    return lines;
  }

  function draw() {
    const kept = rows.filter(row => Object.entries(filters).every(([name, value]) => !value || `${row[name]}` === value));
    const sorted = order.by ? [...kept].sort(compare) : kept;
    body.replaceChildren(...sorted.flatMap(line));
    heads.forEach((head, place) => {
      const own = columns[place] === order.by;
      head.setAttribute("aria-sort", own ? (order.sign === 1 ? "ascending" : "descending") : "none");
    });
    const datasets = [...new Set(kept.map(row => row.dataset).filter(Boolean))].join(" and ") || "no dataset yet";
    const how = order.by ? `, by ${NAMES[order.by]}, ${order.sign === 1 ? "ascending" : "descending"}` : "";
    state.textContent = `${kept.length} of ${rows.length} cells${how}. Measured on ${datasets}; the paper on CIFAR-100.`;
  }
  const corner = make("th", { scope: "col" }, make("span", { class: "ban-hidden" }, "more"));
  const table = make("table", {}, make("thead", {}, make("tr", {}, corner, ...heads)), body);
  root.append(make("div", { class: "ban-controls" }, pick("table", "both"), pick("dataset", "all"), pick("verdict", "all")), state,
    make("div", { class: "ban-scroll ban-wide", role: "region", tabindex: 0, "aria-label": data.label }, table));
  draw();
}
