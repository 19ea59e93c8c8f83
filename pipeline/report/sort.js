for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const words = head.classList.contains("text");
    const key = row => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.textContent.trim().replace(/\u2212/g, "-").replace(/,/g, "");
      return words ? text : parseFloat(text);
    };
    const missing = value => value === "\u2013" || Number.isNaN(value);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const keyed = [...body.rows].map(row => [key(row), row]);
      keyed.sort(([a], [b]) => missing(a) - missing(b) || sign * (words ? a.localeCompare(b, "en", {numeric: true}) : a - b) || 0);
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
for (const hint of document.querySelectorAll(".sorting")) hint.hidden = false;
