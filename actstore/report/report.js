"use strict";
(() => {
  const all = (selector, root) => [...(root || document).querySelectorAll(selector)];
  const make = (tag, props) => Object.assign(document.createElement(tag), props);

  // Tips: by pointer over a column of a chart, by arrow keys on a focused chart.
  for (const plot of all(".plot")) {
    const columns = all(".col", plot);
    const tip = make("div", { className: "tip", hidden: true });
    tip.setAttribute("role", "status");
    plot.append(tip);
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", "Chart; arrow keys read the values");
    let at = -1;
    const show = (index) => {
      if (columns[at]) columns[at].classList.remove("on");
      at = index;
      const column = columns[at];
      tip.hidden = !column;
      if (!column) return;
      column.classList.add("on");
      tip.textContent = column.dataset.tip;
      const box = plot.getBoundingClientRect();
      const line = column.querySelector("line").getBoundingClientRect();
      const middle = line.left - box.left;
      const right = middle + 12 + tip.offsetWidth;
      const left = right > box.width ? middle - 12 - tip.offsetWidth : middle + 12;
      tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + "px";
      tip.style.top = "4px";
    };
    columns.forEach((column, index) => column.addEventListener("pointerenter", () => show(index)));
    plot.addEventListener("pointerleave", () => show(-1));
    plot.addEventListener("blur", () => show(-1));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") show(-1);
      if (!step) return;
      event.preventDefault();
      show(Math.max(0, Math.min(columns.length - 1, at + step)));
    });
  }

  // Tables: sort by heading; missing values stay last.
  const value = (row, index) => row.cells[index].textContent;
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    all("thead th", table).forEach((head, index) => {
      const button = make("button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("n");
        const now = head.getAttribute("aria-sort");
        const down = now ? now === "ascending" : numeric;
        all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const missing = (text) => text === "\u2013" || (numeric && isNaN(number(text)));
        const rows = [...body.rows].map((row) => [value(row, index), row]);
        rows.sort(([a], [b]) => {
          if (missing(a) || missing(b)) return missing(a) - missing(b);
          const order = numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true });
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // One text filter over the rows: every word must occur.
  for (const filter of all(".filter")) {
    const rows = all("tbody tr", filter.nextElementSibling);
    const texts = rows.map((row) => [...row.cells].map((c) => c.textContent).join(" ").toLowerCase());
    const status = filter.querySelector("[role=status]");
    filter.hidden = false;
    filter.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += !row.hidden;
      });
      status.textContent = shown + " of " + rows.length + " rows";
    });
  }

  addEventListener("beforeprint", () => all(".how").forEach((block) => (block.open = true)));
})();
