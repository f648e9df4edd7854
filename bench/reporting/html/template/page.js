"use strict";

// Sorting: first the numbers by their estimate, then words, last what is missing, in either direction.
function sortKey(cell) {
  const text = Array.from(cell.childNodes, (node) => (node.nodeName === "SUP" ? "" : node.textContent)).join("").trim();
  if (/^[–-]?$/.test(text)) return { kind: 2, number: 0, text };
  const found = /^[<>≥±]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)/i.exec(text);
  if (found) return { kind: 0, number: Number(found[1].replaceAll(",", "")), text };
  return text.startsWith("∞") ? { kind: 0, number: Infinity, text } : { kind: 1, number: 0, text };
}

const words = new Intl.Collator("en", { numeric: true });

function compare(one, other, direction) {
  if (one.kind !== other.kind) return one.kind - other.kind;
  const difference = one.number === other.number ? words.compare(one.text, other.text) : one.number - other.number;
  return direction * difference;
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function makeSortable(table) {
  const headers = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const asMade = Array.from(body.rows);
  if (asMade.length < 2) return;
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[header.getAttribute("aria-sort")];
      headers.forEach((each) => each.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", order);
      const keys = new Map(asMade.map((row) => [row, sortKey(row.cells[column])]));
      const direction = order === "descending" ? -1 : 1;
      const rows = order === "none" ? asMade : asMade.toSorted((a, b) => compare(keys.get(a), keys.get(b), direction));
      body.append(...rows);
    });
  });
}

document.querySelectorAll("table.data").forEach(makeSortable);

// What is folded is printed as well.
const folded = () => document.querySelectorAll("main details:not([open])");
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(folded());
  unfolded.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => unfolded.forEach((each) => (each.open = false)));

const contents = document.querySelector("nav details");
if (matchMedia("(max-width: 70rem)").matches) contents.open = false;
