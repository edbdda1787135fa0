// Headings of tables become buttons that sort: numbers by `data-key`, highest first, text from A to Z, what is missing last.
// A third press brings the page's order back.
"use strict";
const collator = new Intl.Collator("en", {numeric: true});

function sorted(rows, column, isNumber, order) {
  const keyed = rows.map(row => ({row, key: isNumber ? parseFloat(row.cells[column].dataset.key) : row.cells[column].textContent}));
  const missing = key => Number.isNaN(key) || key === "" || key === "–";
  const compare = isNumber ? (a, b) => a - b : collator.compare;
  const sign = order === "ascending" ? 1 : -1;
  keyed.sort((a, b) => missing(a.key) - missing(b.key) || sign * compare(a.key, b.key));
  return keyed.map(o => o.row);
}

function makeSortable(heads, th, body, rows) {
  const isNumber = th.classList.contains("num"), orders = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  th.append(button);
  button.addEventListener("click", () => {
    const order = orders[orders.indexOf(th.getAttribute("aria-sort")) + 1];
    for (const o of heads) o.removeAttribute("aria-sort");
    if (order) th.setAttribute("aria-sort", order);
    body.append(...(order ? sorted(rows, th.cellIndex, isNumber, order) : rows));
  });
}

for (const table of document.querySelectorAll("table")) {
  const heads = table.tHead.rows[0].cells, body = table.tBodies[0], rows = [...body.rows];
  if (rows.length > 1) for (const th of heads) makeSortable(heads, th, body, rows);
}
document.getElementById("hint").hidden = false;
addEventListener("beforeprint", () => { for (const o of document.querySelectorAll("details")) o.open = true; });
