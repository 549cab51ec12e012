// Routes (#cell/<key>), the theme, the start.

const heading = document.title;
let left = null; // where the reader was in the table

function route() {
  hideTip();
  const wanted = location.hash.startsWith("#cell/");
  const key = wanted ? keyOf(location.hash.slice("#cell/".length)) : null;
  const number = wanted ? data.cells.findIndex((cell) => cell.key === key) : -1;
  const table = place("leaderboard");
  const page = place("cell");
  if (!wanted) {
    const back = table.hidden;
    table.hidden = false;
    page.hidden = true;
    page.replaceChildren();
    document.title = heading;
    document.body.classList.remove("in-cell");
    if (back) comeBack();
    return;
  }
  if (!table.hidden) {
    left = { y: window.scrollY, x: place("table").scrollLeft, top: place("table").scrollTop };
  }
  let title = "No such cell";
  if (number >= 0) title = renderCell(number);
  else {
    page.replaceChildren(
      h("p", {}, h("a", { href: "#", class: "back" }, "← All rows")),
      h("h1", { tabindex: "-1" }, title),
      h("p", {}, "This report has no cell with the key of this address."),
    );
  }
  if (left) left.key = key;
  table.hidden = true;
  page.hidden = false;
  document.body.classList.add("in-cell");
  document.title = `${title} – ${heading}`;
  window.scrollTo(0, 0);
  page.querySelector("h1").focus({ preventScroll: true });
}

function keyOf(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray percent sign
  }
}

// Back from a cell: the table as it was left, with the focus on the row of that cell.
function comeBack() {
  if (!left) return;
  place("table").scrollLeft = left.x;
  place("table").scrollTop = left.top;
  window.scrollTo(0, left.y);
  const target = `#cell/${encodeURIComponent(left.key)}`;
  const link = [...place("table").querySelectorAll("tbody a")].find(
    (one) => one.getAttribute("href") === target,
  );
  if (link) link.focus({ preventScroll: true });
  left = null;
}

function stored(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return null; // storage is off: the toggle works for this visit
  }
}

function startTheme() {
  const button = place("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () =>
    document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => {
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${button.textContent.toLowerCase()} colours`);
  };
  const saved = stored();
  if (saved === "dark" || saved === "light") document.documentElement.dataset.theme = saved;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = current() === "dark" ? "light" : "dark";
    stored(document.documentElement.dataset.theme);
    label();
  });
  dark.addEventListener("change", label);
  button.hidden = false;
  label();
}

// Links inside the page must not change the address, which is the route.
for (const link of document.querySelectorAll("a.skip")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const target = place(link.getAttribute("href").slice(1));
    const shown = place("leaderboard").hidden ? place("cell").querySelector("h1") : target;
    shown.focus();
    shown.scrollIntoView();
  });
}

// What is folded on screen is not lost on paper.
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("#cell details")) fold.open = true;
});

startTheme();
controls();
renderTable();
window.addEventListener("hashchange", route);
route();
