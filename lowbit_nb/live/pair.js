// The Hessian explorer with two metrics of one layer: heat maps, spectra, and the columns that each calls salient.
import { damped, eigenvalues, factor, layerError } from "./math.js";
import { digits, dotAt, el, floats, followWidth, linePath, percent, plot, power, root, select, slider, svg, textAt, tile } from "./dom.js";

const SHARES = [0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5], DAMP = 0.01;
const VIEWS = [["size", "size of H, log"], ["correlation", "H as correlations"]];
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const PUOR = [[84, 39, 136], [153, 142, 195], [216, 218, 235], [247, 247, 247], [254, 224, 182], [241, 163, 64], [179, 88, 6]];

function render({ model, el: host }) {
  const d = model.get("d"), labels = model.get("metric_names"), names = model.get("names"), group = model.get("group"), all = floats(model.get("hessians")), W = floats(model.get("weights"));
  const H = [0, 1].map((m) => Float64Array.from(all.subarray(m * d * d, (m + 1) * d * d))), diag = H.map((M) => Float64Array.from({ length: d }, (_, i) => M[i * d + i]));
  const spectra = H.map((M) => eigenvalues(damped(M, d, 0), d)), order = diag.map((v) => Array.from(v.keys()).sort((i, j) => v[j] - v[i] || i - j));
  const norm = (f) => Math.sqrt(H[0].reduce((a, _, i) => a + f(i) ** 2, 0)), distance = norm((i) => H[0][i] - H[1][i]) / norm((i) => H[0][i]);
  const adds = diag.map((v) => (DAMP * d) / v.reduce((n, x) => n + (x > 0 ? 1 : 0), 0));   // of the mean over live columns; over all it is 1
  const conditions = spectra.map((e, m) => (e[d - 1] + adds[m]) / Math.max(e[0] + adds[m], 1e-12));
  const pair = { d, labels, names, H, diag, spectra, conditions }, factors = H.map((M) => (W ? factor(damped(M, d, DAMP), d) : null));
  const node = root("hessian", "Hessian explorer", model.get("about"),
    `Do two metrics of one layer, ${labels[0]} and ${labels[1]}, call the same rounding errors dear? Each is scaled to a mean diagonal of 1.`);
  let now = null;
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const nearest = (share) => SHARES.reduce((a, s, i) => (Math.abs(s - share) < Math.abs(SHARES[a] - share) ? i : a), 0);
  const control = {
    share: slider({ label: "Top share", min: 0, max: SHARES.length - 1, text: (i) => `${countOf(SHARES[i], d)} of ${d}`, oninput: (i) => set({ share: SHARES[i] }) }),
    column: slider({ label: "Column", min: 0, max: d - 1, text: (c) => names[c], oninput: (c) => set({ column: c }) }),
    view: select({ label: "Heat maps show", options: VIEWS, onchange: (v) => set({ view: v }) }),
  };
  if (W) control.bits = select({ label: "Bits a code", options: [1, 2, 3, 4].map((b) => [b, `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) });
  const tiles = { both: tile("Picked by both"), first: tile(`Only by ${labels[0]} ▲`), second: tile(`Only by ${labels[1]} ▼`), distance: tile("Difference of the two") };
  const maps = [el("div", { class: "lb-heat" }), el("div", { class: "lb-heat" })], bars = el("div"), spectrum = el("div"), dots = el("div"), table = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls" }, ...Object.values(control).map((c) => c.node)), el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)),
    bars, el("div", { class: "lb-row lb-two lb-main" }, ...maps), el("div", { class: "lb-row lb-two" }, spectrum, dots), table, readout);

  function update() {
    const at = nearest(model.get("share")), n = countOf(SHARES[at], d), picked = order.map((o) => new Set(o.slice(0, n))), column = Math.min(d - 1, model.get("column")), list = (k, other) => order[k].slice(0, n).filter((c) => !picked[other].has(c));
    now = { n, picked, column, shows: model.get("view"), first: list(0, 1), second: list(1, 0), kind: (c) => (picked[0].has(c) ? (picked[1].has(c) ? "both" : "first") : picked[1].has(c) ? "second" : "") };
    const both = n - now.first.length, some = (ids) => (ids.length ? ids.slice(0, 3).map((c) => names[c]).join(", ") + (ids.length > 3 ? " …" : "") : "none");
    control.share.update(at); control.column.update(column); control.view.update(now.shows); control.bits?.update(model.get("bits"));
    tiles.both.update(`${both} of ${n}`, `with the largest diagonal; ${digits((n * n) / d, 2)} by chance`);
    tiles.first.update(String(now.first.length), some(now.first)); tiles.second.update(String(now.second.length), some(now.second));
    tiles.distance.update(percent(distance), `of the norm of ${labels[0]}; condition numbers ${big(conditions[0])} and ${big(conditions[1])} with 1 % damping`);
    const value = diag.map((v) => digits(v[column])), words = { both: "both call it salient", first: `only ${labels[0]} calls it salient`, second: `only ${labels[1]} calls it salient`, "": "neither calls it salient" };
    const errors = W && factors[0] && factors[1] ? errorsOf(model.get("bits")) : null;
    readout.textContent = `Of the ${n} columns with the largest diagonal ${both} are picked by both metrics, ${now.first.length} only by ${labels[0]} (${some(now.first)}), ${now.second.length} only by ${labels[1]} (${some(now.second)}). `
      + `${names[column]}: diagonal ${value[0]} under ${labels[0]}, ${value[1]} under ${labels[1]} (mean 1); ${words[now.kind(column)]}.`;
    table.replaceChildren(...(errors ? [errorTable(labels, errors, W.length / d, model.get("bits"), group)] : []));
    Object.assign(node.dataset, { both, first: [...now.first].sort((a, b) => a - b).join(","), second: [...now.second].sort((a, b) => a - b).join(","), distance, errors: errors ? errors.flat().join(",") : "", conditions: conditions.join(",") });
    draw();
  }

  function errorsOf(bits) {                      // nearest, by the first metric, by the second; each counted by both
    const setting = { bits, zero: "integer", clip: 1 }, rows = W.length / d;
    return [null, ...factors].map((f) => H.map((M) => layerError(W, rows, d, M, group, setting, f?.V ?? null, null)));
  }

  function draw() {
    if (!node.clientWidth || !now) return;
    const choose = (c) => set({ column: c });
    bars.replaceChildren(barPlot(pair, now, bars.clientWidth, choose), keysOf(labels));
    maps.forEach((place, m) => heatMap(place, pair, m, now, choose));
    spectrum.replaceChildren(spectrumPlot(pair, spectrum.clientWidth));
    dots.replaceChildren(dotPlot(pair, now, dots.clientWidth, choose));
  }

  host.append(node);
  update();
  const watched = ["share", "column", "view", "bits"].map((k) => `change:${k}`);
  watched.forEach((key) => model.on(key, update));
  const stop = followWidth(node, draw);
  return () => { stop(); watched.forEach((key) => model.off(key, update)); };
}

const countOf = (share, d) => Math.max(1, Math.floor(share * d + 0.5));
const big = (x) => (x < 1e4 ? digits(x, 3) : x < 1e12 ? `${digits(x / 10 ** Math.floor(Math.log10(x)), 2)} × ${power(10 ** Math.floor(Math.log10(x)))}` : "> 10¹²");
const KINDS = ["both", "first", "second"];
const mark = (kind, x, y, r) => svg("path", { d: kind === "both" ? `M${(x - r).toFixed(1)},${(y - r).toFixed(1)}h${2 * r}v${2 * r}h${-2 * r}Z` : `M${(x - 1.2 * r).toFixed(1)},${(y + (kind === "first" ? r : -r)).toFixed(1)}h${2.4 * r}l${-1.2 * r},${(kind === "first" ? -2 : 2) * r}Z`, class: `lb-p-${kind}` });

function keysOf(labels) {
  const words = { both: "picked by both", first: `only by ${labels[0]}`, second: `only by ${labels[1]}` };
  return el("p", { class: "lb-note lb-p-keys" }, ...KINDS.map((k) => el("span", { class: "lb-p-key" }, svg("svg", { width: 14, height: 12, viewBox: "0 0 14 12", "aria-hidden": "true" }, mark(k, 7, 6, 4)), words[k])));
}

function mix(map, t) {
  const at = Math.min(1, Math.max(0, t)) * (map.length - 1), i = Math.min(map.length - 2, Math.floor(at)), f = at - i;
  return map[i].map((c, n) => c + (map[i + 1][n] - c) * f);
}

// Diagonals in place: the first metric upwards, the second downwards; a mark on every column that is picked.
function barPlot({ d, labels, names, diag }, now, width, choose) {
  const root_ = diag.map((v) => Array.from(v, Math.sqrt)), most = Math.max(...root_[0], ...root_[1]), height = 214, top = 50, middle = (top + height - 34) / 2, reach = middle - top - 12, left = 62, step = (width - left - 6) / d, x = (c) => left + (c + 0.5) * step;
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `square roots of the diagonals of ${d} columns: ${now.n - now.first.length} picked by both, ${now.first.length} only by ${labels[0]}, ${now.second.length} only by ${labels[1]}` },
    textAt(0, 14, width < 560 ? "Square root of the diagonals" : "Square root of the diagonal of every column (mean square 1)", "lb-t-title"), textAt(left - 8, middle - reach / 2, labels[0], "lb-t-ink lb-end"), textAt(left - 8, middle + reach / 2 + 8, labels[1], "lb-t-ink lb-end"));
  for (let c = 0; c < d; c++) [0, 1].forEach((m) => {
    const h = (root_[m][c] / most) * reach, mine = now.picked[m].has(c);
    node.append(svg("rect", { x: (left + c * step).toFixed(2), width: Math.max(0.7, step - (step > 3 ? 0.8 : 0.1)).toFixed(2), y: (m ? middle + 1 : middle - h - 1).toFixed(1), height: Math.max(0.5, h).toFixed(1), class: mine ? `lb-p-${now.kind(c)}` : "lb-p-none" }));
    if (mine) node.append(mark(now.kind(c), x(c), m ? middle + h + 8 : middle - h - 8, 3));
  });
  const at = x(now.column);
  node.append(svg("line", { x1: left, x2: width - 6, y1: middle, y2: middle, class: "lb-axis" }), svg("line", { x1: at, x2: at, y1: top - 6, y2: height - 34, class: "lb-cross" }), textAt(Math.max(left + 30, Math.min(width - 40, at)), top - 12, names[now.column], "lb-t-ink lb-mid lb-halo"));
  for (const c of [0, Math.round(d / 4), Math.round(d / 2), Math.round((3 * d) / 4), d - 1]) node.append(textAt(x(c), height - 18, String(c), "lb-t lb-mid"));
  node.append(textAt((left + width) / 2, height - 3, "column, in place (click to choose)", "lb-t lb-mid"), svg("rect", { x: left, y: top - 6, width: width - left - 6, height: height - 28 - top, fill: "transparent", class: "lb-click",
    onclick: (ev) => { const b = ev.target.getBoundingClientRect(); choose(Math.max(0, Math.min(d - 1, Math.floor(((ev.clientX - b.left) / b.width) * d)))); } }));
  return node;
}

function heatMap(host, { d, labels, names, H, diag }, m, now, choose) {
  const width = Math.max(160, Math.min(host.clientWidth, 460)), left = 34, top = 36, size = width - left - 8, sized = now.shows === "size", M = H[m], peak = Math.log10(Math.max(...diag[0], ...diag[1]));
  const at = sized ? (i, k) => (Math.log10(Math.abs(M[i * d + k]) + 1e-30) - peak + 4) / 4 : (i, k) => 0.5 + M[i * d + k] / Math.sqrt(diag[m][i] * diag[m][k] || 1) / 1.0, map = sized ? CIVIDIS : PUOR;
  const canvas = el("canvas", { width: d, height: d, "aria-hidden": "true" }), image = new ImageData(d, d), height = top + size + 66;
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${size}px`, height: `${size}px` });
  for (let i = 0; i < d; i++) for (let k = 0; k < d; k++) image.data.set([...mix(map, at(i, k)), 255], 4 * (i * d + k));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const x = (c) => left + ((c + 0.5) / d) * size, y = (c) => top + ((c + 0.5) / d) * size, id = `lb-p-${Math.round(Math.random() * 1e12)}`;
  const over = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `heat map of ${labels[m]}, ${d} by ${d}; ${names[now.column]} is marked` }, textAt(0, 14, `${labels[m]}: ${sized ? "size of H" : "correlations"}`, "lb-t-title"));
  for (const c of now.picked[m]) over.append(mark(now.kind(c), x(c), top - 7, 2.6));
  over.append(svg("path", { d: `M${left},${y(now.column)}H${left + size}M${x(now.column)},${top}V${top + size}`, class: "lb-cross" }));
  for (const c of [0, Math.round(d / 2), d - 1]) over.append(textAt(x(c), top + size + 16, String(c), "lb-t lb-mid"), textAt(left - 6, y(c) + 4, String(c), "lb-t lb-end"));
  const stops = map.map((c, n) => svg("stop", { offset: n / (map.length - 1), "stop-color": `rgb(${c})` })), ends = sized ? ["10⁻⁴ of the largest", "largest"] : ["≤ −0.5", "≥ 0.5"];
  over.append(textAt(left + size / 2, top + size + 32, "column (click to choose)", "lb-t lb-mid"), svg("defs", {}, svg("linearGradient", { id }, ...stops)), svg("rect", { x: left + size * 0.38, y: top + size + 46, width: size * 0.36, height: 9, fill: `url(#${id})` }),
    textAt(left + size * 0.38 - 6, top + size + 55, ends[0], "lb-t lb-end"), textAt(left + size * 0.74 + 6, top + size + 55, ends[1]));
  over.append(svg("rect", { x: left, y: top, width: size, height: size, fill: "transparent", class: "lb-click", onclick: (ev) => { const b = ev.target.getBoundingClientRect(); choose(Math.max(0, Math.min(d - 1, Math.floor(((ev.clientX - b.left) / b.width) * d)))); } }));
  host.replaceChildren(canvas, over);
}

function spectrumPlot({ d, labels, spectra, conditions }, width) {
  const top = Math.max(spectra[0][d - 1], spectra[1][d - 1]) * 2, floor = Math.max(Math.min(...[...spectra[0], ...spectra[1]].filter((e) => e > 0)), top * 1e-8) / 2;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 250, title: "Eigenvalues (mean 1)", margin: { left: 50, right: 18 }, x: { range: [1, d], label: "eigenvalue, largest first", ticks: [1, Math.round(d / 2), d] },
    y: { range: [floor, top], log: true, format: power }, alt: `spectra of ${d} eigenvalues; condition numbers with 1 % damping: ${labels[0]} ${big(conditions[0])}, ${labels[1]} ${big(conditions[1])}` });
  spectra.forEach((e, m) => layer.append(svg("path", { d: linePath(Array.from(e).reverse().map((v, i) => [sx(i + 1), sy(Math.max(floor, v))])), class: m ? "lb-raw" : "lb-cond" })));
  layer.append(textAt(box.x1, box.y1 + 10, `${labels[0]} (solid)`, "lb-t-blue lb-end lb-halo"), textAt(box.x1, box.y1 + 26, `${labels[1]} (dashed)`, "lb-t-red lb-end lb-halo"));
  return node;
}

// Every column by its diagonal under both metrics; the line is where they agree.
function dotPlot({ d, labels, names, diag }, now, width, choose) {
  const low = Math.max(1e-4, Math.min(...[...diag[0], ...diag[1]].filter((v) => v > 0))) / 1.5, high = Math.max(...diag[0], ...diag[1]) * 1.5, range = [low, high], all = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((t) => t >= low && t <= high), ticks = all.filter((t, i) => (all.length - 1 - i) % Math.ceil(all.length / 7) === 0), format = (v) => String(Number(v.toPrecision(2)));
  const { root: node, layer, box, sx, sy } = plot({ width, height: 250, title: `Diagonal: ${labels[0]} across, ${labels[1]} upwards`, margin: { left: 50, right: 18 }, x: { range, log: true, ticks, format, label: `diagonal under ${labels[0]} (mean 1)` }, y: { range, log: true, ticks, format },
    alt: `diagonals under both metrics; ${names[now.column]} ${digits(diag[0][now.column])} and ${digits(diag[1][now.column])}` });
  const at = (c) => [sx(Math.max(low, diag[0][c])), sy(Math.max(low, diag[1][c]))];
  layer.append(svg("line", { x1: box.x0, y1: box.y0, x2: box.x1, y2: box.y1, class: "lb-gridline" }));
  for (const wanted of ["", ...KINDS]) for (let c = 0; c < d; c++) if (now.kind(c) === wanted) layer.append(wanted ? mark(wanted, ...at(c), 3.4) : dotAt(...at(c), 2, "lb-p-none"));
  layer.append(svg("circle", { cx: at(now.column)[0], cy: at(now.column)[1], r: 7.5, class: "lb-cross" }));
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: (ev) => {
    const b = node.getBoundingClientRect(), far = (c) => Math.hypot(at(c)[0] - (ev.clientX - b.left), at(c)[1] - (ev.clientY - b.top));
    choose(Array.from({ length: d }, (_, c) => c).reduce((a, c) => (far(c) < far(a) ? c : a), 0));
  } }));
  return node;
}

function errorTable(labels, errors, rows, bits, group) {
  const cells = (tag, words, first = {}) => words.map((w, i) => el(tag, i ? {} : first, w));
  return el("table", { class: "lb-p-table" }, el("caption", {}, `Output error of ${rows} rows at ${bits} bits in groups of ${group}, counted by each metric`),
    el("thead", {}, el("tr", {}, ...cells("th", ["rounded by", `counted by ${labels[0]}`, `counted by ${labels[1]}`], { scope: "col" }))),
    el("tbody", {}, ...["nearest mark", `feedback of ${labels[0]}`, `feedback of ${labels[1]}`].map((name, i) => el("tr", {}, el("th", { scope: "row" }, name), ...cells("td", errors[i].map(percent))))));
}

export default { render };
