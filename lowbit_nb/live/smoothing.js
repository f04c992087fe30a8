// The smoothing explorer: what dividing a layer's channels by a factor does to its activations, its weights and its error.
// The chosen setting is smoothed, rounded and multiplied out here; curves and bars come from the package.
import { fitGroup, code, roundEven, value } from "./math.js";
import { chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, power, root, select, slider, svg, textAt, tile } from "./dom.js";

const KINDS = [["none", "none"], ["exponent", "exponent α"], ["logarithm", "logarithm"]];
const OVER = [["all", "all tokens"], ["ordinary", "not massive"]];
const STEPS = 20, FULL = 16, MASSIVE = 10;       // the exponent moves by 1/20; 16 bits: left as it is
const near = Math.fround;

function render({ model, el: host }) {
  const layer = layerOf(model), { bases, widths } = layer;
  const node = root("smoothing", "Smoothing explorer", model.get("about"),
    "Which exponent is best, and does the logarithm do as well without a search? Every channel of the activations is divided by a factor, its weights are multiplied by it; then both are rounded.");
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const go = (kind, i) => set({ kind, ...(kind === "exponent" ? { exponent: i / STEPS } : kind === "logarithm" ? { base: bases[i] } : {}) });
  const widthsOf = widths.map((b) => [b, b === FULL ? "16 bits: exact" : `${b} bits`]);
  const control = {
    kind: select({ label: "Smoothing by", options: KINDS, onchange: (v) => set({ kind: v }) }),
    exponent: slider({ label: "Exponent α", min: 0, max: STEPS, text: (i) => (i / STEPS).toFixed(2), oninput: (i) => go("exponent", i) }),
    base: slider({ label: "Logarithm base", min: 0, max: bases.length - 1, text: (i) => String(bases[i]), oninput: (i) => go("logarithm", i) }),
    bits: select({ label: "Activations", options: widthsOf, onchange: (v) => set({ bits: Number(v) }) }),
    bitsW: select({ label: "Weights", options: widthsOf, onchange: (v) => set({ bits_w: Number(v) }) }),
    over: select({ label: "Error over", options: OVER, onchange: (v) => set({ over: v }) }),
    order: select({ label: "Channels drawn", options: [["sorted", "largest first"], ["in place", "in place"]], onchange: (v) => set({ order: v }) }),
  };
  control.over.input.disabled = !layer.massive.size;
  const jumps = chips("Go to", [["no smoothing", () => go("none")], ["best exponent", () => go("exponent", stateOf(layer, model).best.exponent)],
    ["logarithm to base 2", () => go("logarithm", bases.indexOf(2))], ["best base", () => go("logarithm", stateOf(layer, model).best.logarithm)]]);
  const tiles = { now: tile("Output error"), parts: tile("If only activations are rounded"), best: tile("Least error"), massive: tile("Massive tokens") };
  const maxima = [el("div"), el("div"), el("div")], curves = [el("div"), el("div")], bars = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-sm-controls" }, ...Object.values(control).map((c) => c.node)), jumps,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)),
    el("div", { class: "lb-row lb-sm-three lb-main" }, ...maxima), el("div", { class: "lb-row lb-sm-three" }, ...curves, bars),
    keys([["lb-sm-before", "before"], ["lb-sm-after", "after smoothing"], ["lb-sm-both", "both rounded"], ["lb-sm-x", "only activations"], ["lb-sm-w", "only weights"], ["lb-sm-plain", "no smoothing"], ["lb-sm-level", "the other kind"], ["lb-sm-least", "best"]]),
    readout, model.get("rule") ? el("p", { class: "lb-note lb-sm-rule" }, model.get("rule")) : null);

  function update() {
    const m = stateOf(layer, model), { best, least, flat } = m;
    control.kind.update(m.kind); control.exponent.update(m.step); control.base.update(m.baseAt); control.bits.update(m.bits); control.bitsW.update(m.bitsW);
    control.over.update(m.over); control.order.update(m.order);
    tiles.now.update(percent(m.error), m.point ? `${m.words}; ${tied(m.plain)} without smoothing` : "of the output's squares; no smoothing");
    tiles.parts.update(percent(m.onlyX), `${tied(m.onlyW)} if only weights are; without smoothing ${tied(m.plainX)} and ${tied(m.plainW)}`);
    tiles.best.update(percent(least.exponent), `exponent ${best.exponent / STEPS}; the best base, ${bases[best.logarithm]}, leaves ${tied(least.logarithm)}, base 2 ${tied(m.log2)}`);
    tiles.massive.update(layer.many ? `${layer.many} of ${layer.n}` : `none of ${layer.n}`, `${MASSIVE} × the median token's largest number, or more; the largest: ${digits(model.get("largest"))}\u00a0×`);
    const told = (name, [before, after]) => `${name} from ${digits(before)} to ${digits(after)} times the median`;
    readout.textContent = (`${m.words[0].toUpperCase()}${m.words.slice(1)}, ${wide(m.bits)} activations and ${wide(m.bitsW)} weights: output error ${percent(m.error)}${m.over === "all" ? "" : " over tokens that are not massive"}, ${percent(m.plain)} without smoothing; ${percent(m.onlyX)} if only activations are rounded, ${percent(m.onlyW)} if only weights. `
      + (m.point ? `Smoothing takes the largest ${told("channel of the activations", flat.x)}, ${told("that of the weights", flat.w)}, ${told("the largest token", flat.tokens)} of those used. ` : `The largest channel of the activations, input ${layer.names[m.perm[0]]}, is ${digits(flat.x[0])} times the median, that of the weights ${digits(flat.w[0])} times. `)
      + `The best exponent, ${best.exponent / STEPS}, leaves ${percent(least.exponent)}; the logarithm to base 2, without a search, ${percent(m.log2)}, to the best base, ${bases[best.logarithm]}, ${percent(least.logarithm)}.`).replaceAll(" %", "\u00a0%");
    Object.assign(node.dataset, { error: m.error, onlyX: m.onlyX, onlyW: m.onlyW, plain: m.plain, bestExponent: best.exponent / STEPS, bestBase: bases[best.logarithm], leastExponent: least.exponent, leastBase: least.logarithm, factors: m.s.join(","), x: flat.x.join(","), w: flat.w.join(","), tokens: flat.tokens.join(","), massive: [...layer.massive].join(",") });
    draw(m);
  }

  function draw(m) {
    if (!node.clientWidth) return;
    const { a, w, tokenMax, names, d } = layer, places = Array.from({ length: layer.T }, (_, t) => t), channels = { ids: m.order === "sorted" ? m.perm : [...a.keys()], label: m.order === "sorted" ? "channels, largest |x| first" : "input channel, in place" };
    const room = [...maxima, ...curves, bars].map((one) => one.clientWidth);    // all read before anything is drawn: one layout
    [["Largest |x| of each channel", a, m.ax, m.flat.x, channels], ["Largest |w| of each channel", w, m.wx, m.flat.w, channels], ["Largest |x| of each token", tokenMax, m.tx, m.flat.tokens, { ids: places, label: layer.T < layer.n ? "tokens used" : "tokens", marked: layer.massive }]]
      .forEach(([title, before, after, flat, at], i) => maxima[i].replaceChildren(maximaPlot({ title, before, after, flat, ...at }, room[i])));
    curves[0].replaceChildren(curvePlot(m, "exponent", room[3], (i) => go("exponent", i)));
    curves[1].replaceChildren(curvePlot(m, "logarithm", room[4], (i) => go("logarithm", i)));
    bars.replaceChildren(barsPlot(m, room[5], go));
  }

  host.append(node);
  update();
  const watched = ["kind", "exponent", "base", "bits", "bits_w", "over", "order"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, () => draw(stateOf(layer, model)));
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const tied = (x) => percent(x).replace(" ", "\u00a0");    // number and sign stay on one line
const wide = (bits) => (bits === FULL ? "exact" : `${bits}-bit`);
const within = (x, most) => Math.max(0, Math.min(most, x));
const clampAt = (x) => Math.max(x, 1e-5);

function layerOf(model) {
  const [T, R, d, n, many] = model.get("shape"), X = floats(model.get("inputs")), W = floats(model.get("weights")), peaks = floats(model.get("peaks")), counts = floats(model.get("counts")), table = floats(model.get("errors"));
  const bases = model.get("bases"), widths = model.get("widths"), points = 2 + STEPS + bases.length, at = (b) => Math.max(0, widths.indexOf(b));
  const layer = { T, R, d, n, many, X, W, bases, widths, a: peaks.subarray(0, d), w: peaks.subarray(d), tokens: counts.subarray(0, T), rows: counts.subarray(T), massive: new Set(model.get("massive")), names: model.get("names"), g: model.get("group") };
  layer.entry = (over, bits, bitsW, p) => table[((Number(over === "ordinary") * widths.length + at(bits)) * widths.length + at(bitsW)) * points + p];
  layer.tokenMax = tokenMaxima(X, T, d);
  layer.Y = product(X, W, layer);
  return layer;
}

function tokenMaxima(X, T, d) {
  const out = new Float32Array(T);
  for (let t = 0; t < T; t++) for (let i = t * d; i < (t + 1) * d; i++) if (Math.abs(X[i]) > out[t]) out[t] = Math.abs(X[i]);
  return out;
}

// X W^T of [T, d] and [R, d], summed in doubles.
function product(X, W, { T, R, d }) {
  const Y = new Float64Array(T * R), x = new Float64Array(d), all = Float64Array.from(W);
  for (let t = 0; t < T; t++) {
    for (let i = 0; i < d; i++) x[i] = X[t * d + i];
    for (let r = 0; r < R; r++) {
      const w = r * d;
      let even = 0, odd = 0, i = 0;
      for (; i < d - 1; i += 2) { even += x[i] * all[w + i]; odd += x[i + 1] * all[w + i + 1]; }
      Y[t * R + r] = even + odd + (i < d ? x[i] * all[w + i] : 0);
    }
  }
  return Y;
}

// What each channel is divided by: SmoothQuant's a^alpha / w^(1 - alpha), LRQuant's a / log_base(base + a).
function factorsOf({ a, w }, kind, exponent, base) {
  if (kind === "none") return new Float32Array(a.length).fill(1);
  const log = near(Math.log(near(base)));
  return Float32Array.from(a, (v, i) => clampAt(kind === "exponent" ? clampAt(v) ** exponent / clampAt(w[i]) ** (1 - exponent) : (clampAt(v) * log) / Math.log(base + clampAt(v))));
}

// Every token to 2^bits marks between its own smallest and largest number, in float32 step by step, as activations/tokens.py.
function roundTokens(X, T, d, bits) {
  const out = new Float32Array(T * d), top = 2 ** bits - 1;
  for (let t = 0; t < T; t++) {
    let lo = Infinity, hi = -Infinity;
    for (let i = t * d; i < (t + 1) * d; i++) { if (X[i] < lo) lo = X[i]; if (X[i] > hi) hi = X[i]; }
    const peak = Math.max(-lo, hi), span = near(hi - lo), flat = span <= near(near(1e-6) * peak);
    const s = flat ? (peak > 0 ? peak : 1) : near(span / top), z = flat ? Number(hi < 0) : roundEven(near(-lo / s));
    for (let i = t * d; i < (t + 1) * d; i++) out[i] = near((within(roundEven(near(X[i] / s)) + z, top) - z) * s);
  }
  return out;
}

function roundWeights(W, { R, d, g }, bits) {
  const out = new Float32Array(R * d), setting = { bits, zero: "integer", clip: 1 };
  for (let from = 0; from < R * d; from += g) {
    const { s, z } = fitGroup(W, from, g, setting);
    for (let i = from; i < from + g; i++) out[i] = value(code(W[i], s, z, bits, "integer"), s, z);
  }
  return out;
}

function scaled(X, s, up) {
  const out = new Float32Array(X.length), d = s.length;
  for (let from = 0; from < X.length; from += d) for (let i = 0; i < d; i++) out[from + i] = up ? X[from + i] * s[i] : X[from + i] / s[i];
  return out;
}

// The share of the output's squares that is error; tokens and rows count as often as they stand for others.
function errorOf(layer, s, bits, bitsW, over) {
  const { T, R, d, X, W, Y, tokens, rows, massive } = layer;
  if (bits === FULL && bitsW === FULL) return 0;
  const xs = scaled(X, s, false), ws = scaled(W, s, true);
  const got = product(bits === FULL ? xs : roundTokens(xs, T, d, bits), bitsW === FULL ? ws : roundWeights(ws, layer, bitsW), layer);
  let error = 0, all = 0;
  for (let t = 0; t < T; t++) if (over === "all" || !massive.has(t)) for (let r = 0; r < R; r++) {
    const y = Y[t * R + r], c = tokens[t] * rows[r];
    error += c * (got[t * R + r] - y) ** 2; all += c * y * y;
  }
  return error / all;
}

const unevenness = (values) => { const v = Float32Array.from(values).sort(); return v.at(-1) / Math.max(v[(v.length - 1) >> 1], 1e-12); };
const leastAt = (values) => values.reduce((a, v, i) => (v < values[a] ? i : a), 0);

// All that is shown at the present setting. Points of the table: no smoothing, the exponents, the bases.
function stateOf(layer, model) {
  const [kind, bits, bitsW, over, order] = ["kind", "bits", "bits_w", "over", "order"].map((k) => model.get(k)), { bases, a, w, X, T, d } = layer;
  const step = within(Math.round(model.get("exponent") * STEPS), STEPS), baseAt = leastAt(bases.map((b) => Math.abs(Math.log(b / model.get("base")))));
  const point = kind === "none" ? 0 : kind === "exponent" ? 1 + step : 2 + STEPS + baseAt, s = factorsOf(layer, kind, step / STEPS, bases[baseAt]);
  const curve = (b, bw) => ({ exponent: Array.from({ length: STEPS + 1 }, (_, i) => layer.entry(over, b, bw, 1 + i)), logarithm: bases.map((_, i) => layer.entry(over, b, bw, 2 + STEPS + i)) });
  const both = curve(bits, bitsW), best = { exponent: leastAt(both.exponent), logarithm: leastAt(both.logarithm) };
  const ax = a.map((v, i) => v / s[i]), wx = w.map((v, i) => v * s[i]), tx = tokenMaxima(scaled(X, s, false), T, d);
  const words = { none: "no smoothing", exponent: `exponent ${step / STEPS}`, logarithm: `logarithm to base ${bases[baseAt]}` }[kind];
  return { kind, bits, bitsW, over, order, step, baseAt, point, s, ax, wx, tx, words, bases, both, onlyXs: curve(bits, FULL), onlyWs: curve(FULL, bitsW), best, perm: [...a.keys()].sort((i, j) => a[j] - a[i] || i - j),
    error: errorOf(layer, s, bits, bitsW, over), onlyX: layer.entry(over, bits, FULL, point), onlyW: layer.entry(over, FULL, bitsW, point),
    plain: layer.entry(over, bits, bitsW, 0), plainX: layer.entry(over, bits, FULL, 0), plainW: layer.entry(over, FULL, bitsW, 0), log2: both.logarithm[bases.indexOf(2)],
    least: { exponent: both.exponent[best.exponent], logarithm: both.logarithm[best.logarithm] }, parts: (p) => [layer.entry(over, bits, FULL, p), layer.entry(over, FULL, bitsW, p)],
    flat: { x: [unevenness(a), unevenness(ax)], w: [unevenness(w), unevenness(wx)], tokens: [unevenness(layer.tokenMax), unevenness(tx)] } };
}

// What each line is, drawn as in the pictures; a list that wraps.
function keys(items) {
  const sample = (cls) => (cls === "lb-sm-least" ? svg("circle", { cx: 12, cy: 5, r: 4.5, class: cls }) : svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, class: cls }));
  return el("p", { class: "lb-note lb-sm-keys" }, ...items.map(([cls, words]) => el("span", { class: "lb-sm-key" }, svg("svg", { width: 24, height: 10, viewBox: "0 0 24 10", "aria-hidden": "true" }, sample(cls)), words)));
}

// Before and after, one step a channel or token, on a logarithmic axis; massive tokens carry a triangle.
function maximaPlot({ title, before, after, flat, ids, label, marked = new Set() }, width) {
  const all = [...before, ...after].filter((v) => v > 0).sort((a, b) => a - b), hi = all.at(-1) * (marked.size ? 2 : 1.3), lo = Math.max(all[0] / 1.2, all[Math.floor(0.02 * all.length)] / 4, hi / 1e5), n = ids.length;    // the few smallest may leave the picture
  const ticks = Array.from({ length: 40 }, (_, i) => [1, 2, 5].map((k) => k * 10 ** (i - 20))).flat().filter((t) => t >= lo && t <= hi), few = ticks.length > 6 ? ticks.filter((t) => /^1/.test(t.toExponential())) : ticks;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 190, title, margin: { left: 44, right: 8, top: 46, bottom: 26 }, x: { range: [0, n], ticks: [], label }, y: { range: [lo, hi], log: true, ticks: few, format: (t) => (t < 0.01 || t > 1000 ? power(t) : String(Number(t.toPrecision(3)))) },
    alt: `${title.toLowerCase()}, ${n} drawn: largest over median ${digits(flat[0])} before, ${digits(flat[1])} after smoothing${marked.size ? `; ${marked.size} massive tokens marked` : ""}` });
  const y = (v) => sy(Math.max(v, lo)).toFixed(1), path = (values) => ids.map((id, i) => `${i ? "V" : `M${box.x0},`}${y(values[id])}H${sx(i + 1).toFixed(1)}`).join("");
  layer.append(svg("path", { d: path(after), class: "lb-sm-after" }), svg("path", { d: path(before), class: "lb-sm-before" }));
  ids.forEach((id, i) => { if (marked.has(id)) layer.append(svg("path", { d: `M${(sx(i + 0.5) - 4).toFixed(1)},${(sy(before[id]) - 11).toFixed(1)}h8l-4,7Z`, class: "lb-sm-mark" })); });
  node.append(svg("text", { x: 0, y: 31, class: "lb-t" }, `largest / median: ${digits(flat[0])} → ${digits(flat[1])}`, marked.size ? svg("tspan", { class: "lb-t-orange" }, " · ▼ massive") : null));
  return node;
}

const asPercent = (v) => `${Number((100 * v).toPrecision(4))} %`;

// The error at every exponent, or to every base: both rounded, each alone, and what the other kinds leave.
function curvePlot(m, kind, width, go) {
  const own = kind === "exponent", lines = [["lb-sm-w", m.onlyWs], ["lb-sm-x", m.onlyXs], ["lb-sm-both", m.both]].map(([cls, of]) => [cls, of[kind]]), n = lines[0][1].length;
  const shown = own ? "logarithm" : "exponent", other = own ? m.both.logarithm[m.baseAt] : m.both.exponent[m.step], most = Math.max(m.plain, other, ...m.both.exponent, ...m.both.logarithm) * 1.06 || 1;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 250, title: own ? "Output error, by exponent α" : "… by base of the logarithm", margin: { left: 50, right: 10, top: 46 }, y: { range: [0, most], format: asPercent },
    x: { range: [0, n - 1], ticks: own ? [0, 4, 8, 12, 16, 20] : [0, 3, 6, 9, 11, n - 1], format: (i) => String(own ? i / STEPS : m.bases[i]), label: own ? "α (click to choose)" : "base (click to choose)" },
    alt: own ? `output error by exponent: ${percent(m.both.exponent[0])} at 0, ${percent(m.both.exponent[STEPS / 2])} at 0.5, ${percent(m.both.exponent[STEPS])} at 1; least ${percent(m.least.exponent)} at ${m.best.exponent / STEPS}`
      : `output error by base: ${percent(m.both.logarithm[0])} to base ${m.bases[0]}, ${percent(m.log2)} to base 2, ${percent(m.both.logarithm.at(-1))} to base ${m.bases.at(-1)}; least ${percent(m.least.logarithm)} to base ${m.bases[m.best.logarithm]}` });
  const across = (v, cls) => layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(v), y2: sy(v), class: cls })), at = own ? m.step : m.baseAt;
  node.append(textAt(0, 31, `${own ? `long dashes: logarithm, base ${m.bases[m.baseAt]}` : `long dashes: exponent ${m.step / STEPS}`}`));
  across(m.plain, "lb-sm-plain"); across(other, "lb-sm-level");
  if (m.kind === kind) layer.append(svg("line", { x1: sx(at), x2: sx(at), y1: box.y0, y2: box.y1, class: "lb-sm-now" }));
  lines.forEach(([cls, values]) => layer.append(svg("path", { d: linePath(values.map((v, i) => [sx(i), sy(v)])), class: cls })));
  layer.append(dotAt(sx(m.best[kind]), sy(m.least[kind]), 6.5, "lb-sm-least"));
  layer.append(dotAt(sx(at), sy(m.both[kind][at]), 4.5, m.kind === kind ? "lb-here lb-sm-here" : "lb-sm-there"));
  const half = (sx(1) - sx(0)) / 2;
  node.append(svg("g", {}, ...lines[0][1].map((_, i) => svg("rect", { x: (sx(i) - half).toFixed(1), y: box.y1, width: (2 * half).toFixed(1), height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: () => go(i) }))));
  return node;
}

// The three kinds beside each other, with what a search would find; under each bar what activations and weights leave alone.
function barsPlot(m, width, go) {
  const rows = [["no smoothing", "none", 0], [`exponent ${m.step / STEPS}`, "exponent", m.step], [`best exponent, ${m.best.exponent / STEPS}`, "exponent", m.best.exponent], [`base ${m.bases[m.baseAt]}`, "logarithm", m.baseAt], [`best base, ${m.bases[m.best.logarithm]}`, "logarithm", m.best.logarithm]];
  const found = rows.map(([name, kind, i], k) => { const p = kind === "none" ? 0 : kind === "exponent" ? 1 + i : 2 + STEPS + i; return { name, kind, i, p, parts: m.parts(p), total: kind === "none" ? m.plain : m.both[kind][i], now: p === m.point && (k % 2 === 1 || k === 0) }; });
  const pitch = 39, top = 44, height = top + rows.length * pitch + 8, left = 134, right = width - 58, most = Math.max(...found.map((f) => f.total), ...found.flatMap((f) => f.parts)) || 1, x = (v) => Math.max(0, (v / most) * (right - left));
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `output error by kind of smoothing: ${found.map((f) => `${f.name} ${percent(f.total)}`).join(", ")}` },
    textAt(0, 14, "The kinds compared", "lb-t-title"), textAt(0, 31, "both rounded; below: activations, weights alone"));
  found.forEach((f, k) => {
    const y = top + k * pitch;
    node.append(svg("g", { class: "lb-click", onclick: () => go(f.kind, f.i) }, svg("rect", { x: 0, y, width, height: pitch, fill: "transparent" }), textAt(left - 10, y + 19, f.name, `${f.now ? "lb-t-ink" : "lb-t"} lb-end`),
      svg("rect", { x: left, y: y + 6, width: Math.max(1, x(f.total)).toFixed(1), height: 15, rx: 2, class: `lb-sm-bar${f.now ? " lb-sm-chosen" : ""}` }), textAt(left + x(f.total) + 6, y + 18, percent(f.total), f.now ? "lb-t-ink" : "lb-t"),
      ...["lb-sm-barx", "lb-sm-barw"].map((cls, i) => svg("rect", { x: left, y: y + 23 + 5 * i, width: x(f.parts[i]).toFixed(1), height: 4, class: cls }))));
  });
  return node;
}

export default { render };
