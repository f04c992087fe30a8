// The mask explorer: which weights of a layer deserve more than a sign, what it costs to say which, and what that buys.
// Mask, codes and error of the chosen setting are worked out here; the curves and the table come from the package.
import { fitGroup, code, value } from "./math.js";
import { digits, el, floats, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const SHARES = [0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1];
const KINDS = [["element", "single weights"], ["column", "columns of each block"], ["channel", "input channels"]];
const METRICS = { weight: ["|w|", "|w|"], absmax: ["largest |x|", "max |x|"], rms: ["root mean square of x", "rms x"], output: ["w² times mean x²", "w² x²"], obs: ["sensitivity w² / U²", "w² / U²"] };
const VIEWS = [["mask", "what is salient"], ["stored", "the layer as stored"], ["error", "squared error"]];
const PARTS = [["codes", "codes"], ["map", "mask"], ["scales", "scales"]];
const PUOR = [[84, 39, 136], [153, 142, 195], [216, 218, 235], [247, 247, 247], [254, 224, 182], [241, 163, 64], [179, 88, 6]];
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];

function render({ model, el: host }) {
  const layer = layerOf(model), { metrics, widths, errorName } = layer;
  const node = root("mask", "Mask explorer", model.get("about"),
    "What does a mask cost, and which mask is worth it? Salient weights keep several bits on a grid of their row; all others keep a sign, with a mean and a level a row.");
  let now = null;
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const control = {
    kind: select({ label: "Mask of", options: KINDS, onchange: (v) => set({ kind: v }) }),
    metric: select({ label: "Salient by", options: metrics.map((m) => [m, METRICS[m][0]]), onchange: (v) => set({ metric: v }) }),
    share: slider({ label: "Salient share", min: 0, max: SHARES.length - 1, text: (k) => percent(SHARES[k]), oninput: (k) => set({ chosen: k }) }),
    bits: select({ label: "Bits of a salient weight", options: widths.map((b) => [b, `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) }),
    view: select({ label: "Picture shows", options: VIEWS, onchange: (v) => set({ view: v }) }),
  };
  const tiles = { bits: tile("Bits a weight, all counted"), error: tile(`${errorName} of the layer`.replace(/^./, (c) => c.toUpperCase())), map: tile("The mask alone"), salient: tile("Salient") };
  const stack = el("div", { class: "lb-stack", "aria-hidden": "true" }, ...PARTS.map(([c]) => el("i", { class: `lb-m-${c}` })));
  tiles.bits.node.insertBefore(stack, tiles.bits.note);
  const picture = el("div", { class: "lb-m-picture lb-main" }), curve = el("div"), table = el("div"), overlap = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-m-controls" }, ...Object.values(control).map((c) => c.node)), el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)),
    picture, el("div", { class: "lb-row lb-two" }, curve, el("div", {}, table, overlap)), readout);

  function update() {
    const kind = model.get("kind"), metric = model.get("metric"), k = Math.max(0, Math.min(SHARES.length - 1, model.get("chosen"))), bits = model.get("bits");
    const salient = layer.maskOf(kind, metric, SHARES[k]), W_hat = coded(layer, salient, bits), error = layer.errorOf(W_hat), size = sizeOf(layer, kind, salient.share, bits), parts = [size.codes, size.map, size.scales];
    const plain = layer.entry(bits, "channel", metric, 0), many = kind === "element" ? layer.rows * layer.d : layer.d, count = kind === "element" ? salient.count : salient.count / layer.rows;
    now = { kind, metric, k, bits, view: model.get("view"), salient, W_hat, error, size };
    control.kind.update(kind); control.metric.update(metric); control.share.update(k); control.bits.update(bits); control.view.update(now.view);
    tiles.bits.update(digits(size.total), "");
    [...stack.children].forEach((bar, i) => { bar.style.flexGrow = parts[i]; });
    tiles.bits.note.replaceChildren(...PARTS.map(([c, word], i) => el("span", { class: "lb-key" }, el("i", { class: `lb-m-${c}` }), `${word} ${digits(parts[i])}`)));
    tiles.error.update(percent(error), k ? `${percent(error / plain.error)} of that without a mask, for ${digits(size.total - plain.bits, 2)} more bits a weight` : "no mask: every weight is a sign");
    tiles.map.update(size.map ? `${digits(size.map)} bit${size.map === 1 ? "" : "s"}` : "0 bits", size.map ? `a weight, as a map; ${digits(size.list)} as ${kind === "channel" ? "a permutation" : "addresses"}, coded never below ${digits(size.least)}` : "all weights are alike: nothing to say");
    tiles.salient.update(`${count} of ${many}`, `${kind === "element" ? "weights" : "columns"} (${percent(salient.share)}); they hold ${percent(layer.held(salient.mask))} of the squared weights`);
    const best = KINDS.map(([other, word]) => ({ word, ...layer.best(other, size.total, bits) }));
    readout.textContent = `${KINDS.find(([v]) => v === kind)[1].replace(/^./, (c) => c.toUpperCase())} by ${METRICS[metric][0]}: ${percent(salient.share)} salient at ${bits} bits, ${digits(size.codes)} nominal and ${digits(size.total)} real bits a weight (mask ${digits(size.map)}, scales ${digits(size.scales)}), ${errorName} ${percent(error)}. `.replaceAll(" %", "\u00a0%")
      + `At no more than ${digits(size.total)} bits a weight the least error is, ${best.map((b) => `${b.word}: ${percent(b.error)} (${b.k ? `${percent(SHARES[b.k])} by ${METRICS[b.metric][1]}` : "no mask"})`).join("; ")}. Plain grids, ${layer.others.map((o) => `${o.name}: ${digits(o.bits)} bits a weight, ${percent(o.error)}`).join("; ")}.`.replaceAll(" %", "\u00a0%");
    table.replaceChildren(costTable(layer, now));
    overlap.replaceChildren(...(metrics.length > 1 ? [overlapTable(layer, now)] : []));
    Object.assign(node.dataset, { share: salient.share, count: salient.count, bits: size.total, nominal: size.codes, mask: size.map, list: size.list, least: size.least, error, by: salient.by.join(","), overlap: layer.overlaps(kind, SHARES[k]).flat().join(",") });
    draw();
  }

  function draw() {
    if (!node.clientWidth || !now) return;
    drawPicture(picture, layer, now);
    curve.replaceChildren(curvePlot(layer, now, curve.clientWidth, (k) => set({ chosen: k })), keys(layer));
  }

  host.append(node);
  update();
  const watched = ["kind", "metric", "chosen", "bits", "view"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, draw);
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const share3 = (x) => percent(x).replace(" ", "\u00a0");
const countOf = (share, n) => (share ? Math.min(n, Math.max(1, Math.floor(share * n + 0.5))) : 0);
const kindAt = (kind) => KINDS.findIndex(([v]) => v === kind);

function layerOf(model) {
  const [rows, d, dOut, dIn] = model.get("shape"), span = model.get("span"), W = floats(model.get("weights")), upper = floats(model.get("hessian")), metrics = model.get("metrics"), widths = model.get("widths");
  const inputs = floats(model.get("inputs")), table = floats(model.get("errors")), names = model.get("names"), known = new Map(), H = new Float64Array(d * d);
  for (let i = 0, at = 0; i < d; i++) for (let j = i; j < d; j++, at++) H[i * d + j] = H[j * d + i] = upper ? upper[at] : Number(i === j);
  const cached = (key, make) => { if (!known.has(key)) known.set(key, make()); return known.get(key); };
  const scores = (metric) => cached(metric, () => {
    const of = inputs.subarray(metrics.indexOf(metric) * d, (metrics.indexOf(metric) + 1) * d), own = ["absmax", "rms"].includes(metric);
    return Float64Array.from({ length: rows * d }, (_, i) => (own ? of[i % d] * of[i % d] : W[i] * W[i] * of[i % d]));
  });
  const maskOf = (kind, metric, share) => cached(`${kind} ${metric} ${share}`, () => {
    const s = scores(metric), single = kind === "element", units = single ? s : new Float64Array(d), wide = single ? rows * d : kind === "column" ? span : d, mask = new Uint8Array(rows * d), by = new Array(d).fill(0);
    if (!single) for (let i = 0; i < rows * d; i++) units[i % d] += s[i];
    for (let first = 0; first < units.length; first += wide) {
      const block = Array.from({ length: Math.min(wide, units.length - first) }, (_, i) => first + i).sort((a, b) => units[b] - units[a] || a - b);
      for (const u of block.slice(0, countOf(share, block.length))) if (single) mask[u] = 1; else for (let r = 0; r < rows; r++) mask[r * d + u] = 1;
    }
    mask.forEach((on, i) => { by[i % d] += on; });
    const count = by.reduce((a, b) => a + b, 0);
    return { mask, by, count, share: count / (rows * d) };
  });
  const shareOf = (kind, share) => {              // of a mask, without making it
    const wide = kind === "element" ? rows * d : kind === "column" ? span : d, all = kind === "element" ? rows * d : d;
    let count = 0;
    for (let first = 0; first < all; first += wide) count += countOf(share, Math.min(wide, all - first));
    return count / all;
  };
  const energy = quadraticForm(W, rows, d, H), errorOf = (W_hat) => quadraticForm(W.map((w, i) => w - W_hat[i]), rows, d, H) / energy;
  const layer = { rows, d, dOut, dIn, span, W, H, metrics, widths, names, maskOf, errorOf, others: model.get("others").map(([name, bits, error]) => ({ name, bits, error })), errorName: upper ? "output error" : "weight error" };
  layer.entry = (bits, kind, metric, k) => ({ k, metric, bits: sizeOf(layer, kind, shareOf(kind, SHARES[k]), bits).total, error: table[((widths.indexOf(bits) * KINDS.length + kindAt(kind)) * metrics.length + metrics.indexOf(metric)) * SHARES.length + k] });
  layer.best = (kind, most, bits) => metrics.flatMap((m) => SHARES.map((_, k) => layer.entry(bits, kind, m, k))).filter((e) => e.bits <= most + 1e-9).reduce((a, e) => (e.error < a.error ? e : a), { error: Infinity });
  layer.overlaps = (kind, share) => metrics.map((a) => metrics.map((b) => { const one = maskOf(kind, a, share), two = maskOf(kind, b, share).mask; return one.count ? one.mask.reduce((n, on, i) => n + (on & two[i]), 0) / one.count : 0; }));
  const all = W.reduce((a, w) => a + w * w, 0);
  layer.held = (mask) => W.reduce((a, w, i) => a + (mask[i] ? w * w : 0), 0) / all;
  return layer;
}

// Bits a weight of the whole layer, without padding: codes, scales, mask (a bit each; addresses; a number for each possible mask).
function sizeOf({ span, dOut, dIn }, kind, share, bits) {
  const codes = bits * share + 1 - share, scales = ((share < 1 ? 32 : 0) + (share > 0 ? 16 + bits : 0)) / dIn, none = share === 0 || share === 1, of = kind === "element" ? 1 : 1 / dOut;
  const map = none ? 0 : of, places = kind === "column" ? Math.min(span, dIn) : dIn, list = map * Math.ceil(Math.log2(places)) * (kind === "channel" ? 1 : share), n = kind === "element" ? places * dOut : places;
  return { codes, scales, map, list, least: (map * (logFactorial(n) - logFactorial(n * share) - logFactorial(n - n * share))) / n / Math.LN2, total: codes + map + scales };
}

function logFactorial(x) {                       // of any x >= 0, by Stirling's series far out
  let shift = 0, y = x + 1;
  for (; y < 12; y += 1) shift += Math.log(y);
  return (y - 0.5) * Math.log(y) - y + 0.5 * Math.log(2 * Math.PI) + 1 / (12 * y) - 1 / (360 * y ** 3) + 1 / (1260 * y ** 5) - shift;
}

// Salient weights on a grid of their row, the others a mean and a level of their row with a sign.
function coded({ rows, d, W }, { mask }, bits) {
  const out = new Float64Array(rows * d), kept = W.map((w, i) => (mask[i] ? w : 0)), setting = { bits, zero: "integer", clip: 1 };
  for (let r = 0; r < rows; r++) {
    const ids = Array.from({ length: d }, (_, j) => r * d + j), rest = ids.filter((i) => !mask[i]), n = Math.max(1, rest.length), { s, z } = fitGroup(kept, r * d, d, setting);
    const mu = rest.reduce((a, i) => a + W[i], 0) / n, a = rest.reduce((t, i) => t + Math.abs(W[i] - mu), 0) / n;
    for (const i of ids) out[i] = mask[i] ? value(code(W[i], s, z, bits, "integer"), s, z) : W[i] >= mu ? mu + a : mu - a;
  }
  return out;
}

function quadraticForm(E, rows, d, H) {
  let total = 0;
  for (let r = 0; r < rows; r++) for (let i = 0; i < d; i++) {
    const e = E[r * d + i];
    if (!e) continue;
    let t = H[i * d + i] * e;
    for (let j = 0; j < i; j++) t += 2 * H[i * d + j] * E[r * d + j];
    total += e * t;
  }
  return total;
}

function mix(map, t) {
  const at = Math.min(1, Math.max(0, t)) * (map.length - 1), i = Math.min(map.length - 2, Math.floor(at)), f = at - i;
  return map[i].map((c, n) => c + (map[i + 1][n] - c) * f);
}

// The weights as a picture; above it, how many of each input are salient.
function drawPicture(host, { rows, d, span, W, names }, now) {
  const width = Math.max(200, host.clientWidth), left = 38, top = 74, inner = width - left - 2, cell = inner / d, tall = Math.max(100, Math.min(260, rows * Math.max(3, Math.min(14, cell)))), { mask, by, count } = now.salient;
  const dark = (getComputedStyle(host).color.match(/[\d.]+/g) ?? [0]).slice(0, 3).reduce((a, c) => a + Number(c), 0) > 380, greys = dark ? [[52, 52, 52], [84, 84, 84]] : [[214, 214, 214], [184, 184, 184]];
  const spread = Math.sqrt(W.reduce((a, w) => a + w * w, 0) / W.length) * 3 || 1, of = now.view === "error" ? W.map((w, i) => (w - now.W_hat[i]) ** 2) : null, most = of ? spread * spread / 9 : 1;
  const canvas = el("canvas", { width: d, height: rows, "aria-hidden": "true" }), image = new ImageData(d, rows), diverging = (w) => mix(PUOR, 0.5 + (0.42 * w) / spread);
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${inner}px`, height: `${tall}px` });
  for (let i = 0; i < rows * d; i++) image.data.set([...(of ? mix(CIVIDIS, of[i] / most) : now.view === "stored" ? diverging(now.W_hat[i]) : mask[i] ? diverging(W[i]) : greys[Number(W[i] >= 0)]), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const height = top + tall + 44, x = (c) => left + (c + 0.5) * cell, title = { mask: "Salient weights in colour; the others as their sign, grey", stored: "The layer as stored", error: "Squared error of every weight" }[now.view];
  const over = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${rows} by ${d} weights, ${count} of them salient; ${by.filter((n) => n).length} inputs have a salient weight` });
  over.append(textAt(0, 14, width < 480 ? title.split(";")[0] : title, "lb-t-title"), textAt(0, 31, count ? `bars: salient ${width < 420 ? "by" : "weights of each"} input, at most ${Math.max(...by)} of ${rows}` : "no weight is salient"));
  by.forEach((n, c) => { if (n) over.append(svg("rect", { x: (x(c) - Math.max(1, cell * 0.8) / 2).toFixed(1), width: Math.max(1, cell * 0.8).toFixed(1), y: (top - 4 - (n / rows) * 32).toFixed(1), height: ((n / rows) * 32).toFixed(1), class: "lb-m-bar" })); });
  if (now.kind === "column") for (let c = span; c < d; c += span) over.append(svg("line", { x1: left + c * cell, x2: left + c * cell, y1: top - 38, y2: top + tall, class: "lb-m-cut" }));
  for (const r of [0, rows - 1]) over.append(textAt(left - 6, r ? top + tall - 2 : top + 10, String(names[d + r]), "lb-t lb-end"));
  if (tall > 60) over.append(textAt(left - 6, top + tall / 2 + 4, "row", "lb-t lb-end"));
  [...new Set([0, Math.floor(d / 4), Math.floor(d / 2), Math.floor((3 * d) / 4), d - 1])].forEach((c) => over.append(textAt(x(c), top + tall + 15, String(names[c]), `lb-t ${c === d - 1 ? "lb-end" : c ? "lb-mid" : ""}`)));
  over.append(textAt(left, top + tall + 36, "input"), ...scaleKey(width, top + tall + 27, of ? [CIVIDIS, ["0", `≥ ${digits(most, 2)}`], 0] : [PUOR, [`−${digits(spread, 2)}`, digits(spread, 2)], 0.08]));
  host.replaceChildren(canvas, over);
}

function scaleKey(width, y, [map, ends, cut]) {   // cut: how much of each end of the map is not used
  const id = `lb-m-${Math.round(Math.random() * 1e12)}`, w = Math.min(150, width * 0.25), x = width - w - 64;
  const stops = Array.from({ length: 9 }, (_, n) => svg("stop", { offset: n / 8, "stop-color": `rgb(${mix(map, cut + (n / 8) * (1 - 2 * cut)).map(Math.round)})` }));
  return [svg("defs", {}, svg("linearGradient", { id }, ...stops)), svg("rect", { x, y, width: w, height: 9, fill: `url(#${id})` }), textAt(x - 6, y + 9, ends[0], "lb-t lb-end"), textAt(x + w + 6, y + 9, ends[1])];
}

const SHAPES = [(x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`, (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, (x, y, r) => `M${x},${y - 1.4 * r}l${1.4 * r},${1.4 * r}l${-1.4 * r},${1.4 * r}l${-1.4 * r},${-1.4 * r}Z`];
const shapeAt = (i, x, y, r, cls) => svg("path", { d: SHAPES[i % SHAPES.length](Number(x.toFixed(1)), Number(y.toFixed(1)), r), class: cls });

function keys({ others }) {
  const sample = (i) => svg("svg", { width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true" }, i < 3 ? svg("line", { x1: 0, x2: 30, y1: 6, y2: 6, class: `lb-m-line${i}` }) : null, shapeAt(i < 3 ? i : 3, 15, 6, i < 3 ? 3.6 : 4, i < 3 ? `lb-m-dot${i}` : "lb-m-grid"));
  return el("p", { class: "lb-note lb-m-keys" }, ...[...KINDS.map(([, word]) => word), "plain grids of 2 and 3 bits"].map((word, i) => el("span", { class: "lb-m-key" }, sample(i), word)));
}

function curvePlot(layer, now, width, go) {
  const all = KINDS.map(([kind]) => SHARES.map((_, k) => layer.entry(now.bits, kind, now.metric, k))), most = Math.max(3.5, now.size.total + 0.3), shown = all.map((line) => line.filter((p) => p.bits <= most)), top = Math.max(...all.flat().map((p) => p.error), ...layer.others.map((o) => o.error));
  const { root: node, layer: into, sx, sy, box } = plot({ width, height: 300, title: `${layer.errorName.replace(/^./, (c) => c.toUpperCase())} against bits, by ${METRICS[now.metric][1]}`, margin: { left: 50, right: 16 }, x: { range: [0.95, most], label: "bits a weight, all counted (click a point)" }, y: { range: [0, top * 1.08], format: (v) => `${Number((100 * v).toPrecision(3))} %` },
    alt: `${layer.errorName} against bits a weight: ${KINDS.map(([, word], i) => `${word} ${digits(all[i][8].bits)} bits ${percent(all[i][8].error)} at ${percent(SHARES[8])} salient`).join("; ")}; ${layer.others.map((o) => `${o.name} ${digits(o.bits)} ${percent(o.error)}`).join("; ")}` });
  shown.forEach((line, i) => into.append(svg("path", { d: linePath(line.map((p) => [sx(p.bits), sy(p.error)])), class: `lb-m-line${i}` }), ...line.map((p) => shapeAt(i, sx(p.bits), sy(p.error), 3.2, `lb-m-dot${i}`))));
  layer.others.filter((o) => o.bits <= most).forEach((o) => into.append(shapeAt(3, sx(o.bits), sy(o.error), 4.4, "lb-m-grid"), textAt(sx(o.bits) + 8, sy(o.error) - 5, o.name.split(" grid")[0], "lb-t lb-halo")));
  const x = sx(now.size.total), y = sy(now.error), below = now.kind !== "element" && y < box.y0 - 34 && x > box.x0 + 104, right = below || x > box.x1 - 100;
  into.append(svg("circle", { cx: x, cy: y, r: 8.5, class: "lb-m-here" }), textAt(x + (below ? -10 : right ? -6 : 13), y + (below ? 18 : -13), `${percent(SHARES[now.k])} salient`, `lb-t-ink lb-halo${right ? " lb-end" : ""}`));
  node.append(svg("g", {}, ...all[kindAt(now.kind)].map((p, k) => (p.bits <= most ? svg("circle", { cx: sx(p.bits), cy: sy(p.error), r: 10, fill: "transparent", class: "lb-click", onclick: () => go(k) }) : ""))));
  return node;
}

const cellsOf = (tag, words, attrs = {}) => words.map((w) => el(tag, attrs, w));

function costTable(layer, now) {
  const share = SHARES[now.k];
  return el("table", { class: "lb-m-table" }, el("caption", {}, `${share3(share)} salient by ${METRICS[now.metric][1]}: bits to say which, all bits, error`),
    el("thead", {}, el("tr", {}, ...cellsOf("th", ["mask of", "map", "list", "coded ≥", "all", "error"], { scope: "col" }))),
    el("tbody", {}, ...KINDS.map(([kind, word]) => {
      const at = layer.entry(now.bits, kind, now.metric, now.k), size = sizeOf(layer, kind, layer.maskOf(kind, now.metric, share).share, now.bits);
      return el("tr", { class: kind === now.kind ? "lb-m-now" : null, "aria-current": kind === now.kind ? "true" : null }, el("th", { scope: "row" }, word), ...cellsOf("td", [...[size.map, size.list, size.least].map((b) => digits(b, 2)), digits(at.bits), share3(at.error)]));
    })));
}

function overlapTable({ metrics, overlaps }, now) {
  const short = metrics.map((m) => METRICS[m][1]);
  return el("table", { class: "lb-m-table lb-m-overlap" }, el("caption", {}, `Shared by two metrics; by chance ${share3(now.salient.share)}`),
    el("thead", {}, el("tr", {}, el("td"), ...cellsOf("th", short, { scope: "col" }))),
    el("tbody", {}, ...overlaps(now.kind, SHARES[now.k]).map((line, i) => el("tr", {}, el("th", { scope: "row" }, short[i]), ...line.map((v, j) => el("td", { style: `--lb-of: ${(30 * v).toFixed(1)}%`, class: i === j ? "lb-m-self" : null }, `${(100 * v).toFixed(0)}\u00a0%`))))));
}

export default { render };
