// Making and changing elements; nothing is ever parsed from text, so nothing can be injected.

/** element("p", {class: "x", "aria-live": "polite", onclick: f}, "text", child, …) */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const by = (id) => document.getElementById(id);

/** Set the text, but touch the document only if it is another. */
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Set an attribute (null: remove it), but touch the document only if it is another. */
export function mark(place, name, value) {
  if (value === null || value === false) {
    if (place.hasAttribute(name)) place.removeAttribute(name);
  } else if (place.getAttribute(name) !== String(value)) {
    place.setAttribute(name, value === true ? "" : value);
  }
}

/**
 * A table whose cells are written only when they change.
 * `columns`: [{title, hint, class}]; `show(rows)`: [{key, class, cells: [text or {text, title, class, label}]}]
 */
export class Table {
  constructor(place, columns, whenEmpty) {
    this.columns = columns;
    this.rows = new Map();
    const titles = columns.map((column) =>
      element("th", { scope: "col", class: column.class, title: column.hint }, column.title),
    );
    this.body = element("tbody");
    this.empty = element("tr", { class: "empty" }, element("td", { colspan: columns.length }, whenEmpty));
    place.replaceChildren(element("thead", {}, element("tr", {}, ...titles)), this.body);
    this.body.append(this.empty);
  }

  show(rows) {
    const keep = new Set(rows.map((row) => row.key));
    for (const [key, row] of this.rows) {
      if (!keep.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    this.empty.hidden = rows.length > 0;
    let before = null;
    for (const row of rows) {
      let line = this.rows.get(row.key);
      if (line === undefined) {
        line = element("tr", {}, ...this.columns.map((column, at) =>
          element(at === 0 ? "th" : "td", { class: column.class, scope: at === 0 ? "row" : null })));
        this.rows.set(row.key, line);
      }
      const wanted = before === null ? this.body.firstElementChild : before.nextElementSibling;
      if (line !== wanted) this.body.insertBefore(line, wanted);
      before = line;
      mark(line, "data-standing", row.standing ?? null);
      row.cells.forEach((cell, at) => this.#cell(line.children[at], cell));
    }
  }

  #cell(place, cell) {
    if (typeof cell === "object") {
      mark(place, "title", cell.title ?? null);
      mark(place, "data-tone", cell.tone ?? null);
      say(place, cell.text);
    } else {
      say(place, cell);
    }
  }
}
