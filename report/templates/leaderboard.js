"use strict";
const board = document.getElementById("board");
const body = board.tBodies[0];
const heads = [...board.tHead.rows[0].cells];
document.getElementById("published").addEventListener("change", (event) => {
  board.classList.toggle("measured-only", !event.target.checked);
});
// A row without a value stays behind all others, whichever way is sorted.
function sort(column, way) {
  const key = (row) => row.cells[column].dataset.value;
  const sign = way === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (column === 0 ? x.localeCompare(y) : Number(x) - Number(y));
  });
  body.append(...rows);
  heads.forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", way);
    else head.removeAttribute("aria-sort");
  });
}
heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const first = head.dataset.first || "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    sort(column, head.getAttribute("aria-sort") === first ? other : first);
  });
});
