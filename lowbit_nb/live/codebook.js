// The codebook explorer: where k-means takes the vectors of a codebook, what importance and a second stage change, what it costs.
import { bitsOf, coded, countsOf, entropyOf, errorsOf, leftOf, lloyd, nearestOf } from "./lloyd.js";
import { mapPlot, reachOf, diamond, LOOKS } from "./cells.js";
import { chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const LARGE = [4096, 4096], END = 1e6, PACE = 700;

function render({ model, el: host }) {
  const cut = cutOf(model), { v, n, x, sizes, importance, shape } = cut;
  const node = root("codebook", "Codebook explorer", model.get("about"),
    `Where do the vectors of a codebook go, ${importance ? "what do importance weights change, " : ""}what does a second codebook buy, and what does it cost in bits?`);
  let now = null, hover = null, maps = [], timer = null;
  const set = (change) => { Object.entries(change).forEach(([key, value_]) => model.set(key, value_)); model.save_changes(); update(); };
  const restart = (change) => { pause(); set({ ...change, step: END }); };
  const go = (step) => { pause(); set({ step: Math.max(0, step) }); };
  const control = {
    k: slider({ label: "Codebook", min: 0, max: sizes.length - 1, text: (i) => `k = ${sizes[i]}`, oninput: (i) => restart({ k: sizes[i] }) }),
    second: select({ label: "Second codebook", options: [[0, "none"], ...sizes.map((k) => [k, `${k} vectors`])], onchange: (k) => restart({ second: Number(k) }) }),
    weighted: importance && select({ label: "k-means counts", options: [["false", "all vectors alike"], ["true", "by importance"]], onchange: (w) => restart({ weighted: w === "true" }) }),
    step: slider({ label: "Step", min: 0, max: 1, text: (s) => stepWord(now, s), oninput: go }),
    chosen: slider({ label: "Vector", min: 0, max: n - 1, text: (p) => placeWord(cut, p), oninput: (p) => set({ chosen: p }) }),
  };
  const axes = Array.from({ length: v }, (_, c) => [c, `number ${c}`]);
  if (v > 2) for (const [key, label] of [["across", "Across"], ["upwards", "Upwards"]]) control[key] = select({ label, options: axes, onchange: (c) => set({ [key]: Number(c) }) });
  const jumps = chips("k-means", [["start", () => go(0)], ["one step", () => go(now.step < now.last ? now.step + 1 : 0)], ["play", () => toggle()], ["end", () => go(END)],
    ["worst vector", () => set({ chosen: now.worst })], ...(importance ? [["most important vector", () => set({ chosen: importance.indexOf(Math.max(...importance)) })]] : [])]), play = jumps.querySelectorAll("button")[2];
  const tiles = { mse: tile("Mean squared error"), weighted: importance && tile("Weighted by importance"), bits: tile("Bits a weight"), entropy: tile("An index carries") };
  const shown = Object.values(tiles).filter(Boolean), places = [el("div"), el("div")], line = el("p", { class: "lb-note lb-c-line", "aria-live": "polite" });
  const steps = el("div"), curve = el("div"), usage = el("div"), table = el("div", { class: "lb-c-scroll", tabindex: "0", role: "region", "aria-label": "codebooks compared" }), readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: `lb-controls lb-c-controls${importance ? "" : " lb-c-plain"}` }, ...Object.values(control).filter(Boolean).map((c) => c.node)), jumps, el("div", { class: `lb-tiles lb-${shown.length}` }, ...shown.map((t) => t.node)),
    el("div", { class: "lb-row lb-two" }, ...places), keysOf(cut), line, el("div", { class: "lb-row lb-three" }, steps, curve, usage), table, readout);

  function pause() { clearInterval(timer); timer = null; play.textContent = "play"; readout.setAttribute("aria-live", "polite"); }

  function toggle() {
    if (timer) return pause();
    if (now.step >= now.last) set({ step: 0 });
    timer = setInterval(() => { if (!node.isConnected || now.step >= now.last) return pause(); set({ step: now.step + 1 }); if (now.step >= now.last) pause(); }, PACE);
    play.textContent = "pause";
    readout.setAttribute("aria-live", "off");
  }

  function update() {
    now = momentOf(cut, { k: model.get("k"), second: model.get("second"), weighted: model.get("weighted") && !!importance, step: model.get("step") });
    Object.assign(now, { chosen: Math.min(n - 1, model.get("chosen")), at: [model.get("across"), model.get("upwards")].map((c) => Math.min(v - 1, c)) });
    hover = null;
    control.k.update(sizes.indexOf(now.k)); control.second.update(now.second); control.weighted?.update(now.weighted);
    control.step.update(now.step, { max: now.last }); control.chosen.update(now.chosen); control.across?.update(now.at[0]); control.upwards?.update(now.at[1]);
    const e = now.errors, other = othersError(cut, now.stages), here = now.bits, large = bitsOf(LARGE, v, now.k, now.stages[1] ? now.second : 0);
    tiles.mse.update(percent(e.share), `of the mean square, ${small(e.mse)}`);
    tiles.weighted?.update(percent(e.weightedShare), `of the weighted mean square, ${small(e.weighted)}`);
    tiles.bits.update(digits(here.total), `${digits(here.codes)} indices, ${digits(here.books)} codebooks in this layer; ${digits(large.total)} in one of 4096 × 4096`);
    tiles.entropy.update(now.entropy.map((h) => digits(h)).join(" + "), `bits, of ${now.sizes.map((k) => Math.log2(k)).join(" + ")} that it is stored in`);
    readout.textContent = `${stepWord(now, now.step, true)}: error ${percent(e.share)} of the mean square${importance ? `, weighted ${percent(e.weightedShare)}` : ""}; ${digits(here.total)} bits a weight here, ${digits(large.total)} in a layer of 4096 × 4096; `.replaceAll(" %", "\u00a0%")
      + `indices carry ${now.entropy.map((h) => digits(h)).join(" + ")} of ${now.sizes.map((k) => Math.log2(k)).join(" + ")} bits. Errors are of the ${n} vectors learned from, ${digits(n / now.k)} for each codebook vector${other === null ? "" : `; of ${cut.others.weight.length} others of the layer the ${importance ? "weighted " : ""}error is ${digits(other)} %`}.`;
    Object.assign(node.dataset, { step: now.step, last: now.last, mse: e.mse, share: e.share, weighted: e.weighted, weightedShare: e.weightedShare, bits: here.total, large: large.total, other: other ?? "", entropy: now.entropy.join(","), counts: now.counts.join(",") });
    draw();
    about(now.chosen);
  }

  function about(p) {                            // the vector under the pointer, or the chosen one
    line.textContent = tell(cut, now, p);
    maps.forEach((map) => map.highlight(p));
    Object.assign(node.dataset, { place: p, index: now.stages.map((s) => s.idx[p]).join(","), error: squareOf(now.left, v, p) });
  }

  function draw() {
    if (!node.clientWidth || !now) return;
    const [a, b] = now.at, labels = [`number ${a} of a vector`, `number ${b}`], radii = radiiOf(cut), [one, two] = now.stages, first = now.first.path;
    const hooks = { choose: (p) => set({ chosen: p }), point: (p) => { if (p !== hover) { hover = p; about(p < 0 ? now.chosen : p); } } }, common = { labels, v, at: now.at, radii, ...hooks };
    maps = [mapPlot({ ...common, width: places[0].clientWidth, title: `${n} vectors and the codebook`, alt: `${n} vectors, ${now.k} codebook vectors after step ${one.at}; error ${percent(errorsOf(x, one.left, v, cut.weight).share)}`, x, reach: reachOf(x), idx: one.idx, C: one.S, path: first.slice(0, one.at + 1) }),
      mapPlot({ ...common, width: places[1].clientWidth, title: two ? "Left over, and the second codebook" : "What is left over of them", alt: `leftovers of the first codebook${two ? `, ${now.second} vectors of the second after step ${two.at}` : ""}`, x: one.left, reach: reachOf(now.begin), idx: two?.idx, C: two?.S, path: two && now.next.path.slice(0, two.at + 1) })];
    places.forEach((place, i) => place.replaceChildren(maps[i].node));
    steps.replaceChildren(stepsPlot(cut, now, steps.clientWidth, go));
    curve.replaceChildren(curvePlot(cut, now, curve.clientWidth, restart));
    usage.replaceChildren(usagePlot(now, n, usage.clientWidth));
    table.replaceChildren(waysTable(cut, now));
  }

  host.append(node);
  update();
  const watched = ["k", "second", "weighted", "step", "chosen", "across", "upwards"].map((key) => `change:${key}`);
  watched.forEach((key) => model.on(key, update));
  const stop = followWidth(node, () => { draw(); about(now.chosen); });
  return () => { stop(); pause(); watched.forEach((key) => model.off(key, update)); };
}

function cutOf(model) {
  const v = model.get("v"), x = Float64Array.from(floats(model.get("points"))), n = x.length / v, given = floats(model.get("weights")), ones = new Float64Array(n).fill(1), known = new Map();
  const importance = given && Float64Array.from(given), memo = (key, make) => { if (!known.has(key)) known.set(key, make()); return known.get(key); };
  const tried = floats(model.get("others")), theirs = floats(model.get("other_weights"));
  const others = tried && { x: Float64Array.from(tried), weight: theirs ? Float64Array.from(theirs) : new Float64Array(tried.length / v).fill(1) };
  const cut = { v, n, x, others, importance, weight: importance ?? ones, order: model.get("order"), places: floats(model.get("places")), shape: model.get("shape"), sizes: model.get("sizes") };
  const learn = (points, k, weighted) => { const run = lloyd(points, v, weighted ? importance : ones, cut.order, k), states = []; return { ...run, k, points, state: (t) => (states[t] ??= { ...coded(points, v, run.path[t]), at: t }) }; };
  cut.one = (k, weighted) => memo(`${k} ${weighted}`, () => learn(x, k, weighted));
  cut.other = (k, second, weighted) => memo(`other ${k} ${second} ${weighted}`, () => othersError(cut, [endOf(cut.one(k, weighted)), ...(second ? [endOf(cut.two(k, second, weighted))] : [])]));
  cut.two = (k, second, weighted) => memo(`${k} ${second} ${weighted}`, () => learn(endOf(cut.one(k, weighted)).left, second, weighted));
  return cut;
}

const endOf = (run) => run.state(run.path.length - 1);

// Both stages at one step: the second begins when the first is done.
function momentOf(cut, { k, second, weighted, step: wanted }) {
  const first = cut.one(k, weighted), next = second ? cut.two(k, second, weighted) : null, turn = first.path.length, last = turn - 1 + (next ? next.path.length : 0), step = Math.max(0, Math.min(last, wanted));
  const stages = [first.state(Math.min(step, turn - 1)), ...(step >= turn ? [next.state(step - turn)] : [])], sizes = stages.map((_, i) => [k, second][i]), left = stages.at(-1).left;
  const counts = stages.map((s, i) => countsOf(s.idx, sizes[i])), costs = Array.from({ length: cut.n }, (_, p) => cut.weight[p] * squareOf(left, cut.v, p));
  return { k, second, weighted, first, next, turn, last, step, stages, sizes, left, counts: counts.at(-1), begin: first.state(0).left, worst: costs.indexOf(Math.max(...costs)),
    errors: errorsOf(cut.x, left, cut.v, cut.weight), entropy: counts.map((c) => entropyOf(c, cut.n)), bits: bitsOf(cut.shape, cut.v, k, stages[1] ? second : 0) };
}

// The error of the vectors that no codebook was learned from, in percent; null if there are none.
function othersError({ others, v, importance }, stages) {
  if (!others) return null;
  const left = stages.reduce((t, { S }) => leftOf(t, v, S, nearestOf(t, v, S)), others.x);
  return shareOf({ importance }, errorsOf(others.x, left, v, others.weight));
}

const small = (t) => digits(t).replace("e-", "e−");
const squareOf = (left, v, p) => left.subarray(p * v, p * v + v).reduce((a, e) => a + e * e, 0);
const vector = (from, v, p) => `(${Array.from(from.subarray(p * v, p * v + v), (t) => (t < 0 ? "−" : "") + digits(Math.abs(t), v > 4 ? 2 : 3)).join(", ")})`;
const placeWord = ({ places, v }, p) => `rows ${places[2 * p]}–${places[2 * p] + v - 1}, input ${places[2 * p + 1]}`;
const radiiOf = ({ n, importance }) => Array.from({ length: n }, (_, p) => Math.min(9, Math.max(0.8, (n > 800 ? 1.7 : 2.4) * Math.sqrt(importance ? importance[p] : 1))));

function stepWord(now, step, full = false) {
  const { turn, next, k, second } = now ?? { turn: 1 }, two = step >= turn, [t, of] = two ? [step - turn, next.path.length - 1] : [step, turn - 1];
  return full ? `${two ? `Second codebook of ${second} vectors` : `Codebook of ${k} vectors`}, step ${t} of ${of}` : `${next ? (two ? "2nd: " : "1st: ") : ""}${t} of ${of}`;
}

function tell(cut, now, p) {
  const { v, importance } = cut, [one, two] = now.stages, square = squareOf(now.left, v, p), times = square / (now.errors.mse * v || 1);
  return `${placeWord(cut, p).replace("rows", "Rows")}: ${vector(cut.x, v, p)}${importance ? `, importance ${digits(importance[p])} times the mean` : ""}; codebook vector ${one.idx[p]}: ${vector(one.S, v, one.idx[p])}`
    + `${two ? `, second codebook, vector ${two.idx[p]}: ${vector(two.S, v, two.idx[p])}` : ""}; left over ${vector(now.left, v, p)}, squared error ${small(square)}, ${digits(times)} times the mean.`;
}

function keysOf({ v, importance }) {
  const key = (words, ...shapes) => el("span", { class: "lb-c-key" }, svg("svg", { width: 26, height: 14, viewBox: "0 0 26 14", "aria-hidden": "true" }, ...shapes), words);
  return el("p", { class: "lb-note lb-c-keys" }, key(importance ? "a vector of weights; area: importance" : "a vector of weights", dotAt(6, 7, 2, "lb-c-point"), dotAt(17, 7, importance ? 5 : 2, "lb-c-point")), key("codebook vector", svg("path", { d: diamond(13, 7, 5.5), class: "lb-c-centre" })),
    key("its way from the start", svg("path", { d: "M2,11L14,4L24,7", class: "lb-c-way" })), ...(v === 2 ? [key("border of its cell", svg("path", { d: "M2,12L24,2", class: "lb-c-cell" }))] : []), key("the vector told below", svg("circle", { cx: 13, cy: 7, r: 5.5, class: "lb-c-ring" })),
    ...(v > 2 ? [el("span", {}, `Two of ${v} numbers are drawn: the cells have ${v} dimensions and no exact picture here. Vectors with one codebook vector share a colour and a shape; ${LOOKS} looks repeat.`)] : []));
}

const shareOf = ({ importance }, e) => 100 * (importance ? e.weightedShare : e.share);
const format = (t) => String(Number(t.toPrecision(3)));

// The error after every step of both stages.
function stepsPlot(cut, now, width, go) {
  const { x, v, weight, importance } = cut, error = (run) => run.path.map((_, t) => shareOf(cut, errorsOf(x, run.state(t).left, v, weight)));
  const all = [...error(now.first), ...(now.next ? error(now.next) : [])], one = all.slice(0, now.turn), two = all.slice(now.turn), word = importance ? "Weighted error" : "Error";
  const { root: node, layer, box, sx, sy } = plot({ width, height: 240, title: `${word} by step, %`, margin: { left: 44, right: 14 }, x: { range: [0, Math.max(1, now.last)], label: now.next ? "step; second codebook after the first" : "step of k-means" }, y: { range: [0, 1.1 * Math.max(...all) || 1] }, alt: `${word} by step: from ${format(one[0])} to ${format(one.at(-1))} percent${two.length ? `, with the second codebook ${format(two.at(-1))}` : ""}` });
  layer.append(svg("path", { d: linePath(one.map((e, t) => [sx(t), sy(e)])), class: "lb-c-one" }), svg("path", { d: linePath(two.map((e, t) => [sx(t + now.turn), sy(e)])), class: "lb-c-two" }), dotAt(sx(now.step), sy(all[now.step]), 6.5, "lb-c-here"));
  if (two.length) layer.append(textAt(sx(now.turn), Math.min(box.y0 - 8, sy(two[0]) - 10), "second", "lb-t-orange lb-halo"));
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: (ev) => { const b = ev.target.getBoundingClientRect(); go(Math.round(((ev.clientX - b.left) / b.width) * now.last)); } }));
  return node;
}

// Error against bits: every size of one codebook, and this one with every size of a second.
function curvePlot(cut, now, width, choose) {
  const { sizes, shape, v, x, weight, importance } = cut, dot = (k, second, run) => ({ k, second, bits: bitsOf(shape, v, k, second).total, error: shareOf(cut, errorsOf(x, endOf(run).left, v, weight)), other: cut.other(k, second, now.weighted) });
  const one = sizes.map((k) => dot(k, 0, cut.one(k, now.weighted))), two = sizes.map((k) => dot(now.k, k, cut.two(now.k, k, now.weighted))), all = [...one, ...two], most = Math.max(...all.flatMap((d) => [d.error, d.other ?? 0])), least = Math.min(...all.map((d) => d.error).filter((e) => e > 0));
  const ticks = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100].filter((t) => t > least / 1.3 && t < most * 1.3), bits = all.map((d) => d.bits), word = importance ? "Weighted error" : "Error";
  const { root: node, layer, box, sx, sy } = plot({ width, height: 240, title: `${word} against bits, %`, margin: { left: 44, right: 14 }, x: { range: [Math.min(...bits) - 0.2, Math.max(...bits) + 0.2], label: "bits a weight, codebooks counted" }, y: { range: [least / 1.3, most * 1.3], log: true, ticks: ticks.length > 1 ? ticks : undefined, format }, alt: `${word} against bits in this layer: ${[...one, ...two].map((d) => `${d.second ? `${d.k} + ${d.second}` : d.k}: ${digits(d.bits)} bits, ${digits(d.error)} percent`).join("; ")}` });
  if (cut.others) for (const [dots, cls] of [[two, "lb-c-tried2"], [one, "lb-c-tried1"]]) layer.append(svg("path", { d: linePath(dots.map((d) => [sx(d.bits), sy(Math.max(d.other, least))])), class: cls }));
  const at = (d) => [sx(d.bits), sy(Math.max(d.error, least))];
  layer.append(svg("path", { d: linePath(two.map(at)), class: "lb-c-two" }), svg("path", { d: linePath(one.map(at)), class: "lb-c-one" }));
  for (const d of all) layer.append(d.second ? svg("rect", { x: at(d)[0] - 3.6, y: at(d)[1] - 3.6, width: 7.2, height: 7.2, class: "lb-c-dot2" }) : dotAt(...at(d), 4, "lb-c-dot1"));
  const here = all.find((d) => d.k === now.k && d.second === now.second);
  layer.append(svg("circle", { cx: at(here)[0], cy: at(here)[1], r: 8, class: "lb-c-ring" }), textAt(box.x1, box.y1 + 8, "one codebook ●", "lb-t-blue lb-end lb-halo"), textAt(box.x1, box.y1 + 24, `${now.k} and a second ■`, "lb-t-orange lb-end lb-halo"), ...(cut.others ? [textAt(box.x1, box.y1 + 40, "dots: other vectors", "lb-t lb-end lb-halo")] : []));
  node.append(svg("g", {}, ...all.map((d) => svg("circle", { cx: at(d)[0], cy: at(d)[1], r: 9, fill: "transparent", class: "lb-click", onclick: () => choose({ k: d.k, second: d.second }) }))));
  return node;
}

function usagePlot({ counts, stages, entropy, sizes }, n, width) {
  const sorted = [...counts].sort((a, b) => b - a), which = stages.length > 1 ? "second" : "codebook", none = sorted.filter((c) => !c).length;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 240, title: stages.length > 1 ? "Use of the second codebook" : "Use of the codebook", margin: { left: 44, right: 14 }, x: { range: [0, sorted.length], label: "codebook vector, most used first" }, y: { range: [0, sorted[0] * 1.1], label: "" }, alt: `vectors of weights for each ${which} vector, from ${sorted[0]} to ${sorted.at(-1)}; ${none} unused; entropy ${digits(entropy.at(-1))} of ${Math.log2(sizes.at(-1))} bits` });
  const step = (box.x1 - box.x0) / sorted.length;
  sorted.forEach((c, i) => layer.append(svg("rect", { x: sx(i).toFixed(2), width: Math.max(0.6, step - (step > 3 ? 0.8 : 0.1)).toFixed(2), y: sy(c).toFixed(1), height: (box.y0 - sy(c)).toFixed(1), class: "lb-c-bar" })));
  layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(n / sorted.length), y2: sy(n / sorted.length), class: "lb-c-even" }), textAt(box.x1, sy(n / sorted.length) - 6, "all alike: every bit is used", "lb-t lb-end lb-halo"));
  return node;
}

// The end of k-means in each way, and one large codebook with as many index bits as two.
function waysTable(cut, now) {
  const { v, x, weight, importance, shape, sizes } = cut, { k, second } = now, asked = [[k, 0], ...(second ? [[k, second]] : []), ...(second && sizes.includes(k * second) ? [[k * second, 0]] : [])];
  const rows = asked.flatMap(([a, b]) => [false, ...(importance ? [true] : [])].map((w) => ({ a, b, w, e: errorsOf(x, endOf(b ? cut.two(a, b, w) : cut.one(a, w)).left, v, weight) })));
  const cells = ({ a, b, w, e }) => [`${b ? `${a} + ${b}` : a} vectors${importance ? `, ${w ? "by importance" : "all alike"}` : ""}`, percent(e.share), ...(importance ? [percent(e.weightedShare)] : []), ...(cut.others ? [percent(cut.other(a, b, w) / 100)] : []), digits(bitsOf(shape, v, a, b).total), digits(bitsOf(LARGE, v, a, b).total)];
  const line = (words, tag, first) => words.map((word, i) => el(i ? tag : "th", { scope: i ? first : first ?? "row" }, word)), mine = (r) => r.a === k && r.b === second && r.w === now.weighted;
  return el("table", { class: "lb-c-table" }, el("caption", {}, "At the end of k-means; the row shown above is marked"), el("thead", {}, el("tr", {}, ...line(["codebook", "error", ...(importance ? ["weighted error"] : []), ...(cut.others ? [importance ? "weighted, of others" : "of others"] : []), `bits a weight, ${shape[0]} × ${shape[1]}`, "4096 × 4096"], "th", "col"))),
    el("tbody", {}, ...rows.map((r) => el("tr", mine(r) ? { class: "lb-c-row", "aria-current": "true" } : {}, ...line(cells(r).map((word, i) => (i || !mine(r) ? word : `▸ ${word}`)), "td", null)))));
}

export default { render };
