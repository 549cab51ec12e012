// The page of one cell.

const valuesOf = (cell) => new Map(cell.values.map((n) => data.blocks[n].map(text)).map((v) => [v[0], v]));
const rowsOf = (numbers) => numbers.map((number) => data.blocks[number].map(text));

function section(title, ...content) {
  return h("section", {}, h("h2", {}, title), ...content);
}

function grid(headings, rows, numeric) {
  const kind = (one, place) => (numeric.has(place) ? "n" : one.length > 30 ? "long" : null);
  const line = (row) =>
    row.map((one, place) =>
      h(place ? "td" : "th", { scope: place ? null : "row", class: kind(one, place) }, one),
    );
  return h(
    "div",
    { class: "scroller plain", tabindex: "0", role: "group", "aria-label": headings[0] },
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          headings.map((one, place) =>
            h("th", { scope: "col", class: numeric.has(place) ? "n" : null }, one),
          ),
        ),
      ),
      h("tbody", {}, rows.map((row) => h("tr", {}, line(row)))),
    ),
  );
}

// Rates with four decimals; what is larger or tiny stays as the CSV has it.
function rounded(content) {
  const size = Math.abs(parseFloat(content));
  const rate = /^-?\d*\.\d+$/.test(content) && size >= 1e-3 && size <= 1;
  return rate ? parseFloat(content).toFixed(4) : content;
}

function headline(values) {
  const known = [
    ["auroc", "AUROC", ""],
    ["auroc_placebo", "placebo", "quiet"],
    ["auroc_decoy", "decoy", "quiet"],
    ["auroc_vs_decoy", "vs decoy", ""],
    ["attack_success_rate", "attack success", ""],
    ["attack_success_rate_twin", "of the twin", "quiet"],
  ].filter(([name]) => values.has(name));
  return h(
    "dl",
    { class: "figures" },
    known.map(([name, label, kind]) => {
      const [, number, ends] = values.get(name);
      const item = h(
        "div",
        { class: kind || null, tabindex: "0" },
        h("dt", {}, label),
        h("dd", {}, parseFloat(number).toFixed(3)),
        ends && h("dd", { class: "ends" }, ends),
      );
      return tip(item, () => [[name, text(data.table.glossary[name][1])]]);
    }),
  );
}

function curves(cell, values, title) {
  const parts = [];
  const numbers = ["auroc", "auroc_placebo"].map((name) => {
    const found = values.get(name);
    return found ? parseFloat(found[1]).toFixed(3) : "–";
  });
  if (cell.roc) {
    const label = `ROC of ${title}: AUROC ${numbers[0]}, placebo ${numbers[1]}`;
    const holder = h("div", {}, rocChart(cell.roc, false, label));
    const choose = (logarithmic) => (event) => {
      for (const one of event.target.parentElement.children) {
        one.setAttribute("aria-pressed", String(one === event.target));
      }
      holder.replaceChildren(rocChart(cell.roc, logarithmic, label));
    };
    parts.push(
      h(
        "figure",
        {},
        h(
          "div",
          { class: "switch", role: "group", "aria-label": "Axis of false positives" },
          h("button", { type: "button", "aria-pressed": "true", onclick: choose(false) }, "Linear"),
          h("button", { type: "button", "aria-pressed": "false", onclick: choose(true) }, "Logarithmic"),
        ),
        holder,
        legend([
          ["triggered", `victim, ${numbers[0]}`],
          ...(cell.roc.twin ? [["placebo", `placebo (clean twin), ${numbers[1]}`]] : []),
          ["chance", "chance"],
        ]),
      ),
    );
  }
  if (cell.histograms) {
    const names = {
      clean: "clean",
      triggered: "triggered",
      decoy: "decoy",
      placebo: "placebo (triggered, clean twin)",
    };
    const shown = Object.entries(names).filter(([name]) => cell.histograms[name]);
    if (cell.histograms.threshold !== null) shown.push(["threshold", "calibrated threshold"]);
    parts.push(
      h(
        "figure",
        {},
        h("p", { class: "over" }, "Share of images by score, without the lowest and the highest 0.1 %"),
        histogramChart(cell.histograms, `Histogram of the scores of ${title}`),
        legend(shown),
      ),
    );
  }
  return parts.length ? section("Scores", h("div", { class: "charts" }, parts)) : null;
}

function strips(pictures) {
  return h(
    "div",
    { class: "strips" },
    pictures.map(([label, count, number]) =>
      h(
        "figure",
        {},
        h("figcaption", {}, text(label)),
        h("img", {
          src: `data:image/png;base64,${data.pictures[number]}`,
          alt: `${text(label)}, ${count} ${count === 1 ? "picture" : "pictures"}`,
          class: `of-${count}`,
        }),
      ),
    ),
  );
}

function pictures(cell) {
  const parts = [];
  if (cell.looks !== null) {
    const looks = data.looks[cell.looks];
    const seed = data.table.seeds ? `, seed ${text(looks.seed)}` : "";
    const over = h("p", { class: "over" }, `Test images${seed}`);
    parts.push(section("What the attack looks like", over, strips(looks.pictures)));
  }
  if (cell.pictures.length) {
    parts.push(section("What the defense drew", strips(cell.pictures)));
  } else if (cell.left_out) {
    const why = "Its pictures are left out of this file to keep it small; figures.npz of the cell has them.";
    parts.push(section("What the defense drew", h("p", {}, why)));
  }
  return parts;
}

function metrics(values) {
  const groups = new Map();
  for (const [name, [, number, ends]] of values) {
    const [group, meaning] = data.table.glossary[name];
    if (!groups.has(group)) groups.set(group, []);
    const named = [h("span", {}, name), h("span", { class: "meaning" }, text(meaning))];
    groups.get(group).push([named, rounded(number), ends]);
  }
  const order = data.table.groups.filter((group) => groups.has(group));
  return section(
    "All numbers",
    h(
      "div",
      { class: "numbers" },
      order.map((group) => {
        const rows = groups.get(group);
        const bounded = rows.some((row) => row[2]);
        const headings = ["column", "value", ...(bounded ? ["95 % interval"] : [])];
        const shown = bounded ? rows : rows.map((row) => row.slice(0, 2));
        return h("div", {}, h("h3", {}, group), grid(headings, shown, bounded ? new Set([1, 2]) : new Set()));
      }),
    ),
  );
}

function settings(cell) {
  const titles = { attack: "Attack", trigger: "Trigger", defense: "Defense", rest: "Run" };
  const parts = Object.entries(titles)
    .filter(([name]) => cell.settings[name].length)
    .map(([name, title]) =>
      h(
        "details",
        {},
        h("summary", {}, `${title} (${cell.settings[name].length})`),
        grid([`${title} setting`, "value"], rowsOf(cell.settings[name]), new Set()),
      ),
    );
  return parts.length ? section("Settings", h("div", { class: "pair" }, parts)) : null;
}

function origin(cell) {
  const parts = [];
  if (cell.candidates.length) {
    const headings = ["decoy candidate", "success on validation", "on test", ""];
    parts.push(section("Decoy candidates", grid(headings, rowsOf(cell.candidates), new Set([1, 2]))));
  }
  const made = [];
  if (cell.stages.length) {
    made.push(grid(["stage", "what", "seconds", "key"], rowsOf(cell.stages), new Set([2])));
  }
  if (cell.provenance.length) made.push(grid(["made with", ""], rowsOf(cell.provenance), new Set()));
  made.push(h("p", { class: "key" }, "key ", h("code", {}, cell.key)));
  parts.push(section("Provenance", ...made));
  return parts;
}

function siblings(number) {
  const group = data.siblings.find((one) => one.includes(number));
  if (!group) return null;
  return h(
    "nav",
    { "aria-label": "Seeds", class: "seeds" },
    "seed ",
    group.map((other) => {
      const cell = data.cells[other];
      const label = (valuesOf(cell).get("seed") || ["", "?"])[1];
      if (other === number) return h("b", { "aria-current": "page" }, label);
      return h("a", { href: `#cell/${encodeURIComponent(cell.key)}` }, label);
    }),
  );
}

function facts(cell, values) {
  const get = (name) => (values.get(name) || ["", ""])[1];
  const entries = [
    ["dataset", get("dataset")],
    ["encoder", get("encoder")],
    ["downstream", `${get("downstream")}, target ${get("target")}`],
    ["auxiliary", get("auxiliary")],
    ["backends", `${get("attack_backend")} attack, ${get("defense_backend")} defense`],
    ["trigger", text(cell.trigger)],
    ["decoy", text(cell.decoy)],
    ["reduced", text(cell.reduced)],
    ["mark", text(cell.marks)],
  ];
  return h(
    "dl",
    { class: "facts-list" },
    entries.filter(([, one]) => one).map(([name, one]) => [h("dt", {}, name), h("dd", {}, one)]),
  );
}

function renderCell(number) {
  const cell = data.cells[number];
  const values = valuesOf(cell);
  const label = (name) => (values.get(name) || ["", "unnamed"])[1];
  const title = `${label("defense")} on ${label("attack")}`;
  const reason = (values.get("reason") || ["", ""])[1];
  const details = new Map(
    [...values].filter(([name]) => !["reason", "key"].includes(name) && !/_(low|high)$/.test(name)),
  );
  place("cell").replaceChildren(
    h("p", {}, h("a", { href: "#", class: "back" }, "← All rows")),
    h("h1", { tabindex: "-1" }, title),
    h(
      "p",
      { class: "line" },
      h("span", { class: `badge s-${cell.status}` }, cell.status),
      siblings(number) || "",
    ),
    ...[reason && h("p", { class: `reason o-${cell.status}` }, reason)].filter(Boolean),
    headline(values),
    facts(cell, values),
    ...[
      curves(cell, values, title),
      ...pictures(cell),
      cell.thresholds.length > 0 && thresholds(cell),
      cell.downstream.length > 0 && downstream(cell),
      metrics(details),
      settings(cell),
      ...origin(cell),
    ].filter(Boolean),
  );
  return title;
}

function thresholds(cell) {
  const rates = ["TPR", "FPR", "FPR, target class", "FPR, decoy"];
  const headings = ["rule", "nominal FPR", "threshold", ...rates, ""];
  const rows = rowsOf(cell.thresholds).map((row) => row.map((one, i) => (i === 2 ? rounded(one) : one)));
  return section("Thresholds", grid(headings, rows, new Set([1, 2, 3, 4, 5, 6])));
}

function downstream(cell) {
  const headings = ["probe", "metric", "victim", "clean twin", "no encoder"];
  return section("Downstream", grid(headings, rowsOf(cell.downstream), new Set([2, 3, 4])));
}
