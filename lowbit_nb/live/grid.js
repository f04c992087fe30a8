// The grid explorer: where each weight of a group lands, what that costs in error, and what it costs in bits.
import { bitBudget, code, fitGroup, quantizeAll, value } from "./math.js";
import { calm, chips, digits, dotAt, el, floats, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const BITS = [1, 2, 3, 4, 8];
const CLIPS = Array.from({ length: 33 }, (_, i) => 20 + 2.5 * i);
const ZEROS = [["integer", "0 is a code"], ["real", "real number"], ["none", "symmetric"]];
const COLOURS = [["codes", "var(--lb-blue)"], ["scales", "var(--lb-orange)"], ["zeros", "var(--lb-green)"]];

function render({ model, el: host }) {
  const w = floats(model.get("weights")), importance = floats(model.get("importance"));
  const dIn = model.get("d_in"), sizes = model.get("group_sizes");
  const node = root("grid", "Grid explorer", model.get("about"),
    "What does one more bit, a smaller group, or a tighter clip buy, and at what price in bits?");
  const visited = [];
  let view = null, drawn = null, ghost = { key: "" };

  const state = () => ({ bits: model.get("bits"), group: model.get("group"), clip: model.get("clip"), zero: model.get("zero"),
    shown: Math.min(model.get("shown"), w.length / model.get("group") - 1), counted: model.get("counted") });
  const set = (change) => {
    if (change.group) change.shown = Math.floor(model.get("shown") * model.get("group") / change.group);  // stay at the same columns
    Object.entries(change).forEach(([k, v]) => model.set(k, v));
    model.save_changes();
    update();
  };

  const control = {
    bits: select({ label: "Bits a code", options: BITS.map((b) => [b, `${b} bit${b > 1 ? "s" : ""}, ${2 ** b} levels`]), onchange: (v) => set({ bits: Number(v) }) }),
    group: select({ label: "Group size", options: sizes.map((g) => [g, g === dIn ? `${g} (whole row)` : `${g} weights`]), onchange: (v) => set({ group: Number(v) }) }),
    zero: select({ label: "Zero point", options: ZEROS, onchange: (v) => set({ zero: v }) }),
    clip: slider({ label: "Clip", min: 20, max: 100, step: 2.5, text: (v) => `${v} % of range`, oninput: (v) => set({ clip: v }) }),
    shown: slider({ label: "Group shown", min: 0, max: 1, text: (v) => `${v + 1} of ${w.length / model.get("group")}`, oninput: (v) => set({ shown: v }) }),
  };
  if (importance) control.counted = select({ label: "Error counts", options: [["plain", "equally"], ["weighted", "by diag(H)"]], onchange: (v) => set({ counted: v }) });
  const tiles = { bits: tile("Bits per weight"), error: tile("Error of all groups"), group: tile("Error of the group shown") };
  const stack = el("div", { class: "lb-stack" }), keys = el("div", { class: "lb-note" });
  tiles.bits.note.replaceWith(stack, keys);
  const main = el("div", { class: "lb-main" }), panels = [el("div"), el("div"), el("div")];
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  const small = sizes.find((g) => g >= 16) ?? sizes[0];
  node.append(el("div", { class: "lb-controls" }, ...Object.values(control).map((c) => c.node)),
    chips("Try", [["2 bits, whole row", () => set({ bits: 2, group: dIn, clip: 100 })],
      [`2 bits, groups of ${small}`, () => set({ bits: 2, group: small, clip: 100 })],
      ["best clip here", () => set({ clip: view.clipCurve.best.clip })],
      ["zero point real", () => set({ zero: "real" })],
      ["4 bits, no clip", () => set({ bits: 4, clip: 100 })]]),
    el("div", { class: "lb-tiles lb-3" }, ...Object.values(tiles).map((t) => t.node)),
    main, el("div", { class: "lb-row lb-three" }, ...panels), readout);

  function compute() {
    const s = state(), setting = { bits: s.bits, zero: s.zero, clip: s.clip / 100 }, h = s.counted === "weighted" ? importance : null;
    const errorAt = (bits, g, clip) => quantizeAll(w, g, { bits, zero: s.zero, clip: clip / 100 }, h).error;
    const all = quantizeAll(w, s.group, setting, h), budget = bitBudget(s.group, s.bits, s.zero);
    const points = CLIPS.map((clip) => ({ clip, error: errorAt(s.bits, s.group, clip) }));
    const best = points.reduce((a, b) => (b.error < a.error ? b : a));
    const key = [s.clip, s.zero, s.counted].join();
    if (ghost.key !== key) ghost = { key, families: BITS.map((bits) => ({ bits, points: sizes.map((g) => ({ g, x: bitBudget(g, bits, s.zero).total, y: errorAt(bits, g, s.clip) })) })) };
    return { ...s, setting, all, budget, clipCurve: { points, best }, families: ghost.families, group: s.group, one: landing(w, s, setting) };
  }

  function update() {
    view = compute();
    const { bits, group, clip, zero, shown, counted, all, budget, one } = view;
    control.bits.update(bits); control.group.update(group); control.zero.update(zero); control.clip.update(clip);
    control.shown.update(shown, { max: w.length / group - 1 });
    control.counted?.update(counted);
    tiles.bits.update(digits(budget.total, 3));
    stack.replaceChildren(...COLOURS.map(([k, c]) => el("i", { style: `background:${c};flex-grow:${budget[k]}` })));
    keys.replaceChildren(...COLOURS.map(([k, c]) => el("span", { class: "lb-key" }, el("i", { style: `background:${c}` }), `${Number(budget[k].toPrecision(2))} ${k}`)));
    const unit = counted === "weighted" ? "of the squared weights, weighted by diag(H)" : "of the squared weights";
    tiles.error.update(percent(all.error), `${unit}; ${all.error > 0 ? digits(-10 * Math.log10(all.error), 3) : "∞"} dB`);
    tiles.group.update(percent(all.groups[shown]), `step ${digits(one.s, 3)}; ${zeroWords(zero, one.z)}; ${one.clipped} of ${group} clipped`);
    const past = { x: budget.total, y: all.error }, last = visited.at(-1);
    if (!last || last.x !== past.x || last.y !== past.y) visited.push(past);
    if (visited.length > 60) visited.shift();
    readout.textContent = `${bits} bits, groups of ${group}, clip ${clip} %: ${digits(budget.total, 3)} bits per weight, error ${percent(all.error)}. `
      + `Group ${shown + 1}: error ${percent(all.groups[shown])}, ${one.clipped} of ${group} weights clipped.`;
    node.dataset.error = all.error; node.dataset.bits = budget.total; node.dataset.group = all.groups[shown];
    draw();
  }

  function draw() {
    const width = main.clientWidth;
    if (!width || !view) return;
    const next = picture(view, width), from = drawn;
    drawn = next;
    if (from && from.dots.length === next.dots.length && from.width === width && !calm()) tween(from, next); else show(next, 1, next);
    panels[0].replaceChildren(groupPlot(view, panels[0].clientWidth, (k) => set({ shown: k })));
    panels[1].replaceChildren(clipPlot(view, panels[1].clientWidth));
    panels[2].replaceChildren(planePlot(view, visited, panels[2].clientWidth));
  }
  const show = (next, t, from) => main.replaceChildren(next.draw((i, k) => from.dots[i][k] + (next.dots[i][k] - from.dots[i][k]) * t));
  function tween(from, next) {
    const start = performance.now(), ease = (t) => 1 - (1 - t) ** 3;
    const step = (now) => {
      if (drawn !== next) return;                // a newer setting has taken over
      const t = Math.min(1, (now - start) / 220);
      show(next, ease(Math.max(0, t)), from);
      if (t < 1) requestAnimationFrame(step);
    };
    show(next, 0, from);
    requestAnimationFrame(step);
  }

  host.append(node);
  update();
  const names = ["bits", "group", "clip", "zero", "shown", "counted"].map((k) => `change:${k}`);
  names.forEach((name) => model.on(name, update));
  const stop = followWidth(node, draw);
  return () => { stop(); names.forEach((name) => model.off(name, update)); };
}

const zeroWords = (zero, z) => (zero === "integer" ? `0 is code ${z}` : zero === "real" ? `0 at ${digits(z, 3)} steps` : `0 is code ${z}, not stored`);

// Every weight of the group shown: its value, code, landing place, and whether it lies outside the clipped range.
function landing(w, { shown, group }, setting) {
  const start = shown * group, fit = fitGroup(w, start, group, setting), { s, z } = fit;
  const items = Array.from({ length: group }, (_, i) => {
    const x = w[start + i], q = code(x, s, z, setting.bits, setting.zero), to = value(q, s, z);
    return { x, q, to, out: Math.abs(x - to) > 0.5001 * s };
  });
  const levels = Array.from({ length: 2 ** setting.bits }, (_, q) => value(q, s, z));
  return { ...fit, items, levels, clipped: items.filter((it) => it.out).length };
}

function picture(view, width) {
  const { one, bits, group, shown } = view, height = 322, lane = { top: 34, base: 116, ruler: 214, floor: 278 };
  const values = one.items.map((it) => it.x);
  const lo = Math.min(...values, one.lo, one.levels[0]), hi = Math.max(...values, one.hi, one.levels.at(-1)), pad = (hi - lo) * 0.03 || 1;
  const alt = `${group} weights of group ${shown + 1} fall on ${2 ** bits} levels; ${one.clipped} are clipped`;
  const axes = { width, height, margin: { left: 12, right: 12, top: 28, bottom: 44 }, title: `Group ${shown + 1}: every weight falls to its nearest level; bars count the arrivals`,
    x: { range: [lo - pad, hi + pad], label: "value of the weight" }, y: { range: [0, 1], ticks: [] }, alt };
  const { sx } = plot(axes);
  const dots = stacked(one.items.map((it) => sx(it.x)), lane, group).map(([x, y], i) => [x, y, sx(one.items[i].to)]);
  return { width, dots, draw: (at) => drawLanding(plot(axes), view, lane, dots, at) };
}

function stacked(xs, lane, n) {                  // dots that would overlap pile up
  const r = n <= 64 ? 4.6 : n <= 128 ? 3.4 : 2.4, piles = new Map();
  const slot = xs.map((x) => { const k = Math.round(x / (2 * r + 0.6)), h = piles.get(k) ?? 0; piles.set(k, h + 1); return h; });
  const rise = Math.min(2 * r + 0.4, (lane.base - lane.top - 10) / Math.max(1, ...piles.values()));
  return xs.map((x, i) => [x, lane.base - r - slot[i] * rise]);
}

function drawLanding({ root: node, layer, box, sx }, view, lane, dots, at) {
  const { one, bits, group } = view, cls = (it) => (it.out ? "lb-clipped" : it.q % 2 ? "lb-odd" : "lb-even");
  const x0 = sx(one.clipLo), x1 = sx(one.clipHi), r = group <= 64 ? 4.2 : group <= 128 ? 3 : 2;
  layer.append(svg("rect", { x: x0, width: Math.max(0, x1 - x0), y: lane.top, height: lane.ruler - lane.top, class: "lb-band" }));
  for (const x of [x0, x1]) layer.append(svg("line", { x1: x, x2: x, y1: lane.top, y2: lane.ruler, class: "lb-edge" }));
  const xz = sx(0);
  if (xz > box.x0 && xz < box.x1) layer.append(svg("line", { x1: xz, x2: xz, y1: lane.top, y2: lane.floor, class: "lb-zero" }));
  const mid = (lane.base + lane.ruler) / 2;
  one.items.forEach((it, i) => layer.append(svg("path", { class: `lb-snap ${cls(it)}`,
    d: `M${at(i, 0).toFixed(1)},${lane.base}C${at(i, 0).toFixed(1)},${mid} ${at(i, 2).toFixed(1)},${mid} ${at(i, 2).toFixed(1)},${lane.ruler}` })));
  one.items.forEach((it, i) => layer.append(dotAt(at(i, 0), at(i, 1), r, cls(it))));
  layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: lane.ruler, y2: lane.ruler, class: "lb-axis" }));
  const counts = new Array(2 ** bits).fill(0);
  one.items.forEach((it) => { counts[it.q] += 1; });
  const gap = one.levels.length > 1 ? sx(one.levels[1]) - sx(one.levels[0]) : 20, wide = Math.max(1.5, Math.min(26, gap * 0.55));
  const every = gap > 20 ? 1 : 2 ** Math.ceil(Math.log2(26 / Math.max(0.1, gap))), tall = (lane.floor - lane.ruler - 20) / Math.max(...counts);
  one.levels.forEach((level, q) => {
    const x = sx(level);
    layer.append(svg("line", { x1: x, x2: x, y1: lane.ruler - 7, y2: lane.ruler + 4, class: "lb-level" }));
    layer.append(svg("rect", { x: x - wide / 2, width: wide, y: lane.ruler + 5, height: counts[q] * tall, class: q % 2 ? "lb-odd" : "lb-even" }));
    if (bits <= 4 && gap > 24 && counts[q]) layer.append(textAt(x + wide / 2 + 3, lane.ruler + 16, String(counts[q])));
    if (q % every === 0 || q === one.levels.length - 1 && every === 1) layer.append(textAt(x + 4, lane.ruler - 9, String(q), "lb-t-ink lb-halo"));
  });
  layer.append(textAt(box.x1, lane.top - 6, one.clipped ? `${one.clipped} clipped (dashed)` : "none clipped", `lb-end ${one.clipped ? "lb-t-red" : "lb-t"}`));
  return node;
}

function groupPlot({ all, shown, group }, width, choose) {
  const n = all.groups.length, top = Math.max(...all.groups) * 105 || 1;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 224, title: "Error of every group, %", x: { range: [0.5, n + 0.5], label: "group (click to show it)", ticks: n < 7 ? all.groups.reduce((t, _, i) => [...t, i + 1], []) : undefined },
    y: { range: [0, top] }, margin: { left: 40 }, alt: `relative error of ${n} groups; group ${shown + 1} has ${percent(all.groups[shown])}` });
  const step = (box.x1 - box.x0) / n, wide = Math.max(0.8, Math.min(26, step - 1));
  all.groups.forEach((e, k) => layer.append(svg("rect", { x: sx(k + 1) - (k === shown ? Math.max(3, wide) : wide) / 2, width: k === shown ? Math.max(3, wide) : wide,
    y: sy(100 * e), height: Math.max(0.5, box.y0 - sy(100 * e)), class: `lb-bar${k === shown ? " lb-on" : ""}` })));
  const x = sx(shown + 1), right = x > (box.x0 + box.x1) / 2;
  layer.append(textAt(x + (right ? -6 : 6), Math.max(box.y1 + 10, sy(100 * all.groups[shown]) - 4), percent(all.groups[shown]), `lb-t-orange lb-halo ${right ? "lb-end" : ""}`));
  layer.append(svg("rect", { x: box.x0, width: box.x1 - box.x0, y: box.y1, height: box.y0 - box.y1, fill: "transparent", class: "lb-click",
    onclick: (ev) => { const b = ev.target.getBoundingClientRect(); choose(Math.max(0, Math.min(n - 1, Math.floor(((ev.clientX - b.left) / b.width) * n)))); } }));
  return node;
}

function clipPlot({ clipCurve: { points, best }, clip, all, bits, group }, width) {
  const top = Math.max(...points.map((p) => p.error)) * 106 || 1;
  const { root: node, layer, sx, sy } = plot({ width, height: 224, title: "Error against clip, %", x: { range: [20, 100], label: "clip, % of range", ticks: [20, 40, 60, 80, 100] },
    y: { range: [0, top] }, margin: { left: 40 }, alt: `error at ${bits} bits, groups of ${group}: least at a clip of ${best.clip} %, ${percent(best.error)}` });
  layer.append(svg("path", { d: linePath(points.map((p) => [sx(p.clip), sy(100 * p.error)])), class: "lb-curve" }));
  layer.append(dotAt(sx(best.clip), sy(100 * best.error), 8, "lb-best"), dotAt(sx(clip), sy(100 * all.error), 5, "lb-here"));
  const low = best.error * 100 > top * 0.5;
  layer.append(textAt(Math.min(Math.max(sx(best.clip), 100), width - 66), sy(100 * best.error) + (low ? 26 : -16), `least at ${best.clip} %`, "lb-t lb-mid lb-halo"));
  return node;
}

function planePlot({ families, budget, all, bits }, visited, width) {
  const errors = [...families.flatMap((f) => f.points.map((p) => p.y)), all.error].filter((y) => y > 0);
  const most = Math.max(9.4, budget.total + 0.3);
  const range = [10 ** Math.floor(Math.log10(Math.min(...errors, 0.5))), Math.max(1, ...errors) * 1.3];
  const { root: node, layer, sx, sy } = plot({ width, height: 224, title: "Error against bits per weight", x: { range: [0.8, most], label: "bits per weight, everything counted" },
    y: { range, log: true, format: percentTick }, margin: { left: 56 }, alt: `this setting: ${digits(budget.total, 3)} bits per weight, error ${percent(all.error)}` });
  const clamp = (y) => sy(Math.max(range[0], y));
  for (const { bits: b, points } of families) {
    const f = { bits: b, points: points.filter((p) => p.x <= most) };
    layer.append(svg("path", { d: linePath(f.points.map((p) => [sx(p.x), clamp(p.y)])), class: "lb-family" }));
    f.points.forEach((p) => layer.append(dotAt(sx(p.x), clamp(p.y), 2.4, "lb-member")));
    const end = f.points.at(-1);
    layer.append(textAt(sx(end.x) - 5, clamp(end.y) + 13, f.bits === bits ? `${f.bits} bits` : String(f.bits), f.bits === bits ? "lb-t-ink lb-end lb-halo" : "lb-t lb-end lb-halo"));
  }
  visited.slice(0, -1).forEach((p) => layer.append(dotAt(sx(p.x), clamp(p.y), 4, "lb-past")));
  layer.append(dotAt(sx(budget.total), clamp(all.error), 6, "lb-here"));
  return node;
}

const percentTick = (y) => `${Number((100 * y).toPrecision(1))} %`;

export default { render };
