// The outlier explorer: which weights leave the grid at a threshold, what that costs in bits, and what it buys.
// Codes, rulers and outliers come from the package; what feedback asked of each weight, and its cost, are worked out again here.
import { chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, power, root, select, slider, svg, textAt, tile } from "./dom.js";

const VIEWS = [["weights", "the weights"], ["cost", "cost of rounding"]];
const PUOR = [[84, 39, 136], [153, 142, 195], [216, 218, 235], [247, 247, 247], [254, 224, 182], [241, 163, 64], [179, 88, 6]];
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const LEAST = -5, MOST = 2, BINS = 42;           // powers of ten between which costs are counted, as in the stored pictures
const PARTS = [["codes", "codes"], ["rulers", "steps, zeros"], ["out", "outliers"]];

function render({ model, el: host }) {
  const layer = layerOf(model), { rows, d, g, table, names } = layer;
  const node = root("outlier", "Outlier explorer", model.get("about"),
    "Which weights leave the grid, what does that cost in bits, and what does it buy? A weight leaves if rounding it, as it stands when its turn comes, would cost more than the threshold.");
  let hover = null, now = null;
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const choose = (place) => place >= 0 && set({ row: Math.floor(place / d), column: place % d });
  const control = {
    threshold: slider({ label: "Threshold", min: 0, max: table.length - 1, text: (k) => wordOf(table[k].threshold), oninput: (k) => set({ chosen: k }) }),
    view: select({ label: "Picture shows", options: VIEWS, onchange: (v) => set({ view: v }) }),
    row: slider({ label: "Row", min: 0, max: rows - 1, text: (r) => `row ${names[d + r]}`, oninput: (r) => set({ row: r }) }),
    column: slider({ label: "Input", min: 0, max: d - 1, text: (c) => `input ${names[c]}`, oninput: (c) => set({ column: c }) }),
  };
  const jumps = chips("Go to", [["no threshold", () => set({ chosen: 0 })], ["dearest weight", () => choose(now.cost.indexOf(Math.max(...now.cost)))],
    ["next outlier", () => choose(now.out.length ? now.out.find((p) => p > now.place) ?? now.out[0] : -1)], ["previous outlier", () => choose(now.out.length ? now.out.findLast((p) => p < now.place) ?? now.out.at(-1) : -1)]]);
  const tiles = { share: tile("Weights outside"), bits: tile("Bits a weight"), error: tile("Output error"), one: tile("This weight costs") };
  const stack = el("div", { class: "lb-stack", "aria-hidden": "true" }, ...PARTS.map(([c]) => el("i", { class: `lb-o-${c}` })));
  tiles.bits.node.insertBefore(stack, tiles.bits.note);
  const picture = el("div", { class: "lb-o-picture" }), line = el("p", { class: "lb-note lb-o-line", "aria-live": "polite" }), curve = el("div"), counts = el("div"), ruler = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-o-controls" }, ...Object.values(control).map((c) => c.node)), jumps,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)), picture, line, el("div", { class: "lb-row lb-three" }, curve, counts, ruler), readout);

  function update() {
    const k = Math.max(0, Math.min(table.length - 1, model.get("chosen"))), t = table[k], none = table[0];
    const row = Math.min(rows - 1, model.get("row")), column = Math.min(d - 1, model.get("column"));
    hover = null;
    now = { ...stateOf(layer, k), k, place: row * d + column, shows: model.get("view") };
    control.threshold.update(k); control.view.update(now.shows); control.row.update(row); control.column.update(column);
    tiles.share.update(percent(t.share), `${now.out.length} of ${rows * d}; ${Number.isFinite(t.threshold) ? `threshold ${wordOf(t.threshold)}` : "no threshold"}`);
    tiles.bits.update(digits(t.bits), "");
    [...stack.children].forEach((bar, i) => { bar.style.flexGrow = t.parts[i]; });
    tiles.bits.note.replaceChildren(...PARTS.map(([c, word], i) => el("span", { class: "lb-key" }, el("i", { class: `lb-o-${c}` }), `${word} ${digits(t.parts[i])}`)));
    tiles.error.update(percent(t.error), k ? `${percent(t.error / none.error)} of that without outliers, for ${digits(t.bits - none.bits, 2)} more bits a weight` : "of the output’s mean square; no outliers");
    readout.textContent = `${t.words}: ${now.out.length ? `${percent(t.share)} of the weights leave` : "no weight leaves"}, ${digits(t.bits)} bits a weight (codes ${digits(t.parts[0])}; steps and zero points ${digits(t.parts[1])}; outliers and the pointers of their rows ${digits(t.parts[2])}), output error ${percent(t.error)}`.replaceAll(" %", "\u00a0%")
      + `${k ? `, against ${percent(none.error)} at ${digits(none.bits)} bits without outliers` : ""}. Other ways, without outliers: ${layer.others.map((o) => `${o.name}: ${digits(o.bits)} bits a weight, ${percent(o.error)}`).join("; ")}.`.replaceAll(" %", "\u00a0%");
    Object.assign(node.dataset, { threshold: t.threshold, share: t.share, bits: t.bits, error: t.error, outside: now.out.length, inside: now.bins[0].join(","), left: now.bins[1].join(",") });
    draw();
    about(now.place);
  }

  function about(place) {                        // the one weight under the pointer, or the chosen one
    const c = now.cost[place], { threshold } = table[now.k], leaves = now.kept[place];
    tiles.one.update(Number.isFinite(threshold) ? `${digits(c / threshold)} ×` : digits(c), `${Number.isFinite(threshold) ? "the threshold: " : "of the mean of D var(W), no threshold: "}${leaves ? "outside, kept as a correction" : "inside, on its mark"}`);
    line.textContent = tell(layer, now, place);
    if (ruler.clientWidth) ruler.replaceChildren(rulerPlot(layer, now, place, ruler.clientWidth, choose));
    Object.assign(node.dataset, { place, cost: c, target: now.target[place], mark: now.mark[place], code: now.q[place], correction: leaves ? now.fix[place] : 0 });
  }

  function draw() {
    if (!node.clientWidth || !now) return;
    drawPicture(picture, layer, now, { choose, point: (place) => { if (place !== hover) { hover = place; about(place < 0 ? now.place : place); } } });
    curve.replaceChildren(curvePlot(layer, now, curve.clientWidth, (k) => set({ chosen: k })), keys([["lb-o-curve", "with outliers"], ...layer.others.map((o, i) => [`lb-o-other${i}`, o.name])]));
    counts.replaceChildren(countsPlot(layer, now, counts.clientWidth, (x) => set({ chosen: nearest(table, x) })), keys([["lb-o-in", "inside"], ["lb-o-left", "outside"], ["lb-o-edge", "threshold"]]));
  }

  host.append(node);
  update();
  const watched = ["chosen", "row", "column", "view"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, () => { draw(); about(now.place); });
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const wordOf = (threshold) => (Number.isFinite(threshold) ? String(Number(threshold.toPrecision(4))) : "none");
const signed = (x, n = 3) => `${x < 0 ? "−" : "+"}${digits(Math.abs(x), n)}`;
const minus = (x, n = 3) => (x < 0 ? "−" : "") + digits(Math.abs(x), n);
const nearest = (table, x) => table.reduce((a, t, k) => (Number.isFinite(t.threshold) && Math.abs(Math.log(t.threshold / x)) < Math.abs(Math.log((table[a].threshold === Infinity ? 1e9 : table[a].threshold) / x)) ? k : a), 0);
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const half = (h) => (h & 0x8000 ? -1 : 1) * ((h >> 10) & 31 ? 2 ** (((h >> 10) & 31) - 25) * (1024 + (h & 1023)) : (h & 1023) * 2 ** -24);

function layerOf(model) {
  const [rows, d] = model.get("shape"), n = rows * d, bits = model.get("bits"), g = model.get("group"), plane = Math.ceil(n / 8), of = d / g;
  const raw = floats(model.get("table")), all = bytes(model.get("planes")), rulers = floats(model.get("rulers")), fixes = model.get("corrections");
  const bit = (from, i) => (from[i >> 3] >> (i & 7)) & 1, planes = (k) => Array.from({ length: bits + 1 }, (_, b) => all.subarray((k * (bits + 1) + b) * plane)), starts = [0];
  const table = Array.from({ length: raw.length / 5 }, (_, k) => {
    const [threshold, error, ...parts] = raw.subarray(5 * k, 5 * k + 5), mask = planes(k)[bits];
    let count = 0;
    for (let i = 0; i < n; i++) count += bit(mask, i);
    starts.push(starts[k] + count);
    return { threshold, error, parts, bits: parts[0] + parts[1] + parts[2], share: count / n, words: Number.isFinite(threshold) ? `Threshold ${wordOf(threshold)}` : "No threshold" };
  });
  const others = model.get("others").map(([name, b, error]) => ({ name, bits: b, error }));
  const stored = (k) => {                        // codes, marks, and corrections of a threshold
    const from = planes(k), first = 2 * k * rows * of, group = (i) => first + Math.floor(i / d) * of + Math.floor((i % d) / g), ruler = (i) => ({ s: rulers[group(i)], z: rulers[group(i) + rows * of] });
    const q = new Uint8Array(n), mark = new Float32Array(n), kept = new Uint8Array(n), fix = new Float32Array(n);
    for (let i = 0, next = starts[k]; i < n; i++) {
      for (let b = 0; b < bits; b++) q[i] |= bit(from[b], i) << b;
      mark[i] = rulers[group(i)] * (q[i] - rulers[group(i) + rows * of]);
      if (bit(from[bits], i)) { kept[i] = 1; fix[i] = half(fixes.getUint16(2 * next, true)); next += 1; }
    }
    return { q, mark, kept, fix, ruler };
  };
  return { rows, d, g, bits, table, others, stored, names: model.get("names"), W: floats(model.get("weights")), V: floats(model.get("factor")), perm: model.get("perm"), known: new Map() };
}

// What a threshold did to the layer: targets t = w + sum of e_k V_kj over the columns before, costs D (t - mark)^2, counts.
function stateOf(layer, k) {
  if (layer.known.has(k)) return layer.known.get(k);
  const { rows, d, W, V, perm } = layer, one = layer.stored(k), target = Float64Array.from(W), cost = new Float64Array(rows * d), out = [], bins = [0, 1].map(() => Array(BINS).fill(0));
  for (let r = 0; r < rows; r++) for (let j = 0; j < d; j++) {
    const i = r * d + perm[j], e = W[i] - one.mark[i] - one.fix[i], from = j * d - (j * (j + 1)) / 2;   // of row j of V; D_j is on its diagonal
    cost[i] = V[from + j] * (target[i] - one.mark[i]) ** 2;
    if (e) for (let l = j + 1; l < d; l++) target[r * d + perm[l]] += e * V[from + l];
  }
  for (let i = 0; i < rows * d; i++) {
    if (one.kept[i]) out.push(i);
    bins[one.kept[i]][Math.max(0, Math.min(BINS - 1, Math.floor(((Math.log10(Math.max(cost[i], 1e-30)) - LEAST) / (MOST - LEAST)) * BINS)))] += 1;
  }
  layer.known.set(k, { ...one, target, cost, out, bins });
  return layer.known.get(k);
}

// One weight in words.
function tell({ W, d, bits, names, table }, now, i) {
  const { threshold } = table[now.k], moved = now.target[i] - W[i], c = now.cost[i];
  return `Row ${names[d + Math.floor(i / d)]}, input ${names[i % d]}: weight ${minus(W[i])}, ${minus(now.target[i])} when its turn comes (feedback ${signed(moved, 2)}); nearest mark ${minus(now.mark[i])}, code ${now.q[i]} of 0 to ${2 ** bits - 1}; cost ${digits(c)}`
    + (Number.isFinite(threshold) ? `, ${digits(c / threshold)} times the threshold: ` : ", no threshold: ") + (now.kept[i] ? `it leaves, with a correction of ${signed(now.fix[i])} in 16 bits.` : "it stays on its mark.");
}

function mix(map, t) {
  const at = Math.min(1, Math.max(0, t)) * (map.length - 1), i = Math.min(map.length - 2, Math.floor(at)), f = at - i;
  return map[i].map((c, n) => c + (map[i + 1][n] - c) * f);
}

// The weights as a picture, a square on each that leaves, above it how many leave by input.
function drawPicture(host, { rows, d, g, W, names, table }, now, { choose, point }) {
  const width = Math.max(200, host.clientWidth), left = 38, top = 74, inner = width - left - 2, cell = inner / d, tall = Math.max(90, Math.min(300, rows * Math.max(3, Math.min(14, cell)))), high = tall / rows, size = Math.max(3, Math.min(cell, high, 7));
  const spread = Math.sqrt(W.reduce((a, w) => a + w * w, 0) / W.length) * 3 || 1, weights = now.shows === "weights";
  const canvas = el("canvas", { width: d, height: rows, "aria-hidden": "true" }), image = new ImageData(d, rows);
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${inner}px`, height: `${tall}px` });
  for (let i = 0; i < rows * d; i++) image.data.set([...(weights ? mix(PUOR, 0.5 + (0.36 * W[i]) / spread) : mix(CIVIDIS, (Math.log10(now.cost[i] + 1e-30) + 4) / 4)), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const by = new Array(d).fill(0), x = (c) => left + (c + 0.5) * cell, y = (r) => top + (r + 0.5) * high;
  now.out.forEach((i) => { by[i % d] += 1; });
  const most = Math.max(...by), over = svg("svg", { width, height: top + tall + 44, viewBox: `0 0 ${width} ${top + tall + 44}`, role: "img", "aria-label": `${rows} by ${d} weights, ${now.out.length} of them marked as outside${most ? `; input ${names[by.indexOf(most)]} loses most, ${most} of ${rows}` : ""}` });
  over.append(textAt(0, 14, weights ? "Weights; black squares leave the grid" : "Cost of rounding; black squares leave the grid", "lb-t-title"));
  if (most) over.append(textAt(0, 31, `${width < 420 ? "bars: leaving, by input" : "bars: how many leave of each input"}, at most ${most} of ${rows}`), ...by.map((n, c) => (n ? svg("rect", { x: (x(c) - Math.max(1, cell * 0.8) / 2).toFixed(1), width: Math.max(1, cell * 0.8).toFixed(1), y: (top - 4 - (n / most) * 32).toFixed(1), height: ((n / most) * 32).toFixed(1), class: "lb-o-left" }) : "")));
  else over.append(textAt(0, 31, "no weight leaves at this threshold"));
  over.append(svg("path", { d: now.out.map((i) => `M${(x(i % d) - size / 2).toFixed(1)},${(y(Math.floor(i / d)) - size / 2).toFixed(1)}h${size.toFixed(1)}v${size.toFixed(1)}h${(-size).toFixed(1)}Z`).join(""), class: "lb-o-mark" }));
  const px = x(now.place % d), py = y(Math.floor(now.place / d)), b = Math.max(6, size);
  over.append(svg("rect", { x: px - b, y: py - b, width: 2 * b, height: 2 * b, rx: 2, class: "lb-o-ring0" }), svg("rect", { x: px - b, y: py - b, width: 2 * b, height: 2 * b, rx: 2, class: "lb-o-ring" }));
  for (const r of [0, rows - 1]) over.append(textAt(left - 6, y(r) + 4, String(names[d + r]), "lb-t lb-end"));
  over.append(textAt(left - 6, top + tall / 2 + 4, "row", "lb-t lb-end"));
  for (const c of [0, Math.floor(d / 4 / g) * g, Math.floor(d / 2 / g) * g, Math.floor((3 * d) / 4 / g) * g, d - 1]) over.append(textAt(x(c), top + tall + 15, String(names[c]), `lb-t ${c === d - 1 ? "lb-end" : c ? "lb-mid" : ""}`));
  over.append(textAt(left, top + tall + 36, width < 420 ? "input" : "input (click to choose)"), ...scaleKey(width, top + tall + 27, weights ? [PUOR, [`−${digits(spread, 2)}`, `${digits(spread, 2)}`], 0.14] : [CIVIDIS, ["10⁻⁴", "1"], 0]));
  const place = (ev) => { const box = hit.getBoundingClientRect(), c = Math.floor(((ev.clientX - box.left) / box.width) * d), r = Math.floor(((ev.clientY - box.top) / box.height) * rows); return Math.max(0, Math.min(rows - 1, r)) * d + Math.max(0, Math.min(d - 1, c)); };
  const hit = svg("rect", { x: left, y: top, width: inner, height: tall, fill: "transparent", class: "lb-click", onclick: (ev) => choose(place(ev)), onpointermove: (ev) => point(place(ev)), onpointerleave: () => point(-1) });
  over.append(hit);
  host.replaceChildren(canvas, over);
}

function scaleKey(width, y, [map, ends, cut]) {   // cut: how much of each end of the map is not used
  const id = `lb-o-${Math.round(performance.now() * 1000)}`, w = Math.min(150, width * 0.25), x = width - w - 44;
  const stops = Array.from({ length: 9 }, (_, n) => svg("stop", { offset: n / 8, "stop-color": `rgb(${mix(map, cut + (n / 8) * (1 - 2 * cut)).map(Math.round)})` }));
  return [svg("defs", {}, svg("linearGradient", { id }, ...stops)), svg("rect", { x, y, width: w, height: 9, fill: `url(#${id})` }), textAt(x - 6, y + 9, ends[0], "lb-t lb-end"), textAt(x + w + 6, y + 9, ends[1])];
}

// A pattern of stripes for what is outside, so that colour is not all that tells it: [definition, fill].
function stripes() {
  const id = `lb-o-${Math.round(Math.random() * 1e12)}`;
  return [svg("defs", {}, svg("pattern", { id, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("rect", { width: 5, height: 5, class: "lb-o-left" }), svg("rect", { width: 1.3, height: 5, class: "lb-o-stripe" }))), `fill: url(#${id})`];
}

const shape = (i, x, y, r, cls) => (i === 0 ? svg("path", { d: `M${x},${y - r * 1.3}l${r * 1.2},${r * 1.3}l${-r * 1.2},${r * 1.3}l${-r * 1.2},${-r * 1.3}Z`, class: cls }) : i === 1 ? svg("path", { d: `M${x},${y - r * 1.2}l${r * 1.2},${r * 2.1}h${-r * 2.4}Z`, class: cls })
  : i === 2 ? svg("path", { d: `M${x - r * 1.2},${y}h${r * 2.4}M${x},${y - r * 1.2}v${r * 2.4}`, class: `${cls} lb-o-plus` }) : svg("rect", { x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8, class: cls }));

function keys(items) {                           // what each mark is, drawn as in the picture
  const [pattern, striped] = stripes(), sample = (cls) => (cls.startsWith("lb-o-other") ? shape(Number(cls.at(-1)), 12, 6, 4.5, cls) : cls === "lb-o-edge" ? svg("line", { x1: 12, x2: 12, y1: 0, y2: 12, class: cls })
    : cls === "lb-o-curve" ? svg("g", {}, svg("line", { x1: 0, x2: 24, y1: 6, y2: 6, class: cls }), shape(3, 12, 6, 4, "lb-o-dot")) : cls === "lb-o-left" ? svg("g", {}, pattern, svg("rect", { x: 5, y: 0, width: 14, height: 12, style: striped })) : svg("rect", { x: 5, y: 1, width: 14, height: 10, class: cls }));
  return el("p", { class: "lb-note lb-o-keys" }, ...items.map(([cls, words]) => el("span", { class: "lb-o-key" }, svg("svg", { width: 24, height: 12, viewBox: "0 0 24 12", "aria-hidden": "true" }, sample(cls)), words)));
}

function curvePlot({ table, others }, now, width, go) {
  const all = [...table, ...others], bits = all.map((t) => t.bits), most = Math.max(...all.map((t) => t.error)), t = table[now.k];
  const { root: node, layer, box, sx, sy } = plot({ width, height: 230, title: "Error against bits on disk", margin: { left: 50, right: 16 }, x: { range: [Math.min(...bits) - 0.25, Math.max(...bits) + 0.25], label: "bits a weight (click to choose)" },
    y: { range: [0, most * 1.12], format: (v) => `${Number((100 * v).toPrecision(3))} %` }, alt: `output error against bits a weight: ${table.map((o) => `${wordOf(o.threshold)} ${digits(o.bits)} ${percent(o.error)}`).join("; ")}; ${others.map((o) => `${o.name} ${digits(o.bits)} ${percent(o.error)}`).join("; ")}` });
  layer.append(svg("path", { d: linePath(table.map((o) => [sx(o.bits), sy(o.error)])), class: "lb-o-curve" }), ...table.map((o) => shape(3, sx(o.bits), sy(o.error), 3.6, "lb-o-dot")), ...others.map((o, i) => shape(i, sx(o.bits), sy(o.error), 5, `lb-o-other${i}`)));
  layer.append(svg("circle", { cx: sx(t.bits), cy: sy(t.error), r: 8, class: "lb-o-here" }));
  const right = sx(t.bits) > (box.x0 + box.x1) / 2;
  layer.append(textAt(sx(t.bits) + (right ? 6 : 12), Math.max(box.y1 + 10, sy(t.error) - 13), Number.isFinite(t.threshold) ? `threshold ${wordOf(t.threshold)}` : "no threshold", `lb-t-ink lb-halo${right ? " lb-end" : ""}`));
  node.append(svg("g", {}, ...table.map((o, k) => svg("circle", { cx: sx(o.bits), cy: sy(o.error), r: 11, fill: "transparent", class: "lb-click", onclick: () => go(k) }))));
  return node;
}

function countsPlot({ table }, now, width, go) {
  const { threshold } = table[now.k], edge = (i) => 10 ** (LEAST + (i * (MOST - LEAST)) / BINS), most = Math.max(...now.bins[0], ...now.bins[1]);
  const { root: node, layer, box, sx, sy } = plot({ width, height: 230, title: "How many weights cost how much", margin: { left: 44, right: 12 }, x: { range: [10 ** LEAST, 10 ** MOST], log: true, ticks: [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10, 100].filter((_, i) => width > 300 || i % 2), format: power, label: "cost, over the mean of D var(W)" },
    y: { range: [0.6, most * 1.6], log: true, ticks: [1, 10, 100, 1000, 10000].filter((t) => t < most * 1.6) }, alt: `weights by cost; ${now.out.length} cost more than the threshold ${wordOf(threshold)}` });
  const [pattern, striped] = stripes();
  layer.append(pattern);
  now.bins.forEach((counts, side) => counts.forEach((n, i) => {
    const [a, b] = [edge(i), edge(i + 1)], from = side && threshold > a && threshold < b ? threshold : a, to = !side && threshold > a && threshold < b ? threshold : b;
    if (n) layer.append(svg("rect", { x: sx(from).toFixed(1), width: Math.max(0.8, sx(to) - sx(from) - 0.6).toFixed(1), y: sy(n).toFixed(1), height: (box.y0 - sy(n)).toFixed(1), ...(side ? { style: striped, class: "lb-o-bar" } : { class: "lb-o-in" }) }));
  }));
  if (Number.isFinite(threshold)) layer.append(svg("line", { x1: sx(threshold), x2: sx(threshold), y1: box.y0, y2: box.y1 - 4, class: "lb-o-edge" }), textAt(sx(threshold) + 6, box.y1 + 6, wordOf(threshold), "lb-t-ink lb-halo"));
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click",
    onclick: (ev) => { const b = ev.target.getBoundingClientRect(); go(10 ** (LEAST + ((ev.clientX - b.left) / b.width) * (MOST - LEAST))); } }));
  return node;
}

// The weights of one group, as they stood when their turn came, beside the marks of their ruler.
function rulerPlot({ d, g, bits, names, W }, now, place, width, choose) {
  const first = place - ((place % d) % g), ids = Array.from({ length: g }, (_, i) => first + i), { s, z } = now.ruler(place), marks = Array.from({ length: 2 ** bits }, (_, q) => s * (q - z));
  const all = [...marks, ...ids.map((i) => now.target[i])], low = Math.min(...all), high = Math.max(...all), pad = (high - low) * 0.08 || 1;
  const { root: node, layer, box, sx } = plot({ width, height: 254, title: `Its group of ${g} on the grid`, margin: { left: 74, right: 16, top: 62, bottom: 42 }, x: { range: [low - pad, high + pad], label: "weight when its turn comes", format: (v) => String(Number(v.toPrecision(3))).replace("-", "−") }, y: { range: [0, 1], ticks: [] },
    alt: `row ${names[d + Math.floor(place / d)]}, inputs ${names[first % d]} to ${names[(first + g - 1) % d]}: marks from ${minus(marks[0])} to ${minus(marks.at(-1))}, ${ids.filter((i) => now.kept[i]).length} of ${g} weights outside` });
  const y = (i) => box.y1 + ((i - first + 0.5) / g) * (box.y0 - box.y1), r = Math.max(1.6, Math.min(4, (box.y0 - box.y1) / g / 2.6)), tight = (sx(marks.at(-1)) - sx(marks[0])) / (marks.length - 1), every = Math.ceil(12 / tight), few = every > marks.length / 2;
  node.append(textAt(0, 31, width < 400 ? "bars: marks and codes; lines: rounding" : "bars: the marks with their codes; lines: what rounding moves"));
  marks.forEach((m, q) => layer.append(svg("line", { x1: sx(m), x2: sx(m), y1: box.y1, y2: box.y0, class: "lb-o-tick" }), ...(q % every || few ? [] : [textAt(sx(m), box.y1 - 6, String(q), "lb-t lb-mid")])));
  if (few) layer.append(textAt((sx(marks[0]) + sx(marks.at(-1))) / 2, box.y1 - 6, `0 to ${marks.length - 1}`, "lb-t lb-mid"));
  ids.forEach((i) => {
    const out = now.kept[i], X = sx(now.target[i]);
    layer.append(svg("line", { x1: X, x2: sx(now.mark[i]), y1: y(i), y2: y(i), class: out ? "lb-o-gap lb-o-far" : "lb-o-gap" }), out ? shape(3, X, y(i), r * 1.1, "lb-o-leaver") : dotAt(X, y(i), r, "lb-o-stayer"));
  });
  layer.append(svg("circle", { cx: sx(now.target[place]), cy: y(place), r: r + 4, class: "lb-o-here" }), textAt(box.x0 - 6, y(place) + 4, `input ${names[place % d]}`, "lb-t-ink lb-end"));
  node.append(svg("g", {}, ...ids.map((i) => svg("rect", { x: box.x0, width: box.x1 - box.x0, y: (y(i) - (box.y0 - box.y1) / g / 2).toFixed(1), height: ((box.y0 - box.y1) / g).toFixed(1), fill: "transparent", class: "lb-click", onclick: () => choose(i) }))));
  return node;
}

export default { render };
