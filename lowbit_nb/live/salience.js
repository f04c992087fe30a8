// The salient-channel explorer: which inputs of a layer matter, and what a scale made of their size does to the error.
// Every error comes from a table that the package's own functions filled; only the scales are worked out here.
import { chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const WORDS = { x: "|x| (root mean square)", peak: "|x| (largest)", w: "|w| (root mean square)", H: "H (unpredicted part of x)" };
const MEANS = { x: "√ of H’s diagonal; AWQ’s measure here", peak: "largest value seen; SmoothQuant’s measure", w: "of the weights that read the channel", H: "1 / √ of the inverse’s diagonal: what the other inputs do not predict" };
const SHORT = { x: "|x| rms", peak: "|x| largest", w: "|w| rms", H: "H, unpredicted x" };
const STEPS = 20;                                // the exponent moves by 1/20, as in AWQ's search

function render({ model, el: host }) {
  const table = tableOf(model), { criteria, counts, d, top } = table;
  const node = root("salience", "Salient-channel explorer", model.get("about"),
    "Which input channels matter, and by what measure? And if the weights that read a channel are multiplied by its size to some power before rounding, does the output get better?");
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const go = (step) => set({ exponent: Math.max(0, Math.min(STEPS, step)) / STEPS });
  const control = {
    criterion: select({ label: "Importance by", options: criteria.map((c) => [c, WORDS[c]]), onchange: (v) => set({ criterion: v }) }),
    exponent: slider({ label: "Exponent", min: 0, max: STEPS, text: (r) => (r / STEPS).toFixed(2), oninput: go }),
    bits: select({ label: "Bits a code", options: model.get("widths").map((b) => [b, `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) }),
    keep: slider({ label: "Kept exact", min: 0, max: counts.length, text: (i) => (i ? `${counts[i - 1]} of ${d}` : "none"), oninput: (i) => set({ keep: i ? counts[i - 1] : 0 }) }),
    order: select({ label: "Channels drawn", options: [["sorted", "largest first"], ["in place", "in place"]], onchange: (v) => set({ order: v }) }),
  };
  control.criterion.node.classList.add("lb-s-first");
  const jumps = chips("Go to", [["no scaling", () => go(0)], ["best exponent", () => go(stateOf(table, model).best)], ["exponent 1", () => go(STEPS)]]);
  const tiles = { now: tile("Output error"), salient: tile("Error from the top 1 %"), best: tile("Best exponent"), kept: tile("Error if some are kept exact") };
  const strips = [el("div"), el("div")], curve = el("div"), split = el("div"), rows = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-s-controls" }, ...Object.values(control).map((c) => c.node)), jumps,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)),
    el("div", { class: "lb-row lb-s-strips" }, ...strips), el("div", { class: "lb-row lb-three" }, curve, split, rows), readout);

  function update() {
    const m = stateOf(table, model), at = m.exponent.toFixed(2), gain = (x) => (Math.abs(x - m.plain) < 1e-5 * m.plain ? "as without scaling" : `${tied(Math.abs(1 - x / m.plain))} ${x < m.plain ? "less" : "more"} than without scaling`);
    control.criterion.update(m.criterion); control.exponent.update(m.r); control.bits.update(m.bits); control.order.update(m.order);
    control.keep.update(counts.indexOf(m.keep) + 1);
    tiles.now.update(percent(m.error), m.r ? gain(m.error) : "of the output's mean square; no scaling");
    tiles.salient.update(percent(m.salient / m.error), `of the error, from ${top} of ${d} channels; without scaling ${tied(m.salientPlain / m.plain)}`);
    tiles.best.update((m.best / STEPS).toFixed(2), m.best ? `leaves ${tied(m.bestError)}, ${gain(m.bestError)}` : "no exponent up to 0.95 does better than no scaling");
    tiles.kept.update(m.keep ? percent(m.left[m.o]) : "–", m.keep ? `${m.keep} of ${d} channels; ${tied(m.chance)} by chance; costs ${digits(m.extra, 2)} more bits a weight` : "none is kept; move the slider");
    const names = m.names.slice(0, 3).join(", ") + (top > 3 ? " …" : "");
    const words = `By ${WORDS[m.criterion]} the top 1 % of ${d} channels are ${top === 1 ? "input" : "inputs"} ${names}; the largest is ${digits(m.ratio)} times the median. At ${m.bits} bits, groups of ${model.get("group")}, exponent ${at} (scales ${digits(m.least)} to ${digits(m.most)}) rounding has an output error of ${percent(m.error)}, `
      + `${m.r ? gain(m.error) + ` (${percent(m.plain)})` : "without scaling"}; ${percent(m.salient / m.error)} of it comes from these ${top}. ${m.best ? `The best exponent, ${(m.best / STEPS).toFixed(2)}, leaves ${percent(m.bestError)}.` : "No exponent does better than no scaling."}`
      + (m.keep ? ` With the ${m.keep} most important channels in full precision ${percent(m.left[m.o])} is left, against ${percent(m.chance)} with ${m.keep} chosen by chance, for ${digits(m.extra, 2)} more bits a weight.` : "");
    readout.textContent = words.replaceAll(" %", "\u00a0%");
    Object.assign(node.dataset, { error: m.error, plain: m.plain, salient: m.salient, best: m.best / STEPS, bestError: m.bestError, least: m.least, most: m.most, kept: m.keep ? m.left.join(",") : "", top: m.names.join(",") });
    draw(m);
  }

  function draw(m) {
    if (!node.clientWidth) return;
    strips[0].replaceChildren(sizesPlot(m, strips[0].clientWidth));
    strips[1].replaceChildren(scalesPlot(m, strips[1].clientWidth));
    curve.replaceChildren(errorPlot(m, curve.clientWidth, go), keys([["lb-s-total", "all channels"], m.keep ? ["lb-s-kept", `with ${m.keep} kept exact`] : null, ["lb-s-base", "no scaling"], ["lb-s-best", "best"]]));
    split.replaceChildren(splitPlot(m, split.clientWidth, go), keys([["lb-s-part", "top 1 %"], ["lb-s-rest", "the others"], ["lb-s-total", "all"]]));
    rows.replaceChildren(keptPlot(m, rows.clientWidth, (c) => set({ criterion: c })));
  }

  host.append(node);
  update();
  const watched = ["criterion", "exponent", "bits", "keep", "order"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, () => draw(stateOf(table, model)));
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const tied = (x) => percent(x).replace(" ", "\u00a0");    // number and sign stay on one line

function tableOf(model) {
  const [criteria, widths, counts] = ["criteria", "widths", "counts"].map((k) => model.get(k)), d = model.get("d"), n = STEPS + 1;
  const sizes = floats(model.get("sizes")), errors = floats(model.get("errors")), kept = floats(model.get("kept"));
  const cell = (c, b, r) => (c * widths.length + b) * n + r, half = errors.length / 2;
  return { criteria, widths, counts, d, top: model.get("top"), tried: model.get("tried"), size: (c) => sizes.subarray(c * d, (c + 1) * d),
    total: (c, b, r) => errors[cell(c, b, r)], salient: (c, b, r) => errors[half + cell(c, b, r)],
    kept: (c, b, r, o, k) => kept[(cell(c, b, r) * (criteria.length + 1) + o) * counts.length + k] };
}

// All that is shown at the present setting.
function stateOf(t, model) {
  const [criterion, bits, keep, order] = ["criterion", "bits", "keep", "order"].map((k) => model.get(k));
  const o = Math.max(0, t.criteria.indexOf(criterion)), b = Math.max(0, t.widths.indexOf(bits)), k = t.counts.indexOf(keep);
  const r = Math.max(0, Math.min(STEPS, Math.round(model.get("exponent") * STEPS))), steps = Array.from({ length: STEPS + 1 }, (_, i) => i);
  const size = t.size(o), perm = Array.from(size.keys()).sort((i, j) => size[j] - size[i] || i - j);
  const totals = steps.map((i) => t.total(o, b, i)), parts = steps.map((i) => t.salient(o, b, i));
  const best = steps.slice(0, t.tried).reduce((a, i) => (totals[i] < totals[a] ? i : a), 0), scales = scalesOf(size, r / STEPS);
  const left = k < 0 ? [] : [...t.criteria, ""].map((_, i) => t.kept(o, b, r, i, k)), median = size[perm[Math.floor(t.d / 2)]];
  return { ...t, criterion: t.criteria[o], o, bits: t.widths[b], keep: k < 0 ? 0 : keep, order, r, exponent: r / STEPS, steps, size, perm, totals, parts, best, scales, left, median,
    error: totals[r], plain: totals[0], salient: parts[r], salientPlain: parts[0], bestError: totals[best], chance: left.at(-1), ratio: size[perm[0]] / (median || size[perm[0]]),
    keptCurve: k < 0 ? null : steps.map((i) => t.kept(o, b, i, o, k)), extra: k < 0 ? 0 : ((16 - bits) * keep) / t.d, names: perm.slice(0, t.top), isTop: new Set(perm.slice(0, t.top)),
    least: Math.min(...scales), most: Math.max(...scales), widest: Math.max(...scalesOf(size, 1)) };
}

// AWQ's scale: size to a power, centred so that the largest and the smallest are each other's inverse.
function scalesOf(size, exponent) {
  const s = Array.from(size, (v) => Math.max(v ** exponent, 1e-4)), middle = Math.sqrt(Math.max(...s) * Math.min(...s));
  return s.map((v) => v / middle);
}

// The line under a title: what each colour is.
const legend = (...parts) => svg("text", { x: 0, y: 31, class: "lb-t" }, ...parts.map(([words, cls]) => svg("tspan", { class: cls ?? "lb-t" }, words)));
const triangle = (x, y, up) => svg("path", { d: `M${(x - 4.5).toFixed(1)},${y.toFixed(1)}h9l-4.5,${up ? -7 : 7}Z`, class: "lb-s-mark" });

// One bar a channel from a base line; the top 1 % stand out by colour and a mark.
function channelBars(m, { layer, box, sx, sy }, values, base) {
  const ids = m.order === "sorted" ? m.perm : Array.from(m.size.keys()), y0 = sy(base), step = (box.x1 - box.x0) / m.d;
  const edge = (i) => (box.x0 + i * step).toFixed(2);
  layer.append(svg("path", { d: `M${box.x0},${y0.toFixed(1)}${ids.map((id, i) => `V${sy(m.isTop.has(id) ? base : values[id]).toFixed(1)}H${edge(i + 1)}`).join("")}V${y0.toFixed(1)}Z`, class: "lb-s-other" }));
  ids.forEach((id, i) => {
    if (!m.isTop.has(id)) return;
    const y = sy(values[id]), width = Math.max(2, step), x = Math.max(box.x0, Math.min(box.x1 - width, box.x0 + (i + 0.5) * step - width / 2)), down = y > y0 + 0.5;
    layer.append(svg("rect", { x: x.toFixed(1), width: width.toFixed(1), y: Math.min(y, y0).toFixed(1), height: Math.max(1, Math.abs(y - y0)).toFixed(1), class: "lb-s-top" }), triangle(x + width / 2, down ? y + 10 : y - 10, down));
  });
  layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: y0, y2: y0, class: "lb-axis" }));
}

const channelAxis = (m) => ({ range: m.order === "sorted" ? [0.5, m.d + 0.5] : [-0.5, m.d - 0.5],
  ticks: m.order === "sorted" ? [1, ...[0.25, 0.5, 0.75, 1].map((f) => Math.round(f * m.d))] : [0, 0.25, 0.5, 0.75].map((f) => Math.round(f * m.d)).concat(m.d - 1) });

function sizesPlot(m, width) {
  const axes = plot({ width, height: 190, title: width < 420 ? `Importance: ${WORDS[m.criterion]}` : `Importance of each channel: ${WORDS[m.criterion]}`, margin: { left: 44, right: 10, top: 52, bottom: 24 },
    x: channelAxis(m), y: { range: [0, m.size[m.perm[0]]] }, alt: `importance of ${m.d} channels by ${WORDS[m.criterion]}: largest ${digits(m.size[m.perm[0]])} (input ${m.perm[0]}), median ${digits(m.median)}` });
  channelBars(m, axes, m.size, 0);
  const y = axes.sy(m.median);
  axes.layer.append(svg("line", { x1: axes.box.x0, x2: axes.box.x1, y1: y, y2: y, class: "lb-s-base" }));
  const room = width < 420 ? 3 : 8, shown = m.names.slice(0, room).join(", ") + (m.top > room ? " …" : "");
  axes.root.append(legend([`▼ top 1 %: ${m.top > 1 ? "inputs" : "input"} ${shown}`, "lb-t-orange"], [width < 420 ? "" : ` · largest = ${digits(m.ratio)} × median (dashed)`], [width < 860 ? "" : ` · ${MEANS[m.criterion]}`]));
  return axes.root;
}

function scalesPlot(m, width) {
  const most = Math.max(1.05, m.widest) * 1.25;  // the axis of exponent 1, so that scales are seen to grow
  const ticks = [0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.25, 2, 3, 10, 30, 100].filter((t) => t >= 1 / most && t <= most && (most < 2.6 ? t > 0.3 && t < 3 : ![0.5, 0.8, 1.25, 2].includes(t)));
  const axes = plot({ width, height: 206, title: `Scale = importance ^ ${m.exponent.toFixed(2)}, centred`, margin: { left: 44, right: 10, top: 46, bottom: 42 },
    x: { ...channelAxis(m), label: m.order === "sorted" ? "channels, most important first" : "input channel, in place" }, y: { range: [1 / most, most], log: true, ticks, format: (v) => `×${v}` },
    alt: `scale of ${m.d} channels at exponent ${m.exponent}: from ${digits(m.least)} to ${digits(m.most)}` });
  channelBars(m, axes, m.scales, 1);
  axes.root.append(legend([`${digits(m.least)} to ${digits(m.most)} · larger: rounded more finely`], [width < 860 ? "" : " than its neighbours, until its weights stretch the ruler that the group shares"]));
  return axes.root;
}

// What each line is, drawn as in the picture; a list that wraps.
function keys(items) {
  const sample = (cls) => (cls === "lb-s-best" ? svg("circle", { cx: 12, cy: 5, r: 4.5, class: cls }) : svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, class: cls }));
  return el("p", { class: "lb-note lb-s-keys" }, ...items.filter(Boolean).map(([cls, words]) => el("span", { class: "lb-s-key" }, svg("svg", { width: 24, height: 10, viewBox: "0 0 24 10", "aria-hidden": "true" }, sample(cls)), words)));
}

// Axes over the exponent with a line at the present one and a place to click at every step.
function exponentPlot(m, width, go, options) {
  const axes = plot({ width, height: 236, margin: { left: 54, right: 12, top: 30 }, x: { range: [0, 1], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], label: "exponent (click to choose)" }, ...options });
  const { layer, box, sx, sy } = axes, half = (sx(1) - sx(0)) / STEPS / 2, x = sx(m.exponent);
  const line = (values, cls) => layer.append(svg("path", { d: linePath(values.map((v, i) => [sx(i / STEPS), sy(v)])), class: cls })), now = (v, cls, r = 4.5) => layer.append(dotAt(x, sy(v), r, `lb-s-at ${cls}`));
  const across = (v) => layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(v), y2: sy(v), class: "lb-s-base" }));
  layer.append(svg("line", { x1: x, x2: x, y1: box.y0, y2: box.y1, class: "lb-s-now" }));
  axes.root.append(svg("g", {}, ...m.steps.map((i) => svg("rect", { x: (sx(i / STEPS) - half).toFixed(1), y: box.y1, width: (2 * half).toFixed(1), height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: () => go(i) }))));
  return { ...axes, line, now, across };
}

function errorPlot(m, width, go) {
  const all = [...m.totals, ...(m.keptCurve ?? [])], low = Math.min(...all), high = Math.max(...all), pad = Math.max(0.08 * (high - low), 1e-4 * high);
  const { root: node, layer, sx, sy, line, now, across } = exponentPlot(m, width, go, { title: "Output error at every exponent", y: { range: [Math.max(0, low - pad), high + pad], format: asPercent },
    alt: `output error by exponent: ${percent(m.plain)} at 0, ${percent(m.error)} at ${m.exponent}, ${percent(m.totals[STEPS])} at 1; least ${percent(m.bestError)} at ${m.best / STEPS}` });
  across(m.plain);
  if (m.keptCurve) line(m.keptCurve, "lb-s-kept");
  line(m.totals, "lb-s-total");
  layer.append(dotAt(sx(m.best / STEPS), sy(m.bestError), 6.5, "lb-s-best"));
  if (m.keptCurve) now(m.keptCurve[m.r], "lb-s-at-kept");
  now(m.error, "lb-s-at-total", m.r === m.best ? 4 : 5);
  return node;
}

// How the error of the few and of the many changes: what one side gains the other may lose.
function splitPlot(m, width, go) {
  const rest = m.totals.map((v, i) => v - m.parts[i]), of = (values) => values.map((v) => v / (values[0] || 1)), [few, many, all] = [m.parts, rest, m.totals].map(of);
  const every = [...few, ...many, ...all], axes = exponentPlot(m, width, go, { title: "Error, exponent 0 = 100 %", y: { range: [Math.min(0, ...every), Math.max(1.1, ...every) * 1.05], format: asPercent },
    alt: `error as a share of that at exponent 0: top 1 % ${percent(few[m.r])}, the others ${percent(many[m.r])}, all ${percent(all[m.r])}` });
  axes.across(1);
  axes.line(many, "lb-s-rest"); axes.line(few, "lb-s-part"); axes.line(all, "lb-s-total");
  axes.now(many[m.r], "lb-s-at-rest", 4); axes.now(all[m.r], "lb-s-at-total"); axes.now(few[m.r], "lb-s-at-part");
  return axes.root;
}

const asPercent = (v) => `${Number((100 * v).toPrecision(4))} %`;

// The error left when the k most important channels are exact, by each criterion and by chance.
function keptPlot(m, width, choose) {
  const names = [...m.criteria.map((c) => SHORT[c]), "by chance"], pitch = 36, top = 62, height = top + names.length * pitch + 26, left = 126, right = width - 62;
  const values = m.keep ? m.left : names.map(() => m.error), most = Math.max(m.error, ...values) * 1.02, x = (v) => left + Math.max(0, v / most) * (right - left);
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": m.keep ? `output error with ${m.keep} channels kept exact: ${names.map((n, i) => `${n} ${percent(values[i])}`).join(", ")}; none kept ${percent(m.error)}` : "no channel is kept exact" },
    textAt(0, 14, m.keep ? `Error left if ${m.keep} channel${m.keep > 1 ? "s stay" : " stays"} exact` : "No channel is kept exact", "lb-t-title"),
    legend([m.keep ? `chosen by …, at exponent ${m.exponent.toFixed(2)};` : "Move “Kept exact” to keep the most"]), textAt(0, 47, m.keep ? `${digits((100 * m.keep) / m.d)} % in 16 bits: +${digits(m.extra, 2)} bits a weight` : "important ones in full precision."));
  names.forEach((name, i) => {
    const y = top + i * pitch, chosen = i === m.o, row = svg("g", i < m.criteria.length ? { class: "lb-click", onclick: () => choose(m.criteria[i]) } : {});
    row.append(svg("rect", { x: 0, y, width, height: pitch, fill: "transparent" }), textAt(left - 10, y + 22, name, `${chosen ? "lb-t-ink" : "lb-t"} lb-end`), svg("rect", { x: left, y: y + 8, width: right - left, height: 20, rx: 3, class: "lb-s-track" }),
      svg("rect", { x: left, y: y + 8, width: Math.max(1, x(values[i]) - left).toFixed(1), height: 20, rx: 3, class: `lb-s-bar${chosen ? " lb-s-chosen" : ""}${i === m.criteria.length ? " lb-s-chance" : ""}` }), textAt(right + 7, y + 22, percent(values[i]), chosen ? "lb-t-ink" : "lb-t"));
    node.append(row);
  });
  const bottom = top + names.length * pitch;
  node.append(svg("line", { x1: x(m.error), x2: x(m.error), y1: top, y2: bottom + 4, class: "lb-s-base" }), textAt(x(m.error), bottom + 18, `none kept ${percent(m.error)}`, "lb-t lb-end"));
  return node;
}

export default { render };
