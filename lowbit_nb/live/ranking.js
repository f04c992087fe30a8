// The ranking explorer: a table that can be sorted and filtered, the same entries as points, and the front that nothing beats.
import { digits, el, followWidth, linePath, percent, plot, root, select, svg } from "./dom.js";

const EVERY = "all weights alone", RISING = ["top1", "parse"], SHARES = ["top1", "parse"];
const JUDGES = [["kl", "KL"], ["perplexity", "perplexity"], ["top1", "top-1 agreement"], ["parse", "parse rate"]];
const COSTS = [["bits", "bits a weight"], ["seconds", "seconds"], ["memory", "peak memory"]];
const HEADS = [["name", "Method"], ["bits", "Bits"], ["kl", "KL"], ["top1", "Top-1"], ["perplexity", "Perplexity"], ["parse", "Parses"], ["seconds", "Seconds"], ["memory", "GB"]];
const WORDS = Object.fromEntries([...JUDGES, ...COSTS]);
const AXES = { kl: "KL, nats", perplexity: "perplexity", top1: "top-1 agreement", parse: "parse rate", bits: "bits a weight", seconds: "seconds", memory: "peak memory, GB" };
const UNITS = { bits: "bits a weight", seconds: "seconds", memory: "GB at most" };
const STATE = ["level", "judge", "cost", "sort", "falling", "paper", "only_front", "marked"];

function render({ model, el: host }) {
  const entries = model.get("entries"), families = model.get("families"), original = model.get("original");
  const node = root("ranking", "Ranking explorer", model.get("about"), "Who is best depends on what you ask and on what you may spend. Choose both; a line joins the entries that no other beats in both.");
  const state = () => Object.fromEntries(STATE.map((k) => [k, model.get(k)]));
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const toMark = (i) => set({ marked: model.get("marked") === i ? -1 : i });
  const control = {
    level: select({ label: "Level", options: model.get("levels").map((v) => [v, v]), onchange: (level) => set({ level, marked: -1 }) }),
    judge: select({ label: "Judge by", options: JUDGES, onchange: (judge) => set({ judge, sort: judge, falling: RISING.includes(judge) }) }),
    cost: select({ label: "Against", options: COSTS, onchange: (cost) => set({ cost }) }),
    show: select({ label: "Show", options: [["all", "all"], ["own", "one budget for all"], ["front", "what is not beaten"]], onchange: (v) => set({ paper: v !== "own", only_front: v === "front", marked: -1 }) }),
  };
  const picture = el("div"), body = el("tbody"), story = el("p", { class: "lb-k-now", role: "status", "aria-live": "polite" });
  const heads = HEADS.map(([key, words]) => {
    const arrow = el("span", { "aria-hidden": "true" }), button = el("button", { type: "button", onclick: () => { const s = state(); set({ sort: key, falling: s.sort === key ? !s.falling : RISING.includes(key) }); } }, words, arrow);
    const cell = el("th", { scope: "col", class: key === "name" ? "" : "lb-k-num" }, button);
    return { cell, update: (s) => { arrow.textContent = s.sort === key ? (s.falling ? " ▼" : " ▲") : ""; cell.setAttribute("aria-sort", s.sort === key ? (s.falling ? "descending" : "ascending") : "none"); } };
  });
  const frame = el("div", { class: "lb-k-frame", tabindex: "0", role: "region", "aria-label": "Table of entries" }, el("table", { class: "lb-k-table" }, el("thead", {}, el("tr", {}, ...heads.map((h) => h.cell))), body));
  node.append(el("div", { class: "lb-controls lb-k-controls" }, ...Object.values(control).map((c) => c.node)), picture, keysOf(families), story, frame);

  function update() {
    const s = state(), seen = seenOf(entries, s), front = frontOf(entries, seen, s), order = orderOf(entries, seen, front, s);
    for (const k of ["level", "judge", "cost"]) control[k].update(s[k]);
    control.show.update(s.only_front ? "front" : s.paper ? "all" : "own");
    heads.forEach((h) => h.update(s));
    const held = body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.i : null;
    body.replaceChildren(...order.map((i) => rowOf(entries[i], i, front.includes(i), s, families, toMark)));
    if (held !== null) body.querySelector(`tr[data-i="${held}"] button`)?.focus({ preventScroll: true });   // rows are new: keep the keyboard's place
    story.textContent = storyOf(entries, seen, front, s, original);
    Object.assign(node.dataset, { ...s, seen: seen.join(","), front: front.join(","), order: order.join(",") });
    draw();
  }

  function toPoint(i) {
    toMark(i);
    const row = body.querySelector(`tr[data-i="${i}"]`);
    if (row) frame.scrollTop = row.offsetTop - frame.clientHeight / 2;
  }

  function draw() {
    if (!picture.clientWidth) return;
    const s = state(), seen = seenOf(entries, s);
    picture.replaceChildren(pictureOf(entries, seen, frontOf(entries, seen, s), s, families, picture.clientWidth, toPoint));
  }

  host.append(node);
  update();
  STATE.forEach((k) => model.on(`change:${k}`, update));
  const stop = followWidth(node, draw);
  return () => { stop(); STATE.forEach((k) => model.off(`change:${k}`, update)); };
}

const signOf = (judge) => (RISING.includes(judge) ? -1 : 1);
const seenOf = (entries, s) => entries.map((_, i) => i).filter((i) => (s.level === EVERY ? !entries[i].level.includes("A") : entries[i].level === s.level) && (s.paper || entries[i].budget !== "paper"));

// From cheap to dear: keep whatever is better than all before it.
function frontOf(entries, seen, s) {
  const at = (i) => [entries[i].values[s.cost][0], signOf(s.judge) * entries[i].values[s.judge][0]], kept = [];
  for (const i of [...seen].sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1])) if (!kept.length || at(i)[1] < at(kept.at(-1))[1]) kept.push(i);
  return kept;
}

function orderOf(entries, seen, front, s) {
  const rows = s.only_front ? [...front].sort((a, b) => a - b) : [...seen], of = (i) => (s.sort === "name" ? entries[i].name.toLowerCase() : entries[i].values[s.sort][0]);
  return rows.sort((a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (s.falling ? -1 : 1));
}

function beatenBy(entries, seen, s, i) {
  const at = (k) => [signOf(s.judge) * entries[k].values[s.judge][0], entries[k].values[s.cost][0]], mine = at(i);
  return seen.filter((k) => at(k)[0] <= mine[0] && at(k)[1] <= mine[1] && (at(k)[0] !== mine[0] || at(k)[1] !== mine[1])).sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]);
}

const say = (measure, x) => (SHARES.includes(measure) ? percent(x).replace(" ", "\u00a0") : measure === "bits" ? x.toFixed(2) : digits(x));

// What is marked, in words; nothing marked: the front.
function storyOf(entries, seen, front, s, original) {
  const own = original[s.judge] === undefined ? "" : ` The original model: ${say(s.judge, original[s.judge])}.`;
  if (!seen.includes(s.marked)) return `Not beaten in ${WORDS[s.judge]} against ${WORDS[s.cost]}: ${front.map((i) => `${entries[i].name} (${say(s.cost, entries[i].values[s.cost][0])}: ${say(s.judge, entries[i].values[s.judge][0])})`).join("; ")}.${own} Choose a row or a point to read about it.`;
  const e = entries[s.marked], [mean, low, high] = e.values[s.judge], sign = signOf(s.judge), rank = 1 + seen.filter((i) => sign * entries[i].values[s.judge][0] < sign * mean).length, better = beatenBy(entries, seen, s, s.marked);
  const spread = e.seeds > 1 ? `, from ${say(s.judge, low)} to ${say(s.judge, high)} with ${e.seeds} seeds` : "";
  const how = better.length ? `Beaten in both by ${better.length}, most clearly by ${entries[better[0]].name} (${say(s.cost, entries[better[0]].values[s.cost][0])}: ${say(s.judge, entries[better[0]].values[s.judge][0])}).` : "Nothing shown beats it in both.";
  return `${e.name}, level ${e.level}, ${e.family}: ${WORDS[s.judge]} ${say(s.judge, mean)}${spread}, place ${rank} of ${seen.length}, at ${say(s.cost, e.values[s.cost][0])} ${UNITS[s.cost]}. ${how}${own}`;
}

const SHAPES = [(x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`, (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x},${y - 1.4 * r}l${1.4 * r},${1.4 * r}l${-1.4 * r},${1.4 * r}l${-1.4 * r},${-1.4 * r}Z`, (x, y, r) => `M${x},${y + 1.3 * r}l${1.3 * r},${-2.3 * r}h${-2.6 * r}Z`, (x, y, r) => `M${x - r},${y - 0.5 * r}h${2 * r}v${r}h${-2 * r}Z`];
const shapeAt = (n, x, y, r, more = {}) => svg("path", { d: SHAPES[n](Number(x.toFixed(1)), Number(y.toFixed(1)), r), ...more, class: `lb-k-dot lb-k-f${n} ${more.class ?? ""}` });
const sample = (n) => svg("svg", { width: 14, height: 12, viewBox: "0 0 14 12", "aria-hidden": "true" }, shapeAt(n, 7, 6, 4.2));
const keysOf = (families) => el("p", { class: "lb-note lb-k-keys" }, ...families.map((name, n) => el("span", { class: "lb-k-key" }, sample(n), name)), el("span", { class: "lb-k-key" }, "hollow: at a paper's budget"));

function rowOf(e, i, onFront, s, families, toMark) {
  const cells = HEADS.slice(1).map(([key]) => {
    const [mean, low, high] = e.values[key], spread = key === "kl" && e.seeds > 1 ? el("small", {}, ` ±\u00a0${digits((high - low) / 2, 1)}`) : null;
    return el("td", { class: `lb-k-num${key === s.judge ? " lb-k-judge" : ""}` }, say(key, mean), spread);
  });
  const name = el("button", { type: "button", "aria-pressed": String(s.marked === i), onclick: () => toMark(i) }, e.name);
  const notes = [...(s.level === EVERY ? [`level ${e.level}`] : []), ...(onFront ? ["not beaten"] : [])];
  return el("tr", { "data-i": i, class: `${onFront ? "lb-k-front" : ""}${s.marked === i ? " lb-k-marked" : ""}` }, el("th", { scope: "row" }, sample(families.indexOf(e.family)), name, el("small", {}, notes.length ? ` ${notes.join(" · ")}` : "")), ...cells);
}

function ticksFor(lo, hi) {
  const all = [], steps = hi / lo > 2000 ? [1] : hi / lo > 30 ? [1, 3] : [1, 2, 5];
  for (let e = Math.floor(Math.log10(lo)); 10 ** e <= hi; e++) all.push(...steps.map((k) => Number(`${k}e${e}`)));
  return all.filter((t) => t >= lo && t <= hi);
}

function axisOf(values, measure, log) {
  const lo = Math.min(...values), hi = Math.max(...values);
  if (log && lo > 0) { const range = [lo / 1.25, hi * 1.25]; return { range, log: true, ticks: ticksFor(...range), format: (t) => String(Number(t.toPrecision(2))) }; }
  const pad = 0.06 * (hi - lo || Math.abs(hi) || 1), share = SHARES.includes(measure);
  return { range: [Math.max(0, lo - pad), share ? Math.min(1, hi + pad) : hi + pad], format: share ? (t) => `${Number((100 * t).toPrecision(3))} %` : undefined };
}

function pictureOf(entries, seen, front, s, families, width, toMark) {
  const of = (measure) => seen.map((i) => entries[i].values[measure][0]), edge = seen.flatMap((i) => entries[i].values[s.judge]);
  const x = axisOf(of(s.cost), s.cost, s.cost !== "bits"), y = axisOf(edge, s.judge, !SHARES.includes(s.judge));
  const { root: node, layer, box, sx, sy } = plot({ width, height: Math.max(280, Math.min(400, 0.5 * width)), margin: { left: 54, right: 14, top: 34 }, title: `${AXES[s.judge]} against ${AXES[s.cost]}`, x: { ...x, label: AXES[s.cost] }, y,
    alt: `${AXES[s.judge]} against ${AXES[s.cost]}, ${seen.length} entries; not beaten: ${front.map((i) => entries[i].name).join(", ")}` });
  const at = (i) => [sx(entries[i].values[s.cost][0]), sy(entries[i].values[s.judge][0])], corners = [];
  front.forEach((i, k) => { const [px, py] = at(i); if (k) corners.push([px, corners.at(-1)[1]]); corners.push([px, py]); });
  if (corners.length) layer.append(svg("path", { d: linePath([...corners, [box.x1, corners.at(-1)[1]]]), class: "lb-k-line" }));
  for (const i of [...seen].sort((a, b) => (a === s.marked) - (b === s.marked))) {
    const e = entries[i], [px, py] = at(i), [, low, high] = e.values[s.judge], n = families.indexOf(e.family);
    if (e.seeds > 1) layer.append(svg("line", { x1: px, x2: px, y1: sy(low), y2: sy(high), class: "lb-k-whisker" }));
    layer.append(shapeAt(n, px, py, i === s.marked ? 7 : 4.6, { "data-i": i, class: `lb-click${e.budget === "paper" ? " lb-k-hollow" : ""}${i === s.marked ? " lb-k-big" : ""}`, onclick: () => toMark(i) }));
  }
  if (seen.includes(s.marked)) {
    const [px, py] = at(s.marked), right = px > (box.x0 + box.x1) / 2;
    layer.append(svg("text", { x: px + (right ? -12 : 12), y: Math.max(box.y1 + 12, py - 10), class: `lb-t-ink lb-halo${right ? " lb-end" : ""}` }, entries[s.marked].name));
  }
  return node;
}

export default { render };
