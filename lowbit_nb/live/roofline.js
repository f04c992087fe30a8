// The roofline explorer: how long the bytes of a product take to arrive, how long its instructions take to issue, what was measured.
import { chips, digits, dotAt, el, followWidth, linePath, plot, root, select, slider, svg, textAt, tile } from "./dom.js";
import { limitsOf, rooflineOf } from "./limits.js";

const NAMES = ["d_out", "d_in", "bits", "group", "zeros", "batch", "kernel", "own", "machine", "bandwidth", "launch"];
const EFFECTS = [["bits", "bits of the codes alone"], ["bytes", "all bytes that move"], ["limits", "and the instructions"], ["time", "and the launch"]];
const tied = (words) => words.replaceAll(" µs", "\u00a0µs").replaceAll(" MB", "\u00a0MB").replaceAll(" TB/s", "\u00a0TB/s").replaceAll(" bit", "\u00a0bit");
const us = (x) => `${digits(x)} µs`;

function render({ model, el: host }) {
  const [machines, shapes, points, counts, constants] = ["machines", "shapes", "points", "counts", "constants"].map((k) => model.get(k)), kernels = [...Object.keys(counts), constants.own];
  const node = root("roofline", "Roofline explorer", model.get("about"),
    "Why does a 1-bit weight not run four times as fast as a 4-bit one? Its bytes must arrive and its instructions must be issued; the slower of the two is the limit.");
  const state = () => ({ ...Object.fromEntries(NAMES.map((k) => [k, model.get(k)])), rate: machines.find((m) => m.name === model.get("machine")).slots, counts, constants });
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const ofMachine = (name) => { const { bandwidth, launch } = machines.find((m) => m.name === name); return { machine: name, bandwidth, launch }; };
  const rows = (v) => v.toLocaleString("en").replaceAll(",", "\u202f"), size = { min: 512, max: 32768, step: 512, text: rows };
  const control = {
    shape: select({ label: "Shape, out × in", options: [...shapes.map(([a, b]) => [`${a} ${b}`, `${a} × ${b}`]), ["free", "by the sliders"]], onchange: (v) => { if (v !== "free") { const [d_out, d_in] = v.split(" ").map(Number); set({ d_out, d_in }); } } }),
    d_out: slider({ label: "Rows, out", ...size, oninput: (d_out) => set({ d_out }) }),
    d_in: slider({ label: "Columns, in", ...size, oninput: (d_in) => set({ d_in }) }),
    batch: slider({ label: "Batch", min: 1, max: 64, text: String, oninput: (batch) => set({ batch }) }),
    bits: select({ label: "Bits", options: [[16, "16: fp16"], [8, "8"], [4, "4"], [3, "3"], [2, "2"], [1.61, "1.61: 4 and 1 mixed"], [1, "1"]], onchange: (v) => set({ bits: Number(v) }) }),
    group: select({ label: "A scale for each", options: [...[32, 64, 128, 256].map((g) => [g, `${g} weights`]), [0, "row"]], onchange: (v) => set({ group: Number(v) }) }),
    zeros: select({ label: "Zero points", options: [["no", "none"], ["yes", "16 bits each"]], onchange: (v) => set({ zeros: v === "yes" }) }),
    kernel: select({ label: "Kernel", options: kernels.map((k) => [k, k]), onchange: (kernel) => set({ kernel }) }),
    own: slider({ label: "Own count", min: 0.1, max: 12, step: 0.1, text: (v) => `${digits(v, 2)} slots`, oninput: (own) => set({ own, kernel: constants.own }) }),
    machine: select({ label: "Machine", options: machines.map((m) => [m.name, m.name]), onchange: (name) => set(ofMachine(name)) }),
    bandwidth: slider({ label: "Bandwidth", min: 0.1, max: 8, step: 0.01, text: (v) => `${digits(v)} TB/s`, oninput: (bandwidth) => set({ bandwidth }) }),
    launch: slider({ label: "Launch", min: 0, max: 10, step: 0.1, text: (v) => `${digits(v, 2)} µs`, oninput: (launch) => set({ launch }) }),
  };
  control.shape.input.querySelector('[value="free"]').disabled = true;
  const tries = chips("Try", [["1 bit, plain", { kernel: kernels[0], batch: 1 }], ["1 bit, tensor cores", { kernel: kernels[1], batch: 1 }], ["1 bit, tensor cores, batch 16", { kernel: kernels[1], batch: 16 }], ["a small layer", { d_out: 4096, d_in: 4096, batch: 1 }], ["a card with less bandwidth", { kernel: kernels[0], batch: 1, machine: "NVIDIA RTX 4090" }]]
    .map(([name, change]) => [name, () => set({ bits: 1, ...(change.machine ? ofMachine(change.machine) : {}), ...change })]));
  const tiles = { bytes: tile("To move"), floor: tile("Floor: the bytes arrive"), issue: tile("The instructions issue"), time: tile("Model") };
  const picture = el("div"), bars = el("div"), readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" }), source = el("p", { class: "lb-note lb-rf-source" });
  node.append(el("div", { class: "lb-controls lb-rf-controls" }, ...Object.values(control).map((c) => c.node)), tries,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)), el("div", { class: "lb-row lb-rf-both" }, picture, bars), readout, source);

  function update() {
    const s = state(), r = rooflineOf(s), { bytes } = r, fixed = s.bits === 16 || s.bits === 1.61, fp16 = s.bits === 16, mine = measured(s, points).filter((p) => p.bits === s.bits), mb = (x) => digits(x / 1e6);
    control.shape.update(shapes.some(([a, b]) => a === s.d_out && b === s.d_in) ? `${s.d_out} ${s.d_in}` : "free");
    for (const k of NAMES) control[k].update(k === "zeros" ? (s.zeros ? "yes" : "no") : s[k]);
    control.group.input.disabled = control.zeros.input.disabled = fixed;
    control.kernel.input.disabled = fp16 && s.kernel !== constants.own;
    tiles.bytes.update(tied(`${mb(r.moved)} MB`), tied(`codes ${mb(bytes.codes)}, scales ${mb(bytes.scales)}, zero points ${mb(bytes.zeros)}, x and y ${mb(bytes.vectors)} MB; ${digits(r.stored, 4)} bits a weight`));
    tiles.floor.update(tied(us(r.floor)), tied(`at ${digits(s.bandwidth)} TB/s; time for ${digits(r.budget)} slots a weight`));
    tiles.issue.update(tied(us(r.issue)), `${digits(r.slots)} slots a weight, ${fp16 && s.kernel !== constants.own ? "16-bit product: nothing to unpack" : s.kernel}`);
    tiles.time.update(tied(us(r.time)), `limit: ${r.binds}; launch ${digits(s.launch, 2)}\u00a0µs`);
    const f = r.faster;
    readout.textContent = tied(`${capital(r.verdict)}. Against 4 bits: ${digits(f.bits)} times fewer bits, ${digits(f.bytes)} times fewer bytes, ${digits(f.limits)} times as fast with the instructions counted, ${digits(f.time)} with the launch.`
      + (mine.length ? ` Measured: ${mine.map((p) => `${p.name} ${us(p.us)}, ${digits(p.us / r.floor)} times the floor`).join("; ")}.` : points.length ? ` Nothing was measured at ${s.d_out} × ${s.d_in}, batch ${s.batch}, ${count(s.bits)}.` : ""));
    source.textContent = `${s.machine}: ${machines.find((m) => m.name === s.machine).source}. Slots are counted in machine code for the H200's generation; the model waits for nothing, a kernel does.`;
    Object.assign(node.dataset, { ...bytes, stored: r.stored, slots: r.slots, budget: r.budget, floor: r.floor, issue: r.issue, time: r.time, binds: r.binds, crossings: r.crossings.join(","), faster: EFFECTS.map(([k]) => f[k]).join(","), verdict: r.verdict });
    draw(s, r);
  }

  function draw(s, r) {
    if (!picture.clientWidth) return;
    const room = [picture.clientWidth, bars.clientWidth], here = measured(s, points), names = [...new Set(points.map((p) => p.name))].filter((n) => here.some((p) => p.name === n));
    picture.replaceChildren(limitsPlot(s, r, here, names, kernels, room[0], (bits) => set({ bits })), keysOf(s, names, kernels));
    bars.replaceChildren(barsPlot(s, r, here, room[1]));
  }

  host.append(node);
  update();
  const watched = NAMES.map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, () => draw(state(), rooflineOf(state())));
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

const count = (bits) => `${bits} bit${bits === 1 ? "" : "s"}`;
const capital = (words) => words.replace(/^./, (c) => c.toUpperCase());
const measured = (s, points) => points.filter((p) => p.d_out === s.d_out && p.d_in === s.d_in && p.batch === s.batch);
const kernelClass = (kernel, kernels) => `lb-rf-k${Math.min(kernels.indexOf(kernel), kernels.length - 1) % 4}`;

// Ticks at 1, 2 and 5 of every power of ten, or fewer if the axis is long.
function ticksAlong(lo, hi) {
  const all = [], steps = hi / lo > 300 ? [1] : [1, 2, 5];
  for (let e = Math.floor(Math.log10(lo)); 10 ** e <= hi; e++) all.push(...steps.map((k) => Number(`${k}e${e}`)));
  return all.filter((t) => t >= lo && t <= hi);
}

const MARKS = [(x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`, (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x},${y - 1.4 * r}l${1.4 * r},${1.4 * r}l${-1.4 * r},${1.4 * r}l${-1.4 * r},${-1.4 * r}Z`, (x, y, r) => `M${x},${y + 1.3 * r}l${1.3 * r},${-2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x - 1.3 * r},${y - 0.5 * r}h${2.6 * r}v${r}h${-2.6 * r}Z`, (x, y, r) => `M${x - 0.5 * r},${y - 1.3 * r}h${r}v${2.6 * r}h${-r}Z`, (x, y, r) => `M${x - r},${y - 0.4 * r}l${0.6 * r},${-0.8 * r}h${0.8 * r}l${0.6 * r},${0.8 * r}l${-r},${1.6 * r}Z`];
const markAt = (i, x, y, r, title) => svg("path", { d: MARKS[i](Number(x.toFixed(1)), Number(y.toFixed(1)), r), class: `lb-rf-point lb-rf-p${i}` }, title ? svg("title", {}, title) : null);

// Time against stored bits, both logarithmic: the floor, every kernel's instructions, the model of the chosen kernel, measured points.
function limitsPlot(s, r, here, names, kernels, width, choose) {
  const lines = kernels.filter((k) => k !== s.constants.own || k === s.kernel).map((kernel) => [kernel, r.line.map(({ bits }) => limitsOf({ ...s, bits, kernel }))]);
  const at = (bits) => limitsOf({ ...s, bits }).stored, spots = here.map((p) => [at(p.bits), p]), every = [...r.all.flatMap((a) => [a.floor, a.issue, a.time]), ...lines.flatMap(([, l]) => l.map((a) => a.issue)), ...here.map((p) => p.us), ...(s.launch ? [s.launch] : [])];
  const bits = [...r.all.map((a) => a.stored), ...spots.map(([x]) => x)], X = [Math.min(...bits) / 1.14, Math.max(...bits) * 1.12], Y = [Math.min(...every) / 1.3, Math.max(...every) * 1.4];
  const { root: node, layer, box, sx, sy } = plot({ width, height: 400, title: "Time against bits a weight", margin: { top: 46, left: 46 }, x: { range: X, log: true, label: "stored bits a weight, scales included", ticks: [0.5, 1, 1.5, 2, 3, 4, 6, 8, 16].filter((t) => t >= X[0] && t <= X[1]) }, y: { range: Y, log: true, ticks: ticksAlong(...Y) },
    alt: `time against bits: ${r.all.map((a) => `${a.bits} bits floor ${us(a.floor)}, instructions ${us(a.issue)}, model ${us(a.time)}`).join("; ")}${here.length ? `; measured ${here.map((p) => `${p.name} ${p.bits} bits ${us(p.us)}`).join("; ")}` : ""}` });
  node.append(textAt(0, 31, `µs, logarithmic; ${s.d_out} × ${s.d_in}, batch ${s.batch}`));
  const path = (along, key, cls) => layer.append(svg("path", { d: linePath(along.map((a) => [sx(a.stored), sy(a[key])])), class: cls })), order = [...r.all].sort((a, b) => b.stored - a.stored);
  layer.append(svg("line", { x1: sx(r.stored), x2: sx(r.stored), y1: box.y1, y2: box.y0, class: "lb-rf-now" }));
  if (s.launch) layer.append(svg("line", { x1: box.x0, x2: box.x1, y1: sy(s.launch), y2: sy(s.launch), class: "lb-rf-launch" }), textAt(box.x1, sy(s.launch) - 5, "launch", "lb-t lb-end lb-halo"));
  const half = r.all[0], plain = s.kernel !== s.constants.own;
  for (const [kernel, line] of lines) {
    path(line, "issue", `lb-rf-issue ${kernelClass(kernel, kernels)}${kernel === s.kernel ? " lb-rf-chosen" : ""}`);
    if (kernel === s.kernel) line.forEach((a) => layer.append(dotAt(sx(a.stored), sy(a.issue), 3.2, `lb-rf-dot ${kernelClass(kernel, kernels)}`)));
  }
  path(order, "floor", "lb-rf-floor");
  order.forEach((a) => layer.append(dotAt(sx(a.stored), sy(a.floor), 3, "lb-rf-floordot")));
  path([...(plain ? [] : [half]), ...r.line], "time", "lb-rf-time");
  layer.append(dotAt(sx(half.stored), sy(half.time), 3, "lb-rf-timedot"), dotAt(sx(half.stored), sy(half.issue), 3.2, "lb-rf-half"), textAt(sx(half.stored) - 8, sy(half.issue) + 4, "16-bit product", "lb-t lb-end lb-halo"));
  r.crossings.forEach((b) => { const y = crossingY(r.line, b); layer.append(svg("circle", { cx: sx(b), cy: sy(y), r: 8, class: "lb-rf-cross" }), textAt(sx(b) + 12, sy(y) + 18, `cross at ${b.toFixed(2)}`, "lb-t-ink lb-halo")); });
  spots.forEach(([x, p]) => layer.append(markAt(names.indexOf(p.name) % MARKS.length, sx(x), sy(p.us), p.bits === s.bits ? 6 : 4.6, `${p.name}, ${p.bits} bits: ${us(p.us)}`)));
  layer.append(svg("circle", { cx: sx(r.stored), cy: sy(r.time), r: 9, class: "lb-rf-ring" }));
  const edges = order.map((a) => sx(a.stored)), mid = (i) => (i <= 0 ? box.x1 : i >= edges.length ? box.x0 : (edges[i - 1] + edges[i]) / 2);
  order.forEach((a, i) => layer.append(svg("rect", { x: mid(i + 1), width: Math.max(1, mid(i) - mid(i + 1)), y: box.y1, height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: () => choose(a.bits) }, svg("title", {}, `${a.bits} bits`))));
  return node;
}

function crossingY(line, b) {                    // the floor where the lines meet
  const i = line.findIndex((a) => a.stored <= b), [a, c] = [line[i - 1], line[i]], share = Math.log(a.stored / b) / Math.log(a.stored / c.stored);
  return a.floor * (c.floor / a.floor) ** share;
}

function keysOf(s, names, kernels) {
  const key = (sample, words) => el("span", { class: "lb-rf-key" }, svg("svg", { width: 28, height: 14, viewBox: "0 0 28 14", "aria-hidden": "true" }, sample), words), line = (cls) => svg("line", { x1: 0, x2: 28, y1: 7, y2: 7, class: cls });
  return el("p", { class: "lb-note lb-rf-keys" }, key(line("lb-rf-floor"), "floor"), ...kernels.filter((k) => k !== s.constants.own || k === s.kernel).map((k) => key(line(`lb-rf-issue ${kernelClass(k, kernels)}${k === s.kernel ? " lb-rf-chosen" : ""}`), `instructions: ${k}`)),
    key(line("lb-rf-time"), "model: launch + the larger"), key(svg("circle", { cx: 14, cy: 7, r: 5, class: "lb-rf-ring" }), "chosen"), ...names.map((n, i) => key(markAt(i % MARKS.length, 14, 7, 4.6), `measured: ${n}`)));
}

// From 4 bits to this width: what each effect leaves of the gain, and what was measured of kernels that have both widths.
function barsPlot(s, r, here, width) {
  const four = new Map(here.filter((p) => p.bits === 4).map((p) => [p.name, p.us])), gains = s.bits === 4 ? [] : here.filter((p) => p.bits === s.bits && four.has(p.name)).map((p) => [`measured: ${p.name}`, four.get(p.name) / p.us, true]);
  const items = [...EFFECTS.map(([k, words]) => [words, r.faster[k], false]), ...gains], top = Math.max(1, ...items.map((i) => i[1])), step = 46, height = 50 + step * items.length, inner = Math.max(60, width - 58);
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `times as fast as 4 bits: ${items.map(([words, v]) => `${words} ${digits(v)}`).join("; ")}` });
  node.append(textAt(0, 14, `${count(s.bits)} against 4 bits`, "lb-t-title"), textAt(0, 31, "times as fast"));
  node.append(svg("line", { x1: inner / top, x2: inner / top, y1: 48, y2: height - 8, class: "lb-rf-one" }));
  items.forEach(([words, v, real], i) => { const y = 50 + i * step; node.append(textAt(0, y + 10, words, "lb-t lb-halo"), svg("rect", { x: 0, y: y + 16, width: Math.max(1, (v / top) * inner), height: 17, rx: 2, class: real ? "lb-rf-bar lb-rf-real" : "lb-rf-bar" }), textAt((v / top) * inner + 7, y + 29, `${digits(v)}×`, "lb-t-ink")); });
  return node;
}

export default { render };
