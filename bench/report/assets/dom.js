"use strict";
// Data is only ever set as text: no markup is made of it anywhere.

const data = JSON.parse(document.getElementById("data").textContent);
const text = (number) => data.texts[number];
const place = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

// An element with attributes, listeners (onclick: f) and children; strings become text nodes.
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function say(message) {
  place("said").textContent = "";
  place("said").textContent = message;
}

// Tooltips: for the mouse, for the keyboard's focus and for a tap; Escape closes.

const tips = new WeakMap(); // element -> function that returns lines, each [heading, text]
let tipped = null;
let closing = 0;

function tip(element, lines) {
  tips.set(element, lines);
  element.classList.add("tipped");
  return element;
}

function withTip(target) {
  let node = target instanceof Element ? target : null;
  while (node && !tips.has(node)) node = node.parentElement;
  return node;
}

function showTip(element) {
  clearTimeout(closing);
  if (tipped === element) return;
  hideTip();
  const lines = tips.get(element)().filter((line) => line[1]);
  if (!lines.length) return;
  const box = place("tip");
  box.replaceChildren(
    ...lines.map(([name, value]) => h("p", {}, name && h("b", {}, name), name && " ", value)),
  );
  box.hidden = false;
  tipped = element;
  element.setAttribute("aria-describedby", "tip");
  placeTip();
}

function placeTip() {
  const box = place("tip");
  const at = tipped.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), document.documentElement.clientWidth - size.width - 8);
  const below = at.bottom + 4 + size.height <= window.innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - size.height - 4)}px`;
}

function hideTip() {
  clearTimeout(closing);
  if (!tipped) return;
  tipped.removeAttribute("aria-describedby");
  tipped = null;
  place("tip").hidden = true;
}

function hideTipSoon() {
  clearTimeout(closing);
  closing = setTimeout(hideTip, 120);
}

document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return;
  if (event.target instanceof Element && event.target.closest("#tip")) clearTimeout(closing);
  else if (withTip(event.target)) showTip(withTip(event.target));
  else hideTipSoon();
});
document.addEventListener("focusin", (event) => {
  const element = withTip(event.target);
  if (element && event.target.matches(":focus-visible")) showTip(element);
  else hideTipSoon();
});
document.addEventListener("focusout", hideTipSoon);
document.addEventListener("click", (event) => {
  const element = withTip(event.target);
  if (element) showTip(element);
  else hideTip();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
document.addEventListener(
  "scroll",
  () => {
    if (tipped && tipped.contains(document.activeElement)) placeTip(); // focus moved and scrolled
    else hideTip();
  },
  { capture: true, passive: true },
);
