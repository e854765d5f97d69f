// Eq. 3 for one image: what each term asks of each of the student's logits.
const softmax = logits => {
  const powers = logits.map(logit => Math.exp(logit - Math.max(...logits))), sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
};

// Both terms of the loss, in nats, and their gradients with respect to the student's logits.
export function terms(teacher, student, label) {
  const p = softmax(teacher), q = softmax(student);
  const ofLabel = q.map((value, c) => value - (c === label)), ofTeacher = q.map((value, c) => value - p[c]);
  return {
    p, q, ofLabel, ofTeacher, sum: ofLabel.map((value, c) => value + ofTeacher[c]),
    labelLoss: -Math.log(q[label]), teacherLoss: -p.reduce((total, value, c) => total + value * Math.log(q[c]), 0),
  };
}

export function mount(root, data) {
  const teacher = [...data.teacher], student = [...data.student], classes = teacher.map((_, c) => c);
  const state = live(), tell = live("ban-tell"), panels = make("div", { class: "ban-side" });
  let label = data.label;
  const sliders = (who, logits) => {
    const each = logits.map((value, c) => slider(`class ${c}`, { min: -4, max: 4, step: 0.05, value, show: v => number(v) }, now => {
      logits[c] = now;
      draw();
    }));
    return make("fieldset", {}, make("legend", {}, `${who}’s logits`), ...each);
  };
  const names = classes.map(c => [c, `class ${c}`]);

  // Bars of several series for each class, side by side.
  function bars(title, yLabel, y, series) {
    const xTicks = classes.map(c => [c, `class ${c}`]), points = [], wide = 0.8 / Object.keys(series).length;
    const { node, X, Y, add } = chart({ label: `${title}.`, height: 210, x: [-0.5, classes.length - 0.5], y, xTicks, yLabel });
    add("path", { class: "ban-axis", d: `M${X(-0.5)},${Y(0)}H${X(classes.length - 0.5)}` });
    for (const [place, [name, { values, color, pale }]] of Object.entries(series).entries()) {
      for (const c of classes) {
        const x = X(c - 0.4 + wide * (place + 0.05)), top = Y(Math.max(0, values[c])), bottom = Y(Math.min(0, values[c]));
        add("rect", { x, y: top, width: X(wide * 0.9) - X(0), height: Math.max(0.5, bottom - top), class: pale ? "ban-seed" : "ban-fill", style: color && `color: ${color}` });
        points.push({ x: x + (X(wide * 0.45) - X(0)), y: Y(values[c]), text: `${name}, class ${c}: ${number(values[c], 3, yLabel === "gradient")}` });
      }
    }
    pointsThatTell(node, points, text => { tell.textContent = text; });
    const colors = Object.fromEntries(Object.entries(series).map(([name, { color, pale }]) => [name, pale ? "#8888" : color]));
    return make("div", {}, make("h4", {}, title), legend(colors), node);
  }

  function draw() {
    tell.textContent = "";
    const { p, q, ofLabel, ofTeacher, sum, labelLoss, teacherLoss } = terms(teacher, student, label);
    const { Teacher, "BAN-1": Student } = data.colors;
    panels.replaceChildren(
      bars("Gradient of each term", "gradient", [-2, 2], {
        "label: q − onehot": { values: ofLabel, pale: true }, "teacher: q − p": { values: ofTeacher, color: Teacher }, sum: { values: sum, color: Student },
      }),
      bars("Probabilities", "probability", [0, 1], { "teacher p": { values: p, color: Teacher }, "student q": { values: q, color: Student } }),
    );
    const asked = sum.map((value, c) => `class ${c} ${number(-value, 2, true)}`).join(", ");
    const losses = `label ${number(labelLoss, 3)} + teacher ${number(teacherLoss, 3)} = ${number(labelLoss + teacherLoss, 3)} nats`;
    state.textContent = `Loss: ${losses}. A step moves the student’s logits by ${asked}, times the learning rate.`;
  }
  root.append(make("div", { class: "ban-controls" }, choice("true class", names, value => { label = +value; draw(); })),
    make("div", { class: "ban-side" }, sliders("teacher", teacher), sliders("student", student)), state, panels, tell);
  draw();
}
