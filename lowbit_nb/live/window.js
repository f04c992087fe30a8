// The window explorer: which blocks are learned together, which go on from the window before, which are hard.
import { calm, chips, digits, el, followWidth, linePath, percent, plot, root, slider, svg, textAt, tile } from "./dom.js";

const GLIDE = 1300, STEP = 2200, LEFT = 54, RIGHT = 8;   // milliseconds a step, with motion and without; margins of both pictures
const WORDS = { u: "untouched", s: "soft", w: "warm", h: "hard" };
const PRESETS = [["block by block", () => [1, 0]], ["pairs side by side", () => [2, 0]], ["pairs that overlap (CBQ)", () => [2, 1]], ["fours that overlap by 2", () => [4, 2]], ["all at once", (n) => [n, 0]]];

function render({ model, el: host }) {
  const runs = model.get("runs"), most = Math.max(32, model.get("n"));
  const node = root("window", "Window explorer", model.get("about"), "Which blocks are learned together? A window is learned, its first blocks are made hard and left behind, and the next window goes on with the others where they are.");
  const now = () => settled({ n: model.get("n"), window: model.get("window"), overlap: model.get("overlap"), step: model.get("step") }, most);
  const set = (change) => { Object.entries(settled({ ...now(), ...change }, most)).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const go = (step) => { pause(); set({ step }); };
  const count = (v) => `${v} block${v === 1 ? "" : "s"}`;
  const control = {
    n: slider({ label: "Blocks", min: 2, max: most, text: count, oninput: (n) => set({ n }) }),
    window: slider({ label: "Window", min: 1, max: most, text: count, oninput: (window) => set({ window }) }),
    overlap: slider({ label: "Overlap", min: 0, max: 1, text: count, oninput: (overlap) => set({ overlap }) }),
    step: slider({ label: "Step", min: 1, max: 1, text: (v) => `${v} of ${control.step.input.max}`, oninput: go }),
  };
  const sign = el("span", { "aria-hidden": "true" }), word = el("span");
  const button = el("button", { type: "button", class: "lb-play", title: "Space plays and pauses; arrow keys move by one step", onclick: () => toggle() }, sign, word);
  const tries = chips("Try", PRESETS.map(([name, of]) => [name, () => { const [window, overlap] = of(now().n); set({ window, overlap }); }]));
  const tiles = { steps: tile("Steps"), visits: tile("Block-visits"), learned: tile("Times a block is learned"), together: tile("In memory at once") };
  const picture = el("div"), errors = el("div"), readout = el("p", { class: "lb-w-now", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-w-controls" }, ...["n", "window", "overlap"].map((k) => control[k].node)), tries,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)), el("div", { class: "lb-w-player" }, control.step.node, button), readout,
    el("div", { class: `lb-row${runs.length ? " lb-w-both" : ""}` }, el("div", {}, picture, keyOf()), runs.length ? errors : null));
  let timer = null;

  function pause() {
    clearInterval(timer);
    timer = null;
    tellButton();
  }

  function toggle() {
    if (timer) return pause();
    const last = () => now().step >= planOf(now()).steps.length;
    if (last()) set({ step: 1 });
    timer = setInterval(() => {
      if (!node.isConnected || last()) return pause();
      set({ step: now().step + 1 });
      if (last()) pause();
    }, calm() ? STEP : GLIDE);
    tellButton();
  }

  function tellButton() {
    sign.textContent = timer ? "❚❚" : "▶";
    word.textContent = timer ? "Pause" : "Play";
    readout.setAttribute("aria-live", timer ? "off" : "polite");   // a screen reader hears the step that playing ends on
  }

  function keys(event) {
    const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === " " && event.target === control.step.input) { event.preventDefault(); toggle(); }
    if (move && event.target === button) { event.preventDefault(); go(now().step + move); }
  }

  function update() {
    const at = now(), plan = planOf(at), { steps, learned, visits, together } = plan;
    control.n.update(at.n); control.window.update(at.window, { max: at.n }); control.overlap.update(at.overlap, { max: at.window - 1 }); control.step.update(at.step, { max: steps.length });
    control.overlap.input.disabled = at.window === 1; control.step.input.disabled = steps.length === 1;
    const least = Math.min(...learned), often = Math.max(...learned), again = learned.filter((c) => c > 1).length, stride = at.window - at.overlap;
    tiles.steps.update(String(steps.length), `each moves on by ${count(stride)}`);
    tiles.visits.update(String(visits), `${digits(visits / at.n)} times block by block, at equal passes a step`);
    tiles.learned.update(least === often ? `${often}×` : `${least}× to ${often}×`, again ? `${again} of ${at.n} blocks more than once` : "every block in one step only");
    tiles.together.update(count(together), together > 1 ? "with gradients through all of them" : "the least there can be");
    readout.textContent = storyOf(at, plan, runs);
    Object.assign(node.dataset, { n: at.n, window: at.window, overlap: at.overlap, step: at.step, steps: steps.map((s) => s.join(",")).join(" "), rows: plan.rows.join(" "), learned: learned.join(","), visits, together });
    draw();
  }

  function draw() {
    if (!picture.clientWidth) return;
    const at = now(), plan = planOf(at);
    picture.replaceChildren(gridOf(at, plan, picture.clientWidth, go));
    if (runs.length) errors.replaceChildren(errorPlot(at, plan, runs, errors.clientWidth), ...runKeys(at, plan, runs));
  }

  host.append(node);
  node.addEventListener("keydown", keys);
  tellButton();
  update();
  const names = ["n", "window", "overlap", "step"].map((k) => `change:${k}`);
  names.forEach((name) => model.on(name, update));
  const stop = followWidth(node, draw);
  return () => { pause(); stop(); names.forEach((name) => model.off(name, update)); };
}

const percent3 = (x) => percent(x).replace(" ", "\u00a0");
const within = (v, lo, hi) => Math.min(hi, Math.max(lo, v));

// The nearest schedule that exists: a window no longer than the model, an overlap shorter than the window, a step that is there.
function settled({ n, window, overlap, step }, most) {
  const legal = { n: within(n, 2, most) };
  legal.window = within(window, 1, legal.n);
  legal.overlap = within(overlap, 0, legal.window - 1);
  legal.step = within(step, 1, planOf(legal).steps.length);
  return legal;
}

// Steps [first block, made hard at the end, learned], and for each a letter a block: untouched, soft, warm, hard.
function planOf({ n, window, overlap }) {
  const stride = window - overlap, count = Math.max(0, Math.ceil((n - window) / stride)) + 1, learned = new Array(n).fill(0);
  const steps = Array.from({ length: count }, (_, k) => { const first = k * stride, seen = Math.min(window, n - first); return [first, k === count - 1 ? seen : stride, seen]; });
  const rows = steps.map(([first, , seen]) => Array.from({ length: n }, (_, b) => {
    if (b < first) return "h";
    if (b >= first + seen) return "u";
    learned[b] += 1;
    return learned[b] > 1 ? "w" : "s";
  }).join(""));
  return { steps, rows, learned, visits: learned.reduce((a, b) => a + b, 0), together: Math.max(...steps.map((s) => s[2])) };
}

const spanOf = (first, count) => (count === 1 ? `block ${first}` : `blocks ${first} ${count === 2 ? "and" : "to"} ${first + count - 1}`);
const upper = (words) => words.replace(/^./, (c) => c.toUpperCase());

// What happens at this step, in words.
function storyOf({ n, step }, { steps, rows }, runs) {
  const [first, left, seen] = steps[step - 1], row = rows[step - 1], count = (state) => [...row].filter((s) => s === state).length, warm = count("w"), fresh = count("s"), rest = count("u"), stays = seen - left;
  const is = (k, one, many) => (k === 1 ? one : many), parts = [`Step ${step} of ${steps.length}: ${spanOf(first, seen)} ${is(seen, "is learned alone", "are learned together")}.`];
  if (warm) parts.push(`${upper(spanOf(first, warm))} ${is(warm, "is", "are")} warm: soft, and going on where step ${step - 1} has left ${is(warm, "it", "them")}.`);
  if (fresh) parts.push(`${upper(spanOf(first + warm, fresh))} ${is(fresh, "is", "are")} soft, learned for the first time.`);
  parts.push(`When the step ends, ${spanOf(first, left)} ${is(left, "is", "are")} made hard${stays ? `; ${spanOf(first + left, stays)} ${is(stays, "stays", "stay")} soft for the next window` : ""}.`);
  if (first) parts.push(`${upper(spanOf(0, first))} ${is(first, "is", "are")} hard already.`);
  if (rest) parts.push(`${upper(spanOf(n - rest, rest))} ${is(rest, "is", "are")} untouched.`);
  const at = first + seen - 1, known = runs.filter(([, errors]) => at < errors.length);
  if (known.length) parts.push(`Error after block ${at}: ${known.map(([name, errors]) => `${name} ${percent3(errors[at])}`).join("; ")}.`);
  return parts.join(" ");
}

// One cell: a colour and a mark; a word where there is room; a bar if the block is made hard at the end of the step.
function cellOf(state, x, y, w, h, hatch, ends, room) {
  const gap = w > 12 ? 1.5 : 0.5, r = within(Math.min(h, w) * 0.22, 1.4, 4.6), side = (w < 20 ? 1.1 : 1.8) * r, cy = y + h / 2, cx = room ? x + w / 2 - 19 : x + w / 2, box = { x: (x + gap).toFixed(1), y: (y + gap).toFixed(1), width: Math.max(1, w - 2 * gap).toFixed(1), height: (h - 2 * gap).toFixed(1), rx: w > 12 ? 2 : 0 };
  const out = [svg("rect", { ...box, class: `lb-w-${state}` })];
  if (state === "w") out.push(svg("rect", { ...box, fill: `url(#${hatch})` }));
  if (state === "u") out.push(svg("circle", { cx: x + w / 2, cy, r: 1.2, class: "lb-w-speck" }));
  if (state === "s" || state === "w") out.push(svg("circle", { cx, cy, r, class: "lb-w-ring" }));
  if (state === "w") out.push(svg("circle", { cx, cy, r: r * 0.45, class: "lb-w-core" }));
  if (state === "h") out.push(svg("rect", { x: cx - side / 2, y: cy - side / 2, width: side, height: side, class: "lb-w-square" }));
  if (room && state !== "u") out.push(svg("text", { x: (cx + 9).toFixed(1), y: (cy + 4).toFixed(1), class: `lb-w-word${state === "h" ? " lb-w-onhard" : ""}` }, WORDS[state]));
  if (ends) out.push(svg("line", { x1: x + gap, x2: x + w - gap, y1: y + h - gap - 1.5, y2: y + h - gap - 1.5, class: "lb-w-end" }));
  return out;
}

const freshHatch = () => { const id = `lb-w-${Math.round(Math.random() * 1e12)}`; return [id, svg("defs", {}, svg("pattern", { id, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("line", { x1: 0, x2: 0, y1: 0, y2: 7, class: "lb-w-hatch" })))]; };

function keyOf() {
  const item = (words, state, ends) => { const [id, defs] = freshHatch(); return el("span", { class: "lb-w-key" }, svg("svg", { width: 24, height: 18, viewBox: "0 0 24 18", "aria-hidden": "true" }, defs, ...cellOf(state, 0, 0, 24, 18, id, ends, false)), words); };
  return el("p", { class: "lb-note lb-w-keys" }, item("untouched", "u"), item("soft: learned, new", "s"), item("warm: learned, carried over", "w"), item("hard", "h"), item("bar: made hard when the step ends", "s", true));
}

// Every how many of n labels have room, if each is so wide.
const everyOf = (n, room, wide) => Math.ceil((n * wide) / Math.max(1, room));

function gridOf({ n, step }, { steps, rows, learned }, width, go) {
  const inner = Math.max(60, width - LEFT - RIGHT), cell = inner / n, h = within(390 / steps.length, 10, 38), top = 46, y = (k) => top + k * h, foot = y(steps.length), height = foot + 26, room = cell >= 54 && h >= 18, [first, left, seen] = steps[step - 1];
  const [id, defs] = freshHatch(), node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${n} blocks across, ${steps.length} steps down; step ${step}: ${[...rows[step - 1]].map((s, b) => `${b} ${WORDS[s]}`).join(", ")}; ${left} of ${seen} made hard at its end, from block ${first}` }, defs);
  node.append(textAt(0, 14, width < 430 ? "Blocks across, steps down" : "The schedule: blocks across, steps down", "lb-t-title"), textAt(LEFT - 9, top - 8, "block", "lb-t lb-end"), textAt(LEFT - 9, foot + 17, "learned", "lb-t lb-end"));
  const across = everyOf(n, inner, 19), down = everyOf(steps.length, foot - top, 15), counts = everyOf(n, inner, Math.max(...learned) > 9 ? 26 : 20);
  learned.forEach((times, b) => {
    const mine = b >= first && b < first + seen;
    if (b % across === 0) node.append(textAt(LEFT + (b + 0.5) * cell, top - 8, String(b), `${mine ? "lb-t-ink" : "lb-t"} lb-mid`));
    if (b % counts === 0) node.append(textAt(LEFT + (b + 0.5) * cell, foot + 17, `${times}×`, "lb-t lb-mid"));
  });
  rows.forEach((row, k) => {
    const [from, ending] = steps[k], current = k + 1 === step;
    const line = svg("g", { class: `lb-w-row${current ? " lb-w-current" : k + 1 < step ? " lb-w-past" : ""}` }, ...[...row].flatMap((state, b) => cellOf(state, LEFT + b * cell, y(k), cell, h, id, b >= from && b < from + ending, room)));
    node.append(line);
    if (current || (k % down === 0 && Math.abs(k + 1 - step) * h >= 13)) node.append(textAt(LEFT - 9, y(k) + h / 2 + 4, current ? `▸ ${k + 1}` : String(k + 1), `${current ? "lb-t-ink" : "lb-t"} lb-end`));
  });
  if (h * down > 13) node.append(textAt(0, y(0) + h / 2 + 4, "step", "lb-t"));
  node.append(svg("rect", { x: LEFT - 1, y: y(step - 1) - 1, width: inner + 2, height: h + 2, rx: 3, class: "lb-w-frame" }),
    ...rows.map((_, k) => svg("rect", { x: 0, y: y(k), width, height: h, fill: "transparent", class: "lb-click", onclick: () => go(k + 1) })));
  return node;
}

const SHAPES = [(x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`, (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x},${y - 1.4 * r}l${1.4 * r},${1.4 * r}l${-1.4 * r},${1.4 * r}l${-1.4 * r},${-1.4 * r}Z`, (x, y, r) => `M${x},${y + 1.3 * r}l${1.3 * r},${-2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x - r},${y - 0.5 * r}h${2 * r}v${r}h${-2 * r}Z`];
const shapeAt = (i, x, y, r, more = "") => svg("path", { d: SHAPES[i](Number(x.toFixed(1)), Number(y.toFixed(1)), r), class: `lb-w-dot lb-w-r${i}${more}` });

// Ticks at 1, 2 and 5 of every power of ten, or the powers alone if the axis is long.
function logTicks(lo, hi) {
  const all = [], steps = hi / lo > 300 ? [1] : hi / lo > 60 ? [1, 3] : [1, 2, 5];
  for (let e = Math.floor(Math.log10(lo)); 10 ** e <= hi; e++) all.push(...steps.map((k) => Number(`${k}e${e}`)));
  return all.filter((t) => t >= lo && t <= hi);
}

// Error against depth, one line a run, with the blocks of this step marked.
function errorPlot({ n, step }, { steps }, runs, width) {
  const every = runs.flatMap(([, errors]) => errors), least = Math.min(...every), top = Math.max(...every), log = least > 0 && top > 10 * least, blocks = Math.max(n, runs[0][1].length), range = log ? [least / 1.35, top * 1.35] : [0, top * 1.08 || 1];
  const [first, , seen] = steps[step - 1], mine = (b) => b >= first && b < first + seen, height = within(140 + 24 * Math.min(steps.length, 9), 290, 340), gap = everyOf(blocks, Math.max(60, width - LEFT - RIGHT), 21);
  const { root: node, layer, box, sx, sy } = plot({ width, height, title: "Error of the output after each block", margin: { left: LEFT, right: RIGHT, top: 46 },
    x: { range: [-0.5, blocks - 0.5], label: "block", ticks: Array.from({ length: blocks }, (_, b) => b).filter((b) => b % gap === 0) }, y: { range, log, ...(log ? { ticks: logTicks(...range) } : {}), format: (t) => `${Number((100 * t).toPrecision(3))} %` },
    alt: `error of the output after each block${log ? ", logarithmic" : ""}: ${runs.map(([name, errors]) => `${name} from ${percent(errors[0])} to ${percent(errors.at(-1))}`).join("; ")}; marked: ${spanOf(first, seen)}` });
  node.append(svg("text", { x: 0, y: 31, class: "lb-t" }, `${log ? "logarithmic; " : ""}shaded: the blocks of step ${step}`));
  layer.append(svg("rect", { x: sx(first - 0.5), width: sx(first + seen - 0.5) - sx(first - 0.5), y: box.y1, height: box.y0 - box.y1, class: "lb-w-band" }));
  runs.forEach(([, errors], i) => layer.append(svg("path", { d: linePath(errors.map((e, b) => [sx(b), sy(e)])), class: `lb-w-line lb-w-r${i}` })));
  const small = blocks > 24 ? 2.2 : 3.4;
  runs.forEach(([, errors], i) => layer.append(...errors.map((e, b) => shapeAt(i, sx(b), sy(e), mine(b) ? small + 1.6 : small, mine(b) ? " lb-w-big" : ""))));
  return node;
}

function runKeys({ n, step }, { steps }, runs) {
  const at = steps[step - 1][0] + steps[step - 1][2] - 1, m = runs[0][1].length, sample = (i) => svg("svg", { width: 34, height: 12, viewBox: "0 0 34 12", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 34, y1: 6, y2: 6, class: `lb-w-line lb-w-r${i}` }), shapeAt(i, 17, 6, 3.6));
  const note = `Runs as measured; the controls do not change them.${n === m ? "" : ` They have ${m} blocks, the schedule ${n}.`}`;
  return [el("p", { class: "lb-note lb-w-keys" }, ...runs.map(([name, errors], i) => el("span", { class: "lb-w-key" }, sample(i), at < errors.length ? `${name}: ${percent3(errors[at])} after block ${at}` : name))), el("p", { class: "lb-note lb-w-keys" }, note)];
}

export default { render };
