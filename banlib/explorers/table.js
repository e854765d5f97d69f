// Sorts a SortableTable by the heading that is pressed. Array.sort is stable, and every sort starts
// from the first order, so equal rows stay in it.
(() => {
  const root = document.getElementById({mark}), heads = [...root.querySelectorAll("th")];
  const body = root.querySelector("tbody"), rows = [...body.rows];
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  heads.forEach((head, column) => {
    const number = head.classList.contains("number"), key = row => row.cells[column].dataset.value;
    const compare = (a, b) => number ? a - b : a.localeCompare(b, "en", {numeric: true});
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", () => {
      const order = next[head.getAttribute("aria-sort")], sign = order === "descending" ? -1 : 1;
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? order : "none"));
      body.append(...(order === "none" ? rows : [...rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        const missing = (a === undefined) - (b === undefined);
        return a === undefined || b === undefined ? missing : sign * compare(a, b);
      })));
    });
  });
})();
