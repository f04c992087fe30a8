// Small parts that the explorers share: elements, labelled native controls, number formats, axes.

const KEEPS_KEYS = { "data-lm-suppress-shortcuts": "true" };       // else JupyterLab takes the arrow keys and Enter

export function el(tag, attrs = {}, ...children) {
  if (["input", "select", "button"].includes(tag)) attrs = { ...KEEPS_KEYS, ...attrs };
  return fill(document.createElement(tag), attrs, children);
}

export function svg(tag, attrs = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, children);
}

function fill(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

export function digits(x, n = 3) {               // n significant digits, no exponent where that stays readable
  if (!Number.isFinite(x)) return String(x);
  if (x === 0) return "0";
  const e = Number(x.toExponential(n - 1).split("e")[1]);
  return e < -4 || e > 6 ? x.toExponential(n - 1).replace("e+", "e") : Number(x.toPrecision(n)).toFixed(Math.max(0, n - 1 - e));
}

export const percent = (x) => (x === 0 ? "0 %" : `${digits(100 * x, 3)} %`);

export function floats(view) {                   // a Bytes trait (DataView) as float32; copied, because it may be unaligned
  if (!view || !view.byteLength) return null;
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

const freshId = () => `lb-${Math.random().toString(36).slice(2, 10)}`;

// A native slider with its name, its value in words, and an update function.
export function slider({ label, min, max, step = 1, text, oninput }) {
  const id = freshId(), input = el("input", { id, type: "range", min, max, step, oninput: () => oninput(Number(input.value)) });
  const out = el("span", { class: "lb-value", "aria-hidden": "true" });
  const node = el("div", { class: "lb-control" }, el("label", { for: id, class: "lb-name" }, label), input, out);
  const update = (value, range = {}) => {
    Object.entries(range).forEach(([k, v]) => input.setAttribute(k, v));
    input.value = value;
    const share = (value - input.min) / Math.max(1e-9, input.max - input.min);
    input.style.setProperty("--lb-share", `${100 * share}%`);
    input.setAttribute("aria-valuetext", text(value));
    out.textContent = text(value);
  };
  return { node, input, update };
}

export function select({ label, options, onchange }) {
  const id = freshId(), input = el("select", { id, onchange: () => onchange(input.value) },
    ...options.map(([value, name]) => el("option", { value }, name)));
  const node = el("div", { class: "lb-control" }, el("label", { for: id, class: "lb-name" }, label), input);
  const update = (value) => { input.value = String(value); };
  return { node, input, update };
}

export function chips(label, items) {
  return el("div", { class: "lb-chips", role: "group", "aria-label": label }, el("span", { class: "lb-name" }, label),
    ...items.map(([name, onclick]) => el("button", { type: "button", onclick }, name)));
}

// A number to read: name, large value, one line below it.
export function tile(name) {
  const value = el("div", { class: "lb-big" }), note = el("div", { class: "lb-note" });
  const node = el("div", { class: "lb-tile" }, el("div", { class: "lb-name" }, name), value, note);
  return { node, note, update: (big, small) => { value.textContent = big; if (small !== undefined) note.textContent = small; } };
}

export function niceTicks(lo, hi, count = 5) {
  const rough = (hi - lo) / count, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

export function decades(lo, hi) {
  const first = Math.ceil(Math.log10(lo) - 1e-9), last = Math.floor(Math.log10(hi) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / 5));
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => i + first).filter((e) => (e - first) % every === 0).map((e) => 10 ** e);
}

const SUPER = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
export function power(x) {                       // 0.01, 1, 10, or 10 to a power
  const e = Math.round(Math.log10(x));
  return e >= -2 && e <= 3 ? String(Number(x.toPrecision(6))) : `10${[...String(e)].map((c) => SUPER[c]).join("")}`;
}

// An SVG with axes. x and y are {range: [a, b], log, label, ticks, format}; returns scales and a layer to draw in.
export function plot({ width: wanted, height, margin = {}, title, x, y, alt }) {
  const width = Math.max(120, wanted);
  const m = { left: 50, right: 12, top: title ? 28 : 10, bottom: 42, ...margin };
  const box = { x0: m.left, x1: Math.max(m.left + 40, width - m.right), y0: height - m.bottom, y1: m.top };
  const sx = scale(x, box.x0, box.x1), sy = scale(y, box.y0, box.y1);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt });
  if (title) root.append(svg("text", { x: 0, y: 14, class: "lb-t-title" }, title));
  if (y.label) root.append(svg("text", { x: 0, y: m.top - 4 + (title ? 4 : 0), class: "lb-t" }, y.label));
  for (const t of ticksOf(y, (box.y0 - box.y1) / 34)) root.append(
    svg("line", { x1: box.x0, x2: box.x1, y1: sy(t), y2: sy(t), class: "lb-gridline" }),
    svg("text", { x: box.x0 - 6, y: sy(t) + 4, class: "lb-t lb-end" }, (y.format ?? digitsShort)(t)));
  for (const t of ticksOf(x, (box.x1 - box.x0) / 56)) root.append(
    svg("line", { x1: sx(t), x2: sx(t), y1: box.y0, y2: box.y0 + 4, class: "lb-axis" }),
    svg("text", { x: sx(t), y: box.y0 + 17, class: "lb-t lb-mid" }, (x.format ?? digitsShort)(t)));
  root.append(svg("line", { x1: box.x0, x2: box.x1, y1: box.y0, y2: box.y0, class: "lb-axis" }));
  if (x.label) root.append(svg("text", { x: (box.x0 + box.x1) / 2, y: height - 6, class: "lb-t lb-mid" }, x.label));
  const layer = svg("g");
  root.append(layer);
  return { root, layer, box, sx, sy };
}

const digitsShort = (t) => String(Number(t.toPrecision(3)));
const ticksOf = (axis, count) => axis.ticks ?? (axis.log ? decades(...axis.range) : niceTicks(...axis.range, Math.max(2, count)));

function scale({ range: [a, b], log }, p0, p1) {
  const f = log ? Math.log10 : (v) => v, A = f(a), B = f(b);
  return (v) => p0 + ((f(v) - A) / (B - A || 1)) * (p1 - p0);
}

export const linePath = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

export function dotAt(x, y, r, cls) {
  return svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r, class: cls });
}

export function textAt(x, y, words, cls = "lb-t") {
  return svg("text", { x: x.toFixed(1), y: y.toFixed(1), class: cls }, words);
}

// Call redraw now and whenever the width of node changes; returns a function that stops it.
export function followWidth(node, redraw) {
  let last = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.floor(node.clientWidth);
    if (width > 0 && width !== last) { last = width; redraw(); }
  });
  observer.observe(node);
  return () => observer.disconnect();
}

export const calm = () => window.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;

export function root(name, title, about, question) {
  return el("div", { class: `lb-live lb-${name}`, role: "group", "aria-label": `${title}: ${about}`, ...KEEPS_KEYS },
    el("div", { class: "lb-head" }, el("span", { class: "lb-title" }, title), el("span", { class: "lb-about" }, about)),
    el("p", { class: "lb-question" }, question));
}
