// The rows and columns that are shown, as LaTeX and as CSV.

// As bench.report.formats: texts were escaped there, numbers get a minus sign here.
function latexCell(label, numeric) {
  let escaped = label;
  const number = numberOf.get(label);
  if (number !== undefined && number in data.latex) escaped = data.latex[number];
  if (numeric) escaped = escaped.replace(/(^|[^\w.])-(?=\d)/g, "$1$$-$$");
  return escaped.startsWith("[") ? `{}${escaped}` : escaped;
}

const numberOf = new Map(data.texts.map((content, number) => [content, number]));

function latexTable() {
  const shown = visibleColumns();
  const rows = visibleRows();
  const line = (cells) => `${cells.join(" & ")} \\\\`;
  const output = [
    "% needs \\usepackage{booktabs}",
    ...[data.title, ...data.state].map((number) => `% ${latexCell(text(number), false)}`),
    `\\begin{tabular}{${shown.map((column) => (column.numeric ? "r" : "l")).join("")}}`,
    "\\toprule",
    line(shown.map((column) => latexCell(text(column.title), column.numeric))),
    "\\midrule",
  ];
  rows.forEach((row, index) => {
    if (startsGroup(rows, index)) output.push("\\midrule");
    output.push(line(shown.map((column) => latexCell(content(row, column), column.numeric))));
  });
  output.push("\\bottomrule", "\\end{tabular}");
  return `${output.join("\n")}\n`;
}

function csvTable() {
  const parts = [...new Set(visibleColumns().flatMap((column) => column.parts))];
  const quoted = (field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  const guarded = (field) => (/^[=+\-@\t\r\n]/.test(field) ? `'${field}` : field);
  const lines = [parts.map((part) => table.names[part])];
  for (const row of visibleRows()) {
    lines.push(
      parts.map((part) => (table.numeric[part] ? text(row.v[part]) : guarded(text(row.v[part])))),
    );
  }
  return lines.map((fields) => `${fields.map(quoted).join(",")}\n`).join("");
}

async function copyLatex(event) {
  const button = event.currentTarget;
  const content = latexTable();
  const copied = (await copyThroughClipboard(content)) || copyThroughSelection(content);
  if (copied) confirmOn(button, "Copied");
  else showForCopying(content, button);
}

async function copyThroughClipboard(content) {
  if (!navigator.clipboard) return false;
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch {
    return false; // not allowed here, as in some browsers for files
  }
}

function copyThroughSelection(content) {
  const active = document.activeElement;
  const area = h("textarea", { class: "unseen", readonly: true, tabindex: "-1" });
  area.value = content;
  document.body.append(area);
  area.select();
  let copied = false;
  try {
    copied = document.execCommand("copy");
  } catch {
    copied = false;
  }
  area.remove();
  if (active) active.focus();
  return copied;
}

// The last resort: the text, selected, for the reader to copy.
function showForCopying(content, button) {
  const area = h("textarea", { readonly: true, rows: "16", "aria-label": "LaTeX" });
  area.value = content;
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const dialog = h("dialog", { class: "copying" }, h("p", {}, "Copy this text:"), area, close);
  dialog.addEventListener("close", () => {
    dialog.remove();
    button.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  area.select();
}

function downloadCsv(event) {
  const address = URL.createObjectURL(new Blob([csvTable()], { type: "text/csv;charset=utf-8" }));
  const name = text(data.profile).replace(/[^A-Za-z0-9._-]+/g, "-") || "leaderboard";
  const link = h("a", { href: address, download: `leaderboard-${name}.csv`, class: "unseen" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  confirmOn(event.currentTarget, "Saved");
}

function confirmOn(button, word) {
  if (!button.dataset.label) button.dataset.label = button.textContent;
  button.textContent = word;
  say(`${button.dataset.label}: done`);
  setTimeout(() => {
    button.textContent = button.dataset.label;
  }, 1500);
}
