"use strict";
function key(cell) {
  const text = cell.dataset.sort || cell.textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? text : number;
}
function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}
const shut = document.getElementsByTagName("details");
addEventListener("beforeprint", () => { for (const one of shut) if (!one.open) one.open = one.dataset.printed = true; });
addEventListener("afterprint", () => { for (const one of shut) if (one.dataset.printed) { one.open = false; delete one.dataset.printed; } });
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    const button = document.createElement("button");
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => order(key(a.cells[column]), key(b.cells[column])) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
}
