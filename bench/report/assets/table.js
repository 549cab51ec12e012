// The table: which rows and columns are shown, in which order.

const table = data.table;
const columns = table.columns.map((column, number) => ({ ...column, number }));
const state = {
  view: "mean", // or "seeds"
  shown: new Set(columns.filter((column) => column.shown).map((column) => column.number)),
  intervals: false,
  sort: null, // or { number, direction: 1 | -1 }
  words: "",
  chosen: { attack: "", defense: "", status: "" },
};
const at = (name) => table.names.indexOf(name);
const value = (row, name) => text(row.v[at(name)]);
const columnOf = (name) =>
  columns.find((column) => column.parts.length === 1 && column.parts[0] === at(name));

function visibleColumns() {
  return columns.filter(
    (column) => state.shown.has(column.number) && (!column.view || column.view === state.view),
  );
}

function allRows() {
  return (state.view === "seeds" && table.seeds) || table.mean;
}

function matches(row) {
  for (const [name, wanted] of Object.entries(state.chosen)) {
    if (wanted && value(row, name) !== wanted) return false;
  }
  const all = row.v.map(text).join("\n").toLowerCase();
  return state.words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => all.includes(word));
}

function visibleRows() {
  const rows = allRows().filter(matches);
  if (!state.sort) return rows;
  const column = columns[state.sort.number];
  const key = (row) => {
    const content = column.parts.length ? text(row.v[column.parts[0]]) : text(row.t[column.number]);
    if (content === "") return null;
    return column.numeric ? parseFloat(content) : content.toLowerCase();
  };
  const keyed = rows.map((row) => [key(row), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // missing ones come last
    return (a < b ? -1 : a > b ? 1 : 0) * state.sort.direction;
  });
  return keyed.map(([, row]) => row);
}

// What a cell of the table shows: the interval in brackets only where it is asked for.
function content(row, column) {
  const whole = text(row.t[column.number]);
  return column.interval && !state.intervals ? whole.split(" [")[0] : whole;
}

function startsGroup(rows, index) {
  if (index === 0 || (state.sort && state.sort.number !== columnOf("attack").number)) return false;
  return value(rows[index], "attack") !== value(rows[index - 1], "attack");
}

function sortBy(column) {
  const first = column.numeric ? -1 : 1;
  const now = state.sort && state.sort.number === column.number ? state.sort.direction : 0;
  if (now === 0) state.sort = { number: column.number, direction: first };
  else if (now === first) state.sort = { number: column.number, direction: -first };
  else state.sort = null;
  renderTable();
  const order = { "-1": "descending", 1: "ascending" }[state.sort && state.sort.direction];
  say(order ? `Sorted by ${text(column.title)}, ${order}` : "In the order of the report");
}

function head(column) {
  const direction = state.sort && state.sort.number === column.number ? state.sort.direction : 0;
  const order = { "-1": "descending", 1: "ascending", 0: "none" }[direction];
  const button = h(
    "button",
    { type: "button", "data-column": column.number, onclick: () => sortBy(column) },
    h("span", {}, text(column.title)),
    h("span", { class: "arrow", "aria-hidden": "true" }, { "-1": "▼", 1: "▲", 0: "" }[direction]),
  );
  tip(button, () => [
    [text(column.title), " "],
    ...column.meanings.map((number) => ["", text(number)]),
  ]);
  const side = column.numeric ? "n" : null;
  return h("th", { scope: "col", "aria-sort": order, class: side }, button);
}

function lines(row, column) {
  const found = [[text(column.title), text(row.t[column.number])]];
  const status = column.parts.length === 1 && column.parts[0] === at("status");
  const defense = column.parts.length === 1 && column.parts[0] === at("defense");
  if (status || row.s !== "ok") found.push([status ? "" : row.s, value(row, "reason")]);
  if (defense) {
    for (const [mark, note] of table.marks) {
      if (text(row.t[column.number]).includes(` ${mark}`)) found.push([mark, text(note)]);
    }
    found.push(["reduced:", value(row, "reduced")]);
  }
  if (column.parts.length > 1) {
    for (const part of column.parts) found.push([table.names[part], text(row.v[part])]);
  }
  if (value(row, "n_seeds") > 1) found.push(["seeds", value(row, "seed")]);
  return found;
}

// A tint around chance: blue above 0.5, hatched orange below; controls in grey either way.
function tint(cell, row, column) {
  const number = column.scale ? parseFloat(text(row.v[column.parts[0]])) : NaN;
  if (Number.isNaN(number)) return;
  const distance = Math.min(1, Math.abs(number - 0.5) * 2);
  const kind = column.scale === "grey" ? "grey" : number < 0.5 ? "below" : "heat";
  cell.classList.add("tint", kind);
  cell.style.setProperty("--part", `${Math.round(distance * 100)}%`);
}

function linkTo(row, label) {
  return h("a", { href: `#cell/${encodeURIComponent(data.cells[row.c].key)}` }, label);
}

function bodyCell(row, column, position, linked) {
  const label = content(row, column);
  const first = position === 0;
  const cell = h(first ? "th" : "td", {
    scope: first ? "row" : null,
    class: column.numeric ? "n" : null,
    tabindex: "-1",
  });
  const isStatus = column.parts.length === 1 && column.parts[0] === at("status");
  if (column.number === linked) cell.append(linkTo(row, label || value(row, "defense")));
  else if (isStatus) cell.append(h("span", { class: `badge s-${row.s}` }, label));
  else cell.append(label);
  if (first && column.parts[0] === at("attack") && column.number !== linked) {
    cell.append(h("span", { class: "also", "aria-hidden": "true" }, value(row, "defense")));
  }
  tint(cell, row, column);
  return tip(cell, () => lines(row, column));
}

function bodyRow(row, shown, linked, rule) {
  const classes = [rule && "rule", row.s !== "ok" && `off o-${row.s}`].filter(Boolean).join(" ");
  return h(
    "tr",
    { class: classes || null },
    shown.map((column, position) => bodyCell(row, column, position, linked)),
  );
}

function renderTable() {
  hideTip();
  const shown = visibleColumns();
  const rows = visibleRows();
  const defense = columnOf("defense").number;
  const linked = shown.some((c) => c.number === defense) ? defense : shown.length && shown[0].number;
  const focused = document.activeElement && document.activeElement.dataset.column;
  const scroller = place("table");
  const across = scroller.scrollLeft;
  place("count").textContent =
    rows.length === allRows().length
      ? `${rows.length} ${rows.length === 1 ? "row" : "rows"}`
      : `${rows.length} of ${allRows().length} rows`;
  if (!allRows().length) return;
  scroller.replaceChildren(
    h(
      "table",
      {},
      h("caption", { class: "unseen" }, text(data.title)),
      h("thead", {}, h("tr", {}, shown.map(head))),
      h(
        "tbody",
        {},
        rows.map((row, index) => bodyRow(row, shown, linked, startsGroup(rows, index))),
      ),
    ),
  );
  if (!rows.length) scroller.append(h("p", { class: "empty" }, "No row matches the filters."));
  scroller.scrollLeft = across;
  if (focused !== undefined) {
    const again = scroller.querySelector(`button[data-column="${Number(focused)}"]`);
    if (again) again.focus();
  }
}

// Arrow keys walk over the cells, so that every tooltip can be read without a mouse.
function walk(event) {
  const cell = event.target.closest("tbody td, tbody th");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = cell.parentElement;
  const index = [...row.children].indexOf(cell);
  if (event.key === "Enter" && event.target === cell) {
    location.hash = row.querySelector("a").getAttribute("href");
    return;
  }
  const near = {
    ArrowRight: row.children[index + 1],
    ArrowLeft: row.children[index - 1],
    ArrowDown: row.nextElementSibling && row.nextElementSibling.children[index],
    ArrowUp: row.previousElementSibling && row.previousElementSibling.children[index],
    Home: row.children[0],
    End: row.children[row.children.length - 1],
  }[event.key];
  if (!near) return;
  event.preventDefault();
  (near.querySelector("a") || near).focus();
}

function choices(name, label) {
  const found = [...new Set(table.mean.map((row) => value(row, name)))];
  const select = h(
    "select",
    {
      id: `choose-${name}`,
      onchange: (event) => {
        state.chosen[name] = event.target.value;
        renderTable();
      },
    },
    h("option", { value: "" }, `all ${label}`),
    found.map((one) => h("option", { value: one }, one)),
  );
  return h("label", {}, h("span", {}, name), select);
}

function checkbox(label, checked, change) {
  const box = h("input", { type: "checkbox", onchange: (event) => change(event.target.checked) });
  box.checked = checked;
  return h("label", { class: "check" }, box, h("span", {}, label));
}

function columnChooser() {
  const groups = [...new Set(columns.map((column) => column.group))];
  const inner = h("div", { class: "groups" });
  const draw = () =>
    inner.replaceChildren(
      ...groups.map((group) =>
        h(
          "fieldset",
          {},
          h("legend", {}, group),
          columns
            .filter((column) => column.group === group)
            .map((column) =>
              tip(
                checkbox(text(column.title), state.shown.has(column.number), (on) => {
                  if (on) state.shown.add(column.number);
                  else state.shown.delete(column.number);
                  renderTable();
                }),
                () => column.meanings.map((number) => ["", text(number)]),
              ),
            ),
        ),
      ),
    );
  const choose = (which) => () => {
    state.shown = new Set(columns.filter(which).map((column) => column.number));
    draw();
    renderTable();
  };
  draw();
  return h(
    "details",
    { class: "menu", id: "columns" },
    h("summary", {}, "Columns"),
    h(
      "div",
      { class: "panel" },
      h(
        "p",
        { class: "row" },
        h("button", { type: "button", onclick: choose((c) => c.shown) }, "Default"),
        h("button", { type: "button", onclick: choose(() => true) }, "All"),
        checkbox("with intervals", state.intervals, (on) => {
          state.intervals = on;
          renderTable();
        }),
      ),
      inner,
    ),
  );
}

function viewSwitch() {
  if (!table.seeds) return null;
  const button = (view, label) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(state.view === view),
        onclick: (event) => {
          state.view = view;
          for (const one of event.target.parentElement.children) {
            one.setAttribute("aria-pressed", String(one === event.target));
          }
          renderTable();
        },
      },
      label,
    );
  return h(
    "div",
    { class: "switch", role: "group", "aria-label": "Seeds" },
    button("mean", "Seeds averaged"),
    button("seeds", "Each seed"),
  );
}

function controls() {
  if (!table.mean.length) return;
  place("controls").hidden = false;
  place("controls").append(
    h(
      "label",
      { class: "search" },
      h("span", {}, "filter"),
      h("input", {
        type: "search",
        id: "filter",
        placeholder: "any word in a row",
        autocomplete: "off",
        oninput: (event) => {
          state.words = event.target.value.trim();
          renderTable();
        },
      }),
    ),
    choices("attack", "attacks"),
    choices("defense", "defenses"),
    choices("status", "statuses"),
    viewSwitch() || "",
    columnChooser(),
    h("button", { type: "button", id: "latex", onclick: copyLatex }, "Copy LaTeX"),
    h("button", { type: "button", id: "csv", onclick: downloadCsv }, "Download CSV"),
  );
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#columns")) place("columns").open = false;
  });
  // Under its button, but inside the page.
  place("columns").addEventListener("toggle", () => {
    const room = place("controls").clientWidth;
    const panel = place("columns").querySelector(".panel");
    const left = Math.min(place("columns").offsetLeft, room - panel.offsetWidth);
    panel.style.left = `${Math.max(0, left)}px`;
  });
  place("columns").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !place("columns").open) return;
    place("columns").open = false;
    place("columns").querySelector("summary").focus();
  });
  place("table").addEventListener("keydown", walk);
}
