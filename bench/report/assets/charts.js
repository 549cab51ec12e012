// ROC curves and score histograms as inline SVG.

const BOX = { width: 460, height: 330, left: 46, right: 10, top: 10, bottom: 40 };
const LOWEST = 1e-3;

function curvePoints(deltas) {
  const points = [];
  let x = 0;
  let y = 0;
  for (let index = 0; index < deltas.length; index += 2) {
    x += deltas[index];
    y += deltas[index + 1];
    points.push([x / data.steps, y / data.steps]);
  }
  return points;
}

// The same curve with points between, where a straight line is none in the logarithm.
function forLogarithm(points) {
  const dense = [];
  points.forEach(([x, y], index) => {
    if (index > 0) {
      const [before, height] = points[index - 1];
      for (let step = 0; step <= 60; step += 1) {
        const between = LOWEST ** (1 - step / 60);
        if (between <= before || between >= x) continue;
        dense.push([between, height + ((y - height) * (between - before)) / (x - before)]);
      }
    }
    dense.push([x, y]);
  });
  return dense.map(([x, y]) => [Math.max(x, LOWEST), y]);
}

const inside = {
  x: (part) => BOX.left + part * (BOX.width - BOX.left - BOX.right),
  y: (part) => BOX.height - BOX.bottom - part * (BOX.height - BOX.top - BOX.bottom),
};

function path(points) {
  return points
    .map(([x, y], index) => {
      const command = index ? "L" : "M";
      return `${command}${inside.x(x).toFixed(1)} ${inside.y(y).toFixed(1)}`;
    })
    .join("");
}

function frame(label, across, up, xTitle, yTitle) {
  const bottom = inside.y(0);
  return drawn(
    "svg",
    { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label, class: "chart" },
    up.map(([part, name]) => [
      drawn("line", {
        class: "grid",
        x1: inside.x(0),
        x2: inside.x(1),
        y1: inside.y(part),
        y2: inside.y(part),
      }),
      drawn("text", { x: BOX.left - 6, y: inside.y(part) + 4, "text-anchor": "end" }, name),
    ]),
    across.map(([part, name]) => [
      drawn("line", {
        class: "grid",
        x1: inside.x(part),
        x2: inside.x(part),
        y1: bottom,
        y2: inside.y(1),
      }),
      drawn("text", { x: inside.x(part), y: bottom + 16, "text-anchor": "middle" }, name),
    ]),
    drawn("text", { x: inside.x(0.5), y: BOX.height - 6, "text-anchor": "middle" }, xTitle),
    yTitle &&
      drawn(
        "text",
        { transform: `translate(12 ${inside.y(0.5)}) rotate(-90)`, "text-anchor": "middle" },
        yTitle,
      ),
  );
}

function rocChart(curves, logarithmic, label) {
  const scale = logarithmic ? (x) => 1 - Math.log10(Math.max(x, LOWEST)) / Math.log10(LOWEST) : (x) => x;
  const ticks = logarithmic ? [0.001, 0.01, 0.1, 1] : [0, 0.25, 0.5, 0.75, 1];
  const across = ticks.map((x) => [scale(x), logarithmic ? `${x * 100} %` : String(x)]);
  const up = [0, 0.25, 0.5, 0.75, 1].map((y) => [y, String(y)]);
  const title = "false positive rate" + (logarithmic ? ", logarithmic" : "");
  const picture = frame(label, across, up, title, "true positive rate");
  const line = (points, kind) => {
    const shown = (logarithmic ? forLogarithm(points) : points).map(([x, y]) => [scale(x), y]);
    picture.append(drawn("path", { d: path(shown), class: `line ${kind}` }));
  };
  line([[0, 0], [1, 1]], "chance");
  if (curves.twin) line(curvePoints(curves.twin), "placebo");
  if (curves.victim) line(curvePoints(curves.victim), "triggered");
  return picture;
}

function histogramChart(bins, label) {
  const kinds = ["clean", "decoy", "placebo", "triggered"].filter((name) => bins[name]);
  const highest = Math.max(1, ...kinds.flatMap((name) => bins[name]));
  const number = (part) => Number((bins.low + part * (bins.high - bins.low)).toPrecision(3));
  const across = [0, 0.25, 0.5, 0.75, 1].map((part) => [part, String(number(part))]);
  const up = [0, 0.5, 1].map((y) => [y, `${((100 * y * highest) / data.steps).toPrecision(2)} %`]);
  const picture = frame(label, across, up, "score, higher is more suspicious", "");
  for (const kind of kinds) {
    const count = bins[kind].length;
    const steps = [[0, 0]];
    bins[kind].forEach((share, index) => {
      steps.push([index / count, share / highest], [(index + 1) / count, share / highest]);
    });
    steps.push([1, 0]);
    picture.append(drawn("path", { d: path(steps), class: `line ${kind}` }));
  }
  const part = bins.threshold === null ? -1 : (bins.threshold - bins.low) / (bins.high - bins.low);
  if (part >= 0 && part <= 1) {
    const x = inside.x(part);
    picture.append(
      drawn("line", { class: "threshold", x1: x, x2: x, y1: inside.y(0), y2: inside.y(1) }),
    );
  }
  return picture;
}

function legend(entries) {
  return h(
    "ul",
    { class: "legend" },
    entries.map(([kind, label]) =>
      h(
        "li",
        {},
        drawn(
          "svg",
          { viewBox: "0 0 34 12", width: "34", height: "12", "aria-hidden": "true", class: "chart" },
          kind === "clean"
            ? drawn("rect", { x: 2, y: 1, width: 30, height: 10, class: "line clean" })
            : drawn("line", { x1: 1, x2: 33, y1: 6, y2: 6, class: `line ${kind}` }),
        ),
        label,
      ),
    ),
  );
}
