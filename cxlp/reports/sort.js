// Sorts a table by the column whose heading is clicked. Numbers are sorted by value, and empty cells come last.
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const value = row => row.cells[head.cellIndex].textContent.trim();
  const number = text => Number(text.replace(/[,<]|%.*| to .*/g, ""));  // an interval is sorted by its lower end
  const order = (a, b) => !a - !b || sign * (number(a) - number(b) || a.localeCompare(b, undefined, {numeric: true}));
  body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
});
