"use strict";
// Adds to every table what needs a script: headings that sort, and a button that copies the table for a spreadsheet.

// A number that ends its text or is followed by a unit or its interval; dates and names are compared as text.
const NUMBER = /^[+-]?(\d[\d,]*)?\.?\d+(e[+-]?\d+)?(?=$|[\s%[(])/i;

function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const match = text.match(NUMBER);
  return match ? parseFloat(match[0].replace(/,/g, "")) : text;
}

function order(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? 1 : -1;
}

function sort(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  // Numbers are mostly wanted from the largest on, and that is the first click.
  const direction = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => direction * order(key(a, column), key(b, column)));
  table.tBodies[0].append(...rows);
}

function copy(table, button) {
  const line = (row) => [...row.cells].map((cell) => cell.textContent.replace(/\s+/g, " ").trim()).join("\t");
  const text = [...table.rows].map(line).join("\n");
  // The older command, because the newer interface is refused on plain http and inside MLflow's frame of artifacts.
  const fill = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  document.addEventListener("copy", fill, { once: true });
  const done = document.execCommand("copy");
  document.removeEventListener("copy", fill);
  button.textContent = done ? "Copied" : "Select and copy by hand";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

for (const table of document.querySelectorAll("table")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy the table ${table.getAttribute("aria-label") ?? ""}`.trim());
  button.addEventListener("click", () => copy(table, button));
  (table.closest(".scroll") ?? table).before(button);
  for (const heading of table.tHead?.rows[0].cells ?? []) {
    if (!heading.textContent) continue;
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.className = "sort";
    sorter.append(...heading.childNodes);
    heading.append(sorter);
    sorter.addEventListener("click", () => sort(table, heading.cellIndex));
  }
}
