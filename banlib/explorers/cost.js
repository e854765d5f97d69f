// The price of a student, in training runs on labels alone: its teacher asked online, or remembered.

// The share of an online teacher's answers that one who remembers is asked for (teachers.share).
export function share(epochs, views) {
  return (views / epochs) * -Math.expm1(epochs * Math.log1p(-1 / views));
}

export function mount(root, data) {
  let { epochs, students } = data;
  const state = live(), tell = live("ban-tell"), panel = make("div");
  const { Teacher, "BAN-1": Student } = data.colors, most = 600;
  const remembered = (days, count) => (data.later + (share(days, data.views) / count) * data.answer) / data.plain;
  const online = data.online / data.plain;

  function draw() {
    tell.textContent = "";
    const high = Math.max(online, remembered(1, 1)) * 1.08, points = [];
    const { node, X, Y, add } = chart({
      label: "Cost of a student against epochs.", height: 250, x: [0, most], y: [0.9, high], xLabel: "epochs", yLabel: "plain training runs",
    });
    const level = (value, text, style) => {
      add("path", { d: `M${X(0)},${Y(value)}H${X(most)}`, class: "ban-line", style });
      add("text", { x: X(most), y: Y(value) + (value === 1 ? 15 : -5), "text-anchor": "end" }, text);
      points.push({ x: X(most / 2), y: Y(value), text: `${text}: ${number(value)} plain training runs` });
    };
    level(1, "labels alone");
    level(online, "teacher online", `color: ${Teacher}`);
    const days = Array.from({ length: most }, (_, i) => i + 1);
    const curve = days.map(day => `${X(day)},${Y(remembered(day, students))}`).join(" ");
    add("polyline", { points: curve, class: "ban-line", style: `color: ${Student}` });
    add("text", { x: X(most), y: Y(remembered(most, students)) - 6, "text-anchor": "end" }, "teacher remembers");
    for (let day = 20; day <= most; day += 20) {
      const value = remembered(day, students);
      points.push({ x: X(day), y: Y(value), text: `${day} epochs, teacher remembers: ${number(value)} plain training runs` });
    }
    const now = remembered(epochs, students), asked = share(epochs, data.views) / students;
    add("circle", { cx: X(epochs), cy: Y(now), r: 6, class: "ban-fill", style: `color: ${Student}` });
    points.push({ x: X(epochs), y: Y(now), text: `${epochs} epochs, teacher remembers: ${number(now)} plain training runs` });
    pointsThatTell(node, points, text => { tell.textContent = text; });
    panel.replaceChildren(node);
    const who = students === 1 ? "One student" : `Each of ${students} students`;
    state.textContent = `${who} of ${epochs} epochs asks for ${number(100 * asked, 0)} % of the answers and costs ${number(now)} plain training runs; ` +
      `with its teacher online, ${number(online)}.`;
  }
  root.append(make("div", { class: "ban-controls" },
    slider("epochs", { min: 1, max: most, value: epochs }, value => { epochs = value; draw(); }),
    slider("students", { min: 1, max: 32, value: students }, value => { students = value; draw(); })), state, panel, tell);
  draw();
}
