// The Hessian explorer: conditioning, column order, the factor, and how feedback spreads one column's error.
import { damped, eigenvalues, factor, layerError, order, reorder } from "./math.js";
import { digits, dotAt, el, floats, followWidth, linePath, percent, plot, power, root, select, slider, svg, textAt, tile } from "./dom.js";

const DAMPS = [0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1];
const ORDERS = [["natural", "natural"], ["act", "act: largest first"], ["gar", "gar: in groups"], ["min_pivot", "min pivot"]];
const VIEWS = [["correlation", "H as correlations"], ["size", "size of H, log"], ["factor", "factor V"]];
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const PUOR = [[84, 39, 136], [153, 142, 195], [216, 218, 235], [247, 247, 247], [254, 224, 182], [241, 163, 64], [179, 88, 6]];

function render({ model, el: host }) {
  const d = model.get("d"), metrics = model.get("metric_names"), names = model.get("names"), group = model.get("group");
  const all = floats(model.get("hessians")), W = floats(model.get("weights"));
  const raw = metrics.map((_, m) => Float64Array.from(all.subarray(m * d * d, (m + 1) * d * d)));
  const spectra = raw.map((H) => eigenvalues(damped(H, d, 0), d));
  const node = root("hessian", "Hessian explorer", model.get("about"),
    "Which rounding errors matter to this layer, and how far can later columns make up for an earlier one?");
  let view = null;

  const set = (change) => {
    Object.entries(change).forEach(([k, v]) => model.set(k, v));
    model.save_changes();
    update();
  };
  const control = {
    damp: slider({ label: "Damping", min: 0, max: DAMPS.length - 1, text: (k) => `${Number((100 * DAMPS[k]).toPrecision(2))} %`, oninput: (k) => set({ damp: DAMPS[k] }) }),
    order: select({ label: "Column order", options: ORDERS.filter(([k]) => k !== "gar" || d % group === 0), onchange: (v) => set({ order: v }) }),
    column: slider({ label: "Column", min: 0, max: d - 1, text: (j) => `${j + 1} of ${d}`, oninput: (j) => set({ column: j }) }),
    view: select({ label: "Heat map shows", options: VIEWS, onchange: (v) => set({ view: v }) }),
  };
  if (W) control.bits = select({ label: "Bits a code", options: [1, 2, 3, 4].map((b) => [b, `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) });
  if (metrics.length > 1) control.metric = select({ label: "Metric", options: metrics.map((m, k) => [k, m]), onchange: (v) => set({ metric: Number(v) }) });
  const tiles = { condition: tile("Condition number"), gain: tile("Cost left by feedback"), column: tile("Cost left of this column") };
  if (W) tiles.layer = tile("Output error after rounding");
  const alarm = el("p", { class: "lb-alarm", role: "alert", hidden: true });
  const heat = el("div", { class: "lb-heat" }), right = [el("div"), el("div")], wide = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls" }, ...Object.values(control).map((c) => c.node)),
    el("div", { class: `lb-tiles lb-${Object.keys(tiles).length}` }, ...Object.values(tiles).map((t) => t.node)), alarm,
    el("div", { class: "lb-row lb-heatrow" }, heat, el("div", { class: "lb-row" }, ...right)), wide, readout);

  function compute() {
    const k = Math.min(model.get("metric"), raw.length - 1), damp = model.get("damp"), name = model.get("order");
    const last = view && view.k === k && view.damp === damp && view.name === name ? view : null;
    const H = last?.H ?? damped(raw[k], d, damp), perm = last?.perm ?? order(H, d, name, group);
    const Hp = last?.Hp ?? reorder(H, d, perm), f = last ? last.f : factor(Hp, d);
    let mean = 0;
    for (let i = 0; i < d; i++) mean += raw[k][i * d + i] / d;
    const live = raw[k].reduce((n, _, i) => n + (i % (d + 1) === 0 && raw[k][i] > 0 ? 1 : 0), 0);
    const eig = spectra[k], add = damp * mean * d / Math.max(1, live), lift = (e) => e + add;
    const out = { k, damp, name, H, perm, Hp, f, eig, lifted: eig.map(lift), j: Math.min(model.get("column"), d - 1), shows: model.get("view"), names };
    out.condition = lift(eig[d - 1]) / Math.max(lift(eig[0]), lift(eig[d - 1]) * 1e-16);
    out.diag = Float64Array.from({ length: d }, (_, i) => Hp[i * d + i]);
    if (f) out.gain = f.D.reduce((a, b) => a + b, 0) / out.diag.reduce((a, b) => a + b, 0);
    if (W && f) out.layer = layers(out);
    return out;
  }
  function layers({ H, f, perm }) {              // the error counts under the undamped metric of the data
    const setting = { bits: model.get("bits"), zero: "integer", clip: 1 }, true_ = raw[Math.min(model.get("metric"), raw.length - 1)];
    const rows = W.length / d;
    return { nearest: layerError(W, rows, d, true_, group, setting, null, null), fed: layerError(W, rows, d, true_, group, setting, f.V, perm), bits: setting.bits, rows };
  }

  function update() {
    view = compute();
    const { damp, name, j, shows, f, condition, diag, gain, perm, layer } = view;
    control.damp.update(Math.max(0, DAMPS.indexOf(DAMPS.reduce((a, b) => (Math.abs(b - damp) < Math.abs(a - damp) ? b : a)))));
    control.order.update(name); control.column.update(j); control.view.update(shows);
    control.bits?.update(model.get("bits")); control.metric?.update(model.get("metric"));
    alarm.hidden = Boolean(f);
    alarm.textContent = f ? "" : "H is not positive definite at this damping: there is no factor and no feedback. More damping, or more calibration tokens, repair it.";
    tiles.condition.update(condition < 1e12 ? big(condition) : "> 10¹²", `largest over smallest eigenvalue; damping ${Number((100 * damp).toPrecision(2))} %`);
    const label = names[perm[j]];
    if (f) {
      const row = f.V.subarray(j * d + j + 1, (j + 1) * d), moved = row.reduce((n, v) => n + (Math.abs(v) > 0.05 ? 1 : 0), 0), share = f.D[j] / diag[j];
      tiles.gain.update(percent(gain), "of what errors of equal size cost without it");
      tiles.column.update(percent(share), `${label}; ${moved} of ${d - 1 - j} later columns move by over 0.05 of its error`);
      readout.textContent = `Damping ${Number((100 * damp).toPrecision(2))} %, order ${name}: condition number ${big(condition)}, error cost ${percent(gain)} of that without feedback. `
        + `${label}, visited ${j + 1} of ${d}: ${percent(share)} of its cost is left.`;
      Object.assign(node.dataset, { gain, share, condition });
    } else {
      tiles.gain.update("–", "no factor"); tiles.column.update("–", label);
      readout.textContent = alarm.textContent;
    }
    if (W) tiles.layer.update(layer ? percent(layer.fed) : "–", layer ? `with feedback; ${percent(layer.nearest)} by nearest rounding (${W.length / d} rows, ${model.get("bits")} bits, groups of ${group})` : "no factor");
    if (layer) Object.assign(node.dataset, layer);
    draw();
  }

  function draw() {
    if (!node.clientWidth || !view) return;
    heatMap(heat, view, d, group, (j) => set({ column: j }));
    right[0].replaceChildren(spectrumPlot(view, right[0].clientWidth));
    right[1].replaceChildren(view.f ? costPlot(view, d, right[1].clientWidth) : "");
    wide.replaceChildren(view.f ? spreadPlot(view, d, wide.clientWidth) : "");
  }

  host.append(node);
  update();
  const keys = ["damp", "order", "column", "view", "bits", "metric"].map((k) => `change:${k}`);
  keys.forEach((key) => model.on(key, update));
  const stop = followWidth(node, draw);
  return () => { stop(); keys.forEach((key) => model.off(key, update)); };
}

const big = (x) => (x < 1e4 ? digits(x, 3) : `${digits(x / 10 ** Math.floor(Math.log10(x)), 2)} × ${power(10 ** Math.floor(Math.log10(x)))}`);

function mix(map, t) {
  const at = Math.min(1, Math.max(0, t)) * (map.length - 1), i = Math.min(map.length - 2, Math.floor(at)), f = at - i;
  return map[i].map((c, n) => c + (map[i + 1][n] - c) * f);
}

function shades({ Hp, f, shows, diag }, d) {     // for each entry a place on the map from 0 to 1, the map, and the key's ends
  if (shows === "size") {
    const top = Math.log10(Math.max(...diag)), at = (v) => (Math.log10(Math.abs(v) + 1e-30) - top + 4) / 4;
    return { at: (i, j) => at(Hp[i * d + j]), map: CIVIDIS, ends: ["10⁻⁴ of the largest", "largest"] };
  }
  const factor_ = shows === "factor" && f, entry = factor_ ? (i, j) => f.V[i * d + j] : (i, j) => Hp[i * d + j] / Math.sqrt(diag[i] * diag[j]);
  const above = Float64Array.from({ length: d * (d - 1) / 2 });
  for (let i = 0, n = 0; i < d; i++) for (let j = i + 1; j < d; j++) above[n++] = Math.abs(entry(i, j));
  const typical = above.sort()[Math.floor(0.98 * above.length)] ?? 1, most = [0.1, 0.2, 0.5].find((r) => r >= typical) ?? 1;
  return { at: (i, j) => 0.5 + entry(i, j) / most / 2, map: PUOR, ends: [`${most < 1 ? "≤ " : ""}−${most}`, `${most < 1 ? "≥ " : ""}${most}`] };
}

function heatMap(host, view, d, group, choose) {
  const width = Math.max(160, Math.min(host.clientWidth, 440)), left = 34, top = 28, size = width - left - 2, { j, shows, f } = view;
  const { at, map, ends } = shades(view, d), canvas = el("canvas", { width: d, height: d, "aria-hidden": "true" });
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${size}px`, height: `${size}px` });
  const image = new ImageData(d, d);
  for (let i = 0; i < d; i++) for (let k = 0; k < d; k++) image.data.set([...mix(map, at(i, k)), 255], 4 * (i * d + k));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const height = top + size + 74, x = left + ((j + 0.5) / d) * size, y = top + ((j + 0.5) / d) * size;
  const what = shows === "factor" && f ? "factor V" : shows === "size" ? "size of H" : "correlations of H";
  const over = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `heat map: ${what}, ${d} by ${d}; ${view.names[view.perm[j]]} is marked` },
    textAt(0, 14, what[0].toUpperCase() + what.slice(1), "lb-t-title"));
  over.append(shows === "factor"                 // the row that feedback reads, or the column and row of H
    ? svg("path", { d: `M${x},${y}H${left + size}`, class: "lb-cross" }) : svg("path", { d: `M${left},${y}H${left + size}M${x},${top}V${top + size}`, class: "lb-cross" }));
  over.append(svg("circle", { cx: x, cy: y, r: 5, class: "lb-cross" }));
  for (const t of [1, Math.round(d / 2), d]) over.append(textAt(left + ((t - 0.5) / d) * size, top + size + 16, String(t), "lb-t lb-mid"), textAt(left - 6, top + ((t - 0.5) / d) * size + 4, String(t), "lb-t lb-end"));
  over.append(textAt(left + size / 2, top + size + 32, "place in the order (click to choose)", "lb-t lb-mid"));
  const stops = map.map((c, n) => svg("stop", { offset: n / (map.length - 1), "stop-color": `rgb(${c})` })), id = `lb-${shows}-${Math.round(performance.now() * 1000)}`;
  over.append(svg("defs", {}, svg("linearGradient", { id }, ...stops)), svg("rect", { x: left + size * 0.25, y: top + size + 44, width: size / 2, height: 9, fill: `url(#${id})` }),
    textAt(left + size * 0.25 - 6, top + size + 53, ends[0], "lb-t lb-end"), textAt(left + size * 0.75 + 6, top + size + 53, ends[1]));
  over.append(svg("rect", { x: left, y: top, width: size, height: size, fill: "transparent", class: "lb-click",
    onclick: (ev) => { const b = ev.target.getBoundingClientRect(); choose(Math.max(0, Math.min(d - 1, Math.floor(((ev.clientX - b.left) / b.width) * d)))); } }));
  host.replaceChildren(canvas, over);
}

function spectrumPlot({ eig, lifted, condition }, width) {
  const d = eig.length, top = lifted[d - 1] * 2, floor = Math.max(Math.min(...[...eig, ...lifted].filter((e) => e > 0)), top * 1e-9) / 2;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 214, title: "Eigenvalues of H", margin: { left: 46, right: 18 }, x: { range: [1, d], label: "eigenvalue, largest first", ticks: [1, Math.round(d / 2), d] },
    y: { range: [floor, top], log: true, format: power }, alt: `spectrum of ${d} eigenvalues; condition number ${big(condition)}` });
  const points = (v) => Array.from(v).reverse().map((e, i) => [sx(i + 1), sy(Math.max(floor, e))]);
  layer.append(svg("path", { d: linePath(points(eig)), class: "lb-raw" }), svg("path", { d: linePath(points(lifted)), class: "lb-cond" }));
  const x = box.x0 + (box.x1 - box.x0) * 0.62, i = Math.round(d * 0.38);
  layer.append(textAt(x, sy(Math.max(floor, lifted[i])) - 10, "damped", "lb-t-blue lb-halo"), textAt(x - 8, Math.min(box.y0 - 6, sy(Math.max(floor, eig[i])) + 20), "as measured (dashed)", "lb-t-red lb-end lb-halo"));
  return node;
}

function costPlot({ diag, f, j }, d, width) {
  const values = [...diag, ...f.D], range = [Math.min(...values) / 4, Math.max(...values) * 2.5];
  const { root: node, layer, box, sx, sy } = plot({ width, height: 214, title: "Cost of an error, by place in the order", margin: { left: 46, right: 18 }, x: { range: [1, d], label: "place in the order", ticks: [1, Math.round(d / 2), d] },
    y: { range, log: true, format: power }, alt: `cost of column ${j + 1}: ${digits(diag[j])} without feedback, ${digits(f.D[j])} with it` });
  const up = Array.from(diag, (v, i) => [sx(i + 1), sy(v)]), down = Array.from(f.D, (v, i) => [sx(i + 1), sy(v)]);
  layer.append(svg("path", { d: `${linePath(up)}${linePath([...down].reverse()).replace("M", "L")}Z`, class: "lb-gain" }),
    svg("path", { d: linePath(up), class: "lb-raw lb-thin" }), svg("path", { d: linePath(down), class: "lb-cond lb-thin" }));
  layer.append(svg("line", { x1: sx(j + 1), x2: sx(j + 1), y1: box.y0, y2: box.y1, class: "lb-cross" }), dotAt(sx(j + 1), sy(diag[j]), 4, "lb-here"), dotAt(sx(j + 1), sy(f.D[j]), 4, "lb-here"));
  layer.append(textAt(box.x1, box.y1 + 8, "without feedback (dashed)", "lb-t-red lb-end lb-halo"), textAt(box.x0 + 6, box.y0 - 8, "with feedback", "lb-t-blue lb-halo"));
  return node;
}

function spreadPlot({ f, j, perm, names }, d, width) {
  const row = Array.from({ length: d }, (_, k) => (k > j ? f.V[j * d + k] : 0)), most = Math.max(0.02, ...row.map(Math.abs)) * 1.3;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 216, title: width < 480 ? `Moves caused by an error in ${names[perm[j]]}` : `An error of 1 in ${names[perm[j]]} moves the target of every later column`, margin: { left: 46, right: 12 },
    x: { range: [0.5, d + 0.5], label: "place in the order", ticks: [1, Math.round(d / 4), Math.round(d / 2), Math.round((3 * d) / 4), d] }, y: { range: [-most, most] }, alt: `feedback of ${names[perm[j]]}: largest move ${digits(Math.max(...row.map(Math.abs)))}` });
  layer.append(svg("rect", { x: box.x0, width: Math.max(0, sx(j + 0.5) - box.x0), y: box.y1, height: box.y0 - box.y1, class: "lb-band-done" }));
  if (sx(j + 1) - box.x0 > 130) layer.append(textAt((box.x0 + sx(j + 1)) / 2, box.y1 + 14, "already rounded", "lb-t lb-mid"));
  const step = (box.x1 - box.x0) / d, thick = Math.max(1, Math.min(18, step - 0.6));
  row.forEach((v, k) => { if (k > j) layer.append(svg("rect", { x: sx(k + 1) - thick / 2, width: thick, y: Math.min(sy(0), sy(v)), height: Math.abs(sy(v) - sy(0)), class: v > 0 ? "lb-pos" : "lb-neg" })); });
  layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(0), y2: sy(0), class: "lb-axis" }), svg("line", { x1: sx(j + 1), x2: sx(j + 1), y1: box.y0, y2: box.y1, class: "lb-cross" }));
  const strongest = row.map((v, k) => [Math.abs(v), k]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([v]) => v > 0.3 * most);
  const taken = [];
  for (const [, k] of strongest) {
    if (taken.some((t) => Math.abs(sx(t + 1) - sx(k + 1)) < 90)) continue;
    taken.push(k);
    layer.append(textAt(Math.min(sx(k + 1), box.x1 - 34), sy(row[k]) + (row[k] > 0 ? -5 : 15), `${names[perm[k]]} ${row[k] > 0 ? "+" : "−"}${digits(Math.abs(row[k]), 2)}`, "lb-t lb-mid lb-halo"));
  }
  return node;
}

export default { render };
