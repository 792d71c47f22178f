// A click on a heading sorts its table: by the first number in each cell, or as text.
"use strict";
const number = (text) => {
  const found = text.replaceAll(",", "").match(/-?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};
const isNumeric = (text) => text === "" || text === "\u2014" || /^-?[\d.]/.test(text);

function sort(table, column, ascending) {
  const body = table.tBodies[0];
  const text = (row) => row.cells[column].textContent.trim();
  const rows = [...body.rows];
  const numeric = rows.every((row) => isNumeric(text(row)));
  const compare = numeric
    ? (a, b) => number(text(a)) - number(text(b))
    : (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true });
  const isEmpty = (row) => numeric && Number.isNaN(number(text(row)));
  rows.sort((a, b) => isEmpty(a) - isEmpty(b) || (ascending ? compare(a, b) : compare(b, a)));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(table, column, ascending);
    });
  });
}
