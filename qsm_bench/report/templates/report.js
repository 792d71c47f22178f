"use strict";

// A click on a heading sorts the table by the first number in each cell, or else as text.
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

// A figure shows the value of the point nearest to the pointer, or chosen with the arrow keys.
function readable(chart) {
  const points = JSON.parse(chart.dataset.points);
  if (points.length === 0) return;
  const ring = chart.appendChild(document.createElement("div"));
  const tip = chart.appendChild(document.createElement("div"));
  ring.className = "ring";
  tip.className = "tip";
  tip.setAttribute("role", "status");
  chart.tabIndex = 0;
  chart.setAttribute("role", "group");
  chart.setAttribute("aria-label", "Figure; use the arrow keys to read its values");
  let current = -1;

  const show = (index) => {
    current = index;
    const [x, y, text] = points[index];
    for (const mark of [ring, tip]) {
      mark.style.left = `${100 * x}%`;
      mark.style.top = `${100 * y}%`;
    }
    tip.textContent = text;
    tip.classList.toggle("left", x > 0.5);
    chart.classList.add("reading");
  };
  const hide = () => chart.classList.remove("reading");

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const distance = ([x, y]) =>
      Math.hypot(x * box.width - event.clientX + box.left, y * box.height - event.clientY + box.top);
    const distances = points.map(distance);
    const nearest = Math.min(...distances);
    if (nearest < 25) show(distances.indexOf(nearest));
    else hide();
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show((current + move + points.length) % points.length);
    ring.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}
document.querySelectorAll(".chart").forEach(readable);

// A button under each figure enlarges it to the size of the window, until Escape or Close.
const dialog = document.querySelector("dialog");
let home = null;
function enlarge(figure) {
  home = figure.querySelector(".scroll");
  dialog.append(home.firstElementChild);
  dialog.showModal();
}
dialog.addEventListener("close", () => home.append(dialog.querySelector(".chart")));
dialog.querySelector("button").addEventListener("click", () => dialog.close());
for (const chart of document.querySelectorAll(".chart")) {
  const figure = chart.closest("figure");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Enlarge";
  button.setAttribute("aria-label", `Enlarge: ${figure.querySelector("figcaption").textContent}`);
  button.addEventListener("click", () => enlarge(figure));
  figure.querySelector("figcaption").append(" ", button);
}
