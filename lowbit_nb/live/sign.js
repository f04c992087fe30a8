// The sign-and-scale explorer: rows as signs times scales, the angle that is lost, and what a second bit a weight buys.
// Column scales and the percentiles of |w| come from the package; codes, angles and errors are worked out here.
import { chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const CODES = [["one", "one sign, one level"], ["mean", "one sign, level and mean"], ["columns", "one sign, row and column scales"], ["two", "two signs, the second of what is left"], ["split", "two groups by size, a sign in each"], ["levels", "four free levels"]];
const BRIEF = { one: "sign, level", mean: "sign, level, mean", columns: "sign, row, column", two: "two signs", split: "two groups", levels: "four levels" };
const BITS = { one: [1, 16], mean: [1, 32], columns: [1, 16], two: [2, 48], split: [2, 64], levels: [2, 64] };    // a weight, a row
const SECOND = { two: ["of the second signs are plus", "second sign +", "second sign −"], split: ["lie in the group of large weights", "large group", "small group"], levels: ["lie on an outer level", "outer level", "inner level"] };
const PARTS = [["first", "signs"], ["second", "second bits"], ["scales", "scales"]], TRIED = 81, SWEEPS = 100;

function render({ model, el: host }) {
  const layer = layerOf(model), { rows, names } = layer;
  const node = root("sign", "Sign-and-scale explorer", model.get("about"),
    "What can one bit hold, and where does the second bit go? A row is a direction in space; a sign a weight and a few scales point nearly there.");
  let now = null;
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const extreme = (sign) => set({ row: now.angles.indexOf((sign > 0 ? Math.max : Math.min)(...now.angles)) });
  const control = {
    code: select({ label: "Code", options: CODES, onchange: (v) => set({ code: v }) }),
    row: slider({ label: "Row", min: 0, max: rows - 1, text: (r) => `row ${names[r]}`, oninput: (r) => set({ row: r }) }),
    split: slider({ label: "Groups part at", min: 0, max: TRIED - 1, text: (k) => `${k + 10} %`, oninput: (k) => set({ split: k, code: "split" }) }),
  };
  const jumps = chips("Go to", [["widest angle", () => extreme(1)], ["narrowest angle", () => extreme(-1)], ["best split", () => set({ split: -1, code: "split" })]]);
  const tiles = { bits: tile("Bits a weight, all counted"), angle: tile("Angle to the row"), error: tile("Squared error"), second: tile("The second bit") };
  const stack = el("div", { class: "lb-stack", "aria-hidden": "true" }, ...PARTS.map(([c]) => el("i", { class: `lb-s-${c}` })));
  tiles.bits.node.insertBefore(stack, tiles.bits.note);
  const line = el("div"), fan = el("div"), table = el("div"), every = el("div"), parting = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-s-controls" }, ...Object.values(control).map((c) => c.node)), jumps, el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)),
    el("div", { class: "lb-main" }, line), el("div", { class: "lb-row lb-two lb-main" }, fan, table), el("div", { class: "lb-row lb-two" }, every, parting), readout);

  function update() {
    const code = model.get("code"), row = Math.max(0, Math.min(rows - 1, model.get("row"))), asked = model.get("split"), split = asked < 0 ? layer.best[row] : Math.min(TRIED - 1, asked);
    const all = Object.fromEntries(CODES.map(([c]) => [c, layer.told(c, row, c === "split" ? split : -1)])), mine = all[code], second = SECOND[code], bits = layer.bits(code), more = Math.min(all.two.error, all.split.error, all.levels.error) / mine.error;
    const angles = Array.from({ length: rows }, (_, r) => layer.told(code, r, code === "split" && asked >= 0 ? split : -1).angle);
    now = { code, row, split, asked, all, mine, angles, one: Array.from({ length: rows }, (_, r) => layer.told("one", r, -1).angle) };
    control.code.update(code); control.row.update(row); control.split.update(split);
    tiles.bits.update(digits(bits.total), "");
    const parts = [1, bits.each - 1, bits.scales];
    [...stack.children].forEach((bar, i) => { bar.style.flexGrow = parts[i]; });
    tiles.bits.note.replaceChildren(...PARTS.flatMap(([c, word], i) => (parts[i] ? [el("span", { class: "lb-key" }, el("i", { class: `lb-s-${c}` }), `${word} ${i < 2 ? parts[i] : digits(parts[i])}`)] : [])));
    tiles.angle.update(`${digits(mine.angle)}°`, `cosine ${digits(mine.cosine, 4)}${code === "one" ? " = sum |w| / (√n · length of w)" : `; one sign and one level: ${digits(all.one.angle)}°`}`);
    tiles.error.update(percent(mine.error), code === "one" ? "of the squared weights; 1 − cosine²" : `of the squared weights; ${percent(mine.error / all.one.error)} of that with one sign and one level`);
    tiles.second.update(second ? `${digits(mine.entropy)} bits` : "none", second ? `entropy of the map: ${percent(mine.share)} ${second[0]}` : more < 1 ? `a second bit could leave ${percent(more)} of this error` : "no code with a second bit does better on this row");
    readout.textContent = `Row ${names[row]}, ${CODES.find(([c]) => c === code)[1]}: ${bits.each} nominal and ${digits(bits.total)} real bits a weight, angle ${digits(mine.angle)} degrees (cosine ${digits(mine.cosine, 4)}), squared error ${percent(mine.error)}`
      + `${second ? `; ${percent(mine.share)} ${second[0]}, a map of ${digits(mine.entropy)} bits a weight` : ""}. Over all ${rows} rows the angle lies between ${digits(Math.min(...angles))} and ${digits(Math.max(...angles))} degrees.`;
    readout.textContent = readout.textContent.replaceAll(" %", "\u00a0%");
    table.replaceChildren(codeTable(layer, now, (c) => set({ code: c })));
    Object.assign(node.dataset, { code, row, split, bits: bits.total, cosine: mine.cosine, angle: mine.angle, error: mine.error, share: mine.share, entropy: mine.entropy, angles: angles.join(","), errors: CODES.map(([c]) => all[c].error).join(","), stored: Array.from(mine.W_hat).join(",") });
    draw();
  }

  function draw() {
    if (!node.clientWidth || !now) return;
    line.replaceChildren(linePlot(layer, now, line.clientWidth), keys(now));
    fan.replaceChildren(fanPlot(now, fan.clientWidth));
    every.replaceChildren(rowsPlot(layer, now, every.clientWidth, (r) => set({ row: r })), el("p", { class: "lb-note lb-s-keys" }, key("lb-s-near", dotAt(9, 6, 3.4, "lb-s-near"), "this code"), now.code === "one" ? null : key("", svg("path", { d: "M5,3l8,6M5,9l8,-6", class: "lb-s-cross" }), "one sign, one level")));
    parting.replaceChildren(splitPlot(layer, now, parting.clientWidth, (k) => set({ split: k, code: "split" })));
  }

  host.append(node);
  update();
  const watched = ["code", "row", "split"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, draw);
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const entropyOf = (p) => (p > 0 && p < 1 ? -p * Math.log2(p) - (1 - p) * Math.log2(1 - p) : 0);
const minus = (x, n = 3) => (x < 0 ? "−" : "") + digits(Math.abs(x), n);
const meanOf = (w, keep) => { let sum = 0, n = 0; w.forEach((x, i) => { if (keep(i)) { sum += x; n += 1; } }); return n ? sum / n : 0; };

function layerOf(model) {
  const [rows, d, dOut, dIn] = model.get("shape"), W = floats(model.get("weights")), v = floats(model.get("factors")), tried = floats(model.get("thresholds")), best = model.get("best"), known = new Map();
  const rowOf = (r) => Float64Array.from(W.subarray(r * d, (r + 1) * d));
  const told = (code, r, split) => {
    const k = split < 0 ? best[r] : split, id = `${code} ${r} ${["split", "levels"].includes(code) ? k : ""}`;
    if (!known.has(id)) known.set(id, measured(rowOf(r), stored(rowOf(r), code, v, tried[r * TRIED + k])));
    return known.get(id);
  };
  const bits = (code) => { const [each, row] = BITS[code], scales = row / dIn + (code === "columns" ? 16 / dOut : 0); return { each, scales, total: each + scales }; };
  return { rows, d, names: model.get("names"), best, rowOf, told, bits, tried };
}

// A plane of signs on a support: mean, level, and the values of all weights.
function plane(w, keep = () => true, centred = true) {
  const mu = centred ? meanOf(w, keep) : 0, a = meanOf(w.map((x) => Math.abs(x - mu)), keep);
  return { mu, a, values: w.map((x) => (x >= mu ? mu + a : mu - a)) };
}

// A row in one code: its values and, if there is one, the second bit of every weight.
function stored(w, code, v, threshold) {
  if (code === "one" || code === "mean") return { W_hat: plane(w, () => true, code === "mean").values };
  if (code === "columns") {
    const u = w.reduce((t, x, i) => t + Math.abs(x) * v[i], 0) / v.reduce((t, f) => t + f * f, 0);
    return { W_hat: w.map((x, i) => (x >= 0 ? 1 : -1) * u * v[i]) };
  }
  if (code === "two") {
    const first = plane(w), left = w.map((x, i) => x - first.values[i]), next = plane(left);
    return { W_hat: w.map((_, i) => first.values[i] + next.values[i]), second: Array.from(left, (x) => x >= next.mu) };
  }
  const far = Array.from(w, (x) => Math.abs(x) >= threshold), near = plane(w, (i) => !far[i]), wide = plane(w, (i) => far[i]);
  if (code === "split") return { W_hat: w.map((_, i) => (far[i] ? wide : near).values[i]), second: far };
  return lloyd(w, [near.mu - near.a, near.mu + near.a, wide.mu - wide.a, wide.mu + wide.a].sort((a, b) => a - b));
}

function lloyd(w, levels) {                      // four levels, each the mean of the weights nearest to it, in turns
  const place = (x) => [0, 1, 2].reduce((n, k) => n + (x > (levels[k + 1] + levels[k]) / 2), 0), small = 1e-12 * w.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  let at = [];
  for (let turn = 0; turn < SWEEPS; turn++) {
    at = Array.from(w, place);
    const next = levels.map((old, k) => (at.includes(k) ? meanOf(w, (i) => at[i] === k) : old)), still = next.every((x, k) => Math.abs(x - levels[k]) <= small);
    if (still) break;
    levels = next;
  }
  return { W_hat: w.map((_, i) => levels[at[i]]), second: at.map((k) => k === 0 || k === 3) };
}

function measured(w, { W_hat, second }) {
  const dot = (a, b) => a.reduce((t, x, i) => t + x * b[i], 0), cosine = dot(w, W_hat) / Math.sqrt(dot(w, w) * dot(W_hat, W_hat)), share = second ? second.filter((x) => x).length / w.length : 0, e = w.map((x, i) => x - W_hat[i]);
  return { W_hat, second, cosine, angle: (Math.acos(Math.min(1, cosine)) * 180) / Math.PI, error: dot(e, e) / dot(w, w), length: Math.sqrt(dot(W_hat, W_hat) / dot(w, w)), share, entropy: entropyOf(share) };
}

const square = (x, y, r, cls) => svg("rect", { x: (x - r).toFixed(1), y: (y - r).toFixed(1), width: 2 * r, height: 2 * r, class: cls });
const key = (cls, mark, words) => el("span", { class: "lb-s-key" }, svg("svg", { width: 18, height: 12, viewBox: "0 0 18 12", "aria-hidden": "true" }, mark), words);

function keys({ code }) {
  const second = SECOND[code];
  return el("p", { class: "lb-note lb-s-keys" }, key("", svg("line", { x1: 0, x2: 18, y1: 6, y2: 6, class: "lb-s-weight" }), "the row’s weights"), key("", dotAt(9, 6, 3, "lb-s-near"), second ? `stored, ${second[2]}` : "stored"),
    second ? key("", square(9, 6, 3, "lb-s-far"), `stored, ${second[1]}`) : null, key("", svg("rect", { x: 0, y: 1, width: 18, height: 10, class: "lb-s-gap" }), "what is lost"));
}

// The weights of one row in order of size, and what is stored of each.
function linePlot(layer, { code, row, mine }, width) {
  const w = layer.rowOf(row), order = Array.from(w.keys()).sort((a, b) => w[a] - w[b] || a - b), most = Math.max(...Array.from(w, Math.abs)) * 1.05, values = [...new Set(Array.from(mine.W_hat, (x) => x.toPrecision(9)))].map(Number).sort((a, b) => a - b);
  const { root: node, layer: into, sx, sy, box } = plot({ width, height: 320, title: width < 480 ? `Row ${layer.names[row]} and what is stored of it` : `Row ${layer.names[row]}: its weights, smallest first, and what is stored of them`, margin: { left: 58, right: values.length <= 4 ? 62 : 14 }, x: { range: [0, w.length + 1], label: "weights in order of size" }, y: { range: [-most, most], format: (v) => minus(Number(v.toPrecision(3)), 2) },
    alt: `row ${layer.names[row]}, ${w.length} weights from ${minus(w[order[0]])} to ${minus(w[order.at(-1)])}; ${values.length <= 4 ? `stored as ${values.map((v) => minus(v)).join(", ")}` : `stored values from ${minus(values[0])} to ${minus(values.at(-1))}`}` });
  const top = order.map((i, k) => [sx(k + 1), sy(w[i])]), back = order.map((i, k) => [sx(k + 1), sy(mine.W_hat[i])]).reverse(), r = Math.max(1.1, Math.min(3.2, (box.x1 - box.x0) / w.length / 1.4));
  into.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(0), y2: sy(0), class: "lb-axis" }), svg("path", { d: `${linePath(top)}${linePath(back).replace("M", "L")}Z`, class: "lb-s-gap" }));
  order.forEach((i, k) => into.append(mine.second?.[i] ? square(sx(k + 1), sy(mine.W_hat[i]), r * 1.4, "lb-s-far") : dotAt(sx(k + 1), sy(mine.W_hat[i]), r, "lb-s-near")));
  into.append(svg("path", { d: linePath(top), class: "lb-s-weight" }));
  if (values.length <= 4) values.forEach((v, k) => into.append(textAt(box.x1 + 6, sy(v) + 4 + (k && sy(values[k - 1]) - sy(v) < 14 ? -6 : 0), minus(v), "lb-t-ink")));
  return node;
}

// The row and what is stored of it as two arrows: a best fit ends on the circle over the row.
function fanPlot({ code, all, mine }, width) {
  const wide = Math.min(width, 520), left = 16, size = Math.min(wide - 2 * left - 60, 384), height = Math.round(size / 2) + 78, base = height - 26, at = (m) => { const t = (m.angle * Math.PI) / 180; return [left + m.length * Math.cos(t) * size, base - m.length * Math.sin(t) * size]; };
  const tip = at(mine), end = [left + size, base], arc = 54, t = (mine.angle * Math.PI) / 180, number = (x) => Number(x).toFixed(1);
  const node = svg("svg", { width: wide, height, viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": `angle of ${digits(mine.angle)} degrees between the row and what is stored of it; ${CODES.map(([c, word]) => `${word} ${digits(all[c].angle)}`).join(", ")}` },
    textAt(0, 14, wide < 380 ? "The row and what is stored" : "The row and what is stored of it, as arrows", "lb-t-title"), textAt(0, 31, wide < 380 ? "thin: other codes; circle: best fits" : "thin: the other codes; a best fit ends on the half circle"),
    svg("path", { d: `M${left},${base}A${number(size / 2)},${number(size / 2)} 0 0,1 ${number(end[0])},${base}`, class: "lb-s-circle" }));
  for (const [c] of CODES) if (c !== code) { const [x, y] = at(all[c]); node.append(svg("line", { x1: left, y1: base, x2: number(x), y2: number(y), class: "lb-s-other" }), dotAt(x, y, 2.6, "lb-s-otherdot")); }
  node.append(svg("path", { d: `M${number(tip[0])},${number(tip[1])}L${number(end[0])},${base}`, class: "lb-s-lost" }), svg("line", { x1: left, x2: number(end[0]), y1: base, y2: base, class: "lb-s-row" }), svg("line", { x1: left, y1: base, x2: number(tip[0]), y2: number(tip[1]), class: "lb-s-stored" }),
    svg("path", { d: `M${left + arc},${base}A${arc},${arc} 0 0,0 ${number(left + arc * Math.cos(t))},${number(base - arc * Math.sin(t))}`, class: "lb-s-arc" }), dotAt(...tip, 5, "lb-s-near"), dotAt(...end, 4, "lb-s-end"),
    textAt(left + (arc + 10) * Math.cos(t / 2), base - (arc + 10) * Math.sin(t / 2) + 4, `${digits(mine.angle)}°`, "lb-t-ink lb-halo"), textAt(end[0] + 8, base + 4, "row", "lb-t-ink"), textAt(tip[0] + 8, tip[1] - 8, "stored", "lb-t-blue lb-halo"),
    textAt((tip[0] + end[0]) / 2 + 8, (tip[1] + base) / 2 + 2, "lost", "lb-t-red lb-halo"));
  return node;
}

function codeTable(layer, { code, all, row }, go) {
  const cells = (words) => words.map((x) => el("td", {}, x.replace(" %", "\u00a0%")));
  return el("table", { class: "lb-s-table" }, el("caption", {}, `Row ${layer.names[row]} in every code; of a second bit, its entropy`),
    el("thead", {}, el("tr", {}, ...["code", "bits", "all counted", "angle", "error", "2nd bit"].map((x) => el("th", { scope: "col" }, x)))),
    el("tbody", {}, ...CODES.map(([c, word]) => { const bits = layer.bits(c); return el("tr", { class: `lb-click${c === code ? " lb-s-now" : ""}`, "aria-current": c === code ? "true" : null, onclick: () => go(c) }, el("th", { scope: "row", title: word }, BRIEF[c]), ...cells([String(bits.each), digits(bits.total), `${digits(all[c].angle)}°`, percent(all[c].error), SECOND[c] ? digits(all[c].entropy) : "–"])); })));
}

function rowsPlot(layer, { code, row, angles, one }, width, go) {
  const top = Math.max(...angles, ...one) * 1.12, n = angles.length;
  const { root: node, layer: into, sx, sy, box } = plot({ width, height: 240, title: "Angle of every row, degrees", margin: { left: 40, right: 14 }, x: { range: [-0.7, n - 0.3], label: "row (click to choose)", ticks: [...new Set([0, Math.floor(n / 3), Math.floor((2 * n) / 3), n - 1])], format: (r) => String(layer.names[r]) }, y: { range: [0, top] },
    alt: `angle of ${n} rows, from ${digits(Math.min(...angles))} to ${digits(Math.max(...angles))} degrees; row ${layer.names[row]} ${digits(angles[row])}` });
  if (code !== "one") one.forEach((a, r) => into.append(svg("path", { d: `M${(sx(r) - 3).toFixed(1)},${(sy(a) - 3).toFixed(1)}l6,6m0,-6l-6,6`, class: "lb-s-cross" })));
  angles.forEach((a, r) => into.append(dotAt(sx(r), sy(a), 3.4, "lb-s-near")));
  into.append(svg("circle", { cx: sx(row), cy: sy(angles[row]), r: 7.5, class: "lb-s-here" }));
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: (ev) => { const b = ev.target.getBoundingClientRect(); go(Math.max(0, Math.min(n - 1, Math.round(-0.7 + ((ev.clientX - b.left) / b.width) * (n + 0.4))))); } }));
  return node;
}

// The error of one row if its groups part elsewhere, and the information in the map of the groups.
function splitPlot(layer, { row, split, all }, width, go) {
  const tried = Array.from({ length: TRIED }, (_, k) => layer.told("split", row, k)), top = Math.max(all.one.error * 1.08, ...tried.map((t) => t.error)), share = (k) => k + 10;
  const { root: node, layer: into, sx, sy, box } = plot({ width, height: 240, title: "Where the two groups part", margin: { left: 46, right: 46 }, x: { range: [10, 90], label: "weights in the small group, % (click to part)" }, y: { range: [0, top], format: (v) => `${Number((100 * v).toPrecision(3))} %` },
    alt: `error of row ${layer.names[row]} by the share of small weights: least ${percent(tried[layer.best[row]].error)} at ${share(layer.best[row])} %, now ${percent(tried[split].error)} at ${share(split)} %, a map of ${digits(tried[split].entropy)} bits` });
  const bits = (b) => box.y0 - b * (box.y0 - box.y1) / 1.1, at = Math.min(box.x1 - 30, Math.max(box.x0 + 30, sx(share(split)))), low = sy(tried[split].error);
  into.append(svg("path", { d: linePath(tried.map((t, k) => [sx(share(k)), bits(t.entropy)])), class: "lb-s-map" }), svg("path", { d: linePath(tried.map((t, k) => [sx(share(k)), sy(t.error)])), class: "lb-s-curve" }), svg("line", { x1: box.x0, x2: box.x1, y1: sy(all.levels.error), y2: sy(all.levels.error), class: "lb-s-least" }));
  for (const b of [0, 0.5, 1]) node.append(textAt(box.x1 + 6, bits(b) + 4, String(b)));
  into.append(textAt(box.x1, bits(1) - 7, "bits in the map (dashed)", "lb-t-orange lb-end lb-halo"), textAt(box.x0 + 4, sy(all.levels.error) + 14, "four free levels (dotted)", "lb-t lb-halo"), textAt(at, low - 12, `${percent(tried[split].error)}`, "lb-t-ink lb-mid lb-halo"), svg("circle", { cx: sx(share(split)), cy: low, r: 6, class: "lb-s-here" }));
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: (ev) => { const b = ev.target.getBoundingClientRect(); go(Math.max(0, Math.min(TRIED - 1, Math.round(((ev.clientX - b.left) / b.width) * 80)))); } }));
  return node;
}

export default { render };
