// The rounding player: when each weight's rounding is decided, and what deciding costs.
import { calm, chips, digits, dotAt, el, followWidth, linePath, percent, plot, root, select, slider, svg, textAt, tile } from "./dom.js";

const GLIDE = 900, STEP = 1600;                  // milliseconds a round: with motion, and for readers who asked for less of it
const MARKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];

function render({ model, el: host }) {
  const record = model.get("record"), last = record.rounds.length;
  const node = root("rounding", "Rounding player", model.get("about"),
    "When is each weight's rounding decided, and what does deciding cost? Every weight slides between the mark below (0) and the mark above (1) until it is made hard.");
  const at = (r) => momentOf(record, model.get("layer"), r);
  const set = (change) => { Object.entries(change).forEach(([k, v]) => model.set(k, v)); model.save_changes(); update(); };
  const go = (r) => { pause(); set({ round: Math.max(1, Math.min(last, r)) }); };

  const control = {
    layer: select({ label: "Layer", options: Object.keys(record.rounds[0].layers).map((n) => [n, n]), onchange: (v) => set({ layer: v }) }),
    round: slider({ label: "Round", min: 1, max: last, text: (v) => `${v} of ${last}`, oninput: go }),
  };
  const sign = el("span", { "aria-hidden": "true" }), word = el("span");
  const button = el("button", { type: "button", class: "lb-play", title: "Space plays and pauses; arrow keys move by one round", onclick: () => toggle() }, sign, word);
  const all = () => record.rounds.map((_, i) => at(i + 1));
  const firstOf = (test) => (all().find(test) ?? at(last)).r;
  const jumps = chips("Go to", [["first round", () => go(1)], ["half is decided", () => go(firstOf((m) => m.soft <= 0.5))],
    ["deciding costs most", () => go(all().reduce((a, b) => (b.cost > a.cost ? b : a)).r)], ["last round", () => go(last)]]);
  const tiles = { soft: tile("Soft, undecided"), flips: tile("Away from nearest"), loss: tile("Loss of the block, soft"), hard: tile("Loss if hardened now") };
  const picture = el("div", { class: "lb-main" }), places = el("div"), shares = el("div"), losses = el("div");
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls lb-r-controls" }, control.layer.node, control.round.node, button), jumps,
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)), picture, keyOf(),
    el("div", { class: "lb-row lb-three" }, places, shares, losses), readout);
  let timer = null, strip = null, drawn = "";

  function pause() {
    clearInterval(timer);
    timer = null;
    tellButton();
  }

  function toggle() {
    if (timer) return pause();
    if (model.get("round") >= last) set({ round: 1 });
    timer = setInterval(() => {
      if (!node.isConnected || model.get("round") >= last) return pause();
      set({ round: model.get("round") + 1 });
      if (model.get("round") >= last) pause();
    }, calm() ? STEP : GLIDE);
    tellButton();
  }

  function tellButton() {
    sign.textContent = timer ? "❚❚" : "▶";
    word.textContent = timer ? "Pause" : "Play";
    readout.setAttribute("aria-live", timer ? "off" : "polite");   // a screen reader hears the round that playing ends on
  }

  function keys(event) {
    const tag = event.target.tagName, move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === " " && tag === "INPUT") { event.preventDefault(); toggle(); }
    if (move && tag === "BUTTON") { event.preventDefault(); go(model.get("round") + move); }
  }

  function update() {
    const m = at(model.get("round"));
    control.layer.update(m.layer); control.round.update(m.r);
    tiles.soft.update(percent(m.soft), `of ${m.n.toLocaleString("en")} weights; hard: ${percent(1 - m.soft)}${m.dead ? ` (${percent(m.dead / m.n)} cannot matter)` : ""}`);
    tiles.flips.update(percent(m.flips), "of the integers, if hardened now");
    tiles.loss.update(digits(m.softLoss), "last steps of the round, on minibatches");
    tiles.hard.update(digits(m.hardLoss), `${signed(m.cost)} against soft; ${percent(m.hardLoss / record.start)} of the start's ${digits(record.start)}`);
    readout.textContent = `Round ${m.r} of ${last}, ${m.layer}: ${percent(m.soft)} of ${m.n.toLocaleString("en")} weights are soft, ${m.hard[0].toLocaleString("en")} are hard below and ${m.hard[1].toLocaleString("en")} hard above; ${percent(m.flips)} of the integers differ from nearest rounding. `
      + `The block's loss is ${digits(m.softLoss)} soft and ${digits(m.hardLoss)} if the rest were decided now. ${verdict(m, record, last)}`;
    const states = [...m.state].filter((s) => s === "s").length, away = m.away.filter(Boolean).length;
    Object.assign(node.dataset, { round: m.r, soft: m.soft, flips: m.flips, softLoss: m.softLoss, hardLoss: m.hardLoss, weights: m.n, stripSoft: states, stripAway: away, decided: decidedBy(record, m.layer, m.r).join(",") });
    draw(m);
  }

  function draw(m) {
    const width = picture.clientWidth;
    if (!width) return;
    if (drawn !== `${width} ${m.layer}`) {       // the strip stays and its markers move; the rest is drawn anew
      strip = stripOf(record, m.layer, width);
      picture.replaceChildren(strip.node);
      drawn = `${width} ${m.layer}`;
    }
    strip.update(m, m.r > 1 ? at(m.r - 1) : null);
    places.replaceChildren(placesPlot(m, m.r > 1 ? at(m.r - 1) : null, all(), places.clientWidth));
    shares.replaceChildren(sharesPlot(m, all(), shares.clientWidth, go));
    losses.replaceChildren(lossPlot(m, all(), record, losses.clientWidth, go));
  }

  host.append(node);
  node.addEventListener("keydown", keys);
  tellButton();
  update();
  const names = ["layer", "round"].map((k) => `change:${k}`);
  names.forEach((name) => model.on(name, update));
  const stop = followWidth(node, () => draw(at(model.get("round"))));
  return () => { pause(); stop(); names.forEach((name) => model.off(name, update)); };
}

const signed = (x) => `${x < 0 ? "−" : "+"}${digits(Math.abs(x))}`;

function momentOf(record, layer, r) {
  const one = record.rounds[r - 1], told = one.layers[layer], total = (list) => list.reduce((a, b) => a + b, 0);
  const away = told.strip.map((h, i) => told.state[i] !== "d" && (h > 0.5) !== (told.nearest[i] === "1"));
  return { ...told, r, layer, away, n: total(told.histogram) + total(told.hard) + told.dead,
    softLoss: one.soft_loss, hardLoss: one.hard_loss, cost: one.hard_loss - one.soft_loss };
}

// The round in which each weight of the strip was made hard; 0: cannot matter, "": not yet.
function decidedBy(record, layer, r) {
  const states = record.rounds.slice(0, r).map((one) => one.layers[layer].state);
  return [...states[0]].map((s, i) => (s === "d" ? 0 : states.findIndex((of) => of[i] === "h") + 1 || ""));
}

function verdict(m, record, last) {
  if (m.r === last) return `What is still soft now falls to its nearer side; the best decided state has a loss of ${digits(record.end)}, and that one is kept.`;
  return m.cost > 0 ? `Deciding now would cost ${digits(m.cost)}; the soft weights still have rounds in which to make up for it.` : "Deciding now costs nothing that the minibatches can tell.";
}

// What the signs mean, each drawn as in the strip.
function keyOf() {
  const item = (words, ...drawing) => el("span", { class: "lb-r-key" }, svg("svg", { width: 16, height: 14, viewBox: "-8 -7 16 14", "aria-hidden": "true" }, ...drawing), words);
  const box = (cls, rx) => svg("rect", { x: -4.5, y: -4.5, width: 9, height: 9, rx, class: cls });
  return el("p", { class: "lb-note lb-r-keys" }, item("soft", box("lb-r-mark lb-r-soft", 4.5)), item("hard", box("lb-r-mark", 0)),
    item("away from its nearest mark", box("lb-r-mark lb-r-away", 0), svg("circle", { r: 1.6, class: "lb-r-dot" })),
    item("nearest mark", svg("line", { x1: -6, x2: 6, y1: 0, y2: 0, class: "lb-r-nearest" })),
    item("the round before", box("lb-r-ghost", 4.5)), item("cannot matter: clipped", svg("line", { y1: -7, y2: 7, x1: 0, x2: 0, class: "lb-r-track lb-r-dead" })));
}

// One track a weight, from 0 to 1; the markers stay and glide when the round changes.
function stripOf(record, layer, width) {
  const first = momentOf(record, layer, 1), count = first.strip.length, left = width < 560 ? 24 : 78;
  const perRow = width >= 860 ? 48 : width >= 430 ? 24 : 16, rows = Math.ceil(count / perRow), cell = (width - left - 4) / Math.min(perRow, count);
  const track = 84, pitch = track + 40, top = 34, height = top + rows * pitch - 6, size = Math.min(11, cell - 5);
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" }, textAt(0, 14, `${width < 430 ? "" : "The layer's first "}${count} weights, one a track`, "lb-t-title"));
  const spots = first.strip.map((_, i) => ({ x: left + cell * ((i % perRow) + 0.5), y0: top + pitch * Math.floor(i / perRow) + track }));
  for (let row = 0; row < rows; row++) {
    const y = top + row * pitch;
    const names = left > 40 ? ["mark above", "mark below", "decided in"] : ["1", "0", "in"];
    [y + 4, y + track + 4, y + track + 22].forEach((place, i) => node.append(textAt(left - 8, place, names[i], "lb-t lb-end")));
  }
  const parts = spots.map(({ x, y0 }, i) => {
    const dead = first.state[i] === "d", up = first.nearest[i] === "1" ? track : 0;
    node.append(svg("line", { x1: x, x2: x, y1: y0, y2: y0 - track, class: `lb-r-track${dead ? " lb-r-dead" : ""}` }));
    const when = textAt(x, y0 + 22, "", "lb-t lb-mid");
    node.append(when);
    if (dead) return null;
    const ghost = svg("rect", { x: x - size / 2, y: -size / 2, width: size, height: size, rx: size / 2, class: "lb-r-ghost" });
    const mark = svg("rect", { x: x - size / 2, y: -size / 2, width: size, height: size }), dot = svg("circle", { cx: x, cy: 0, r: 1.8 });
    const trail = svg("line", { x1: x, x2: x, class: "lb-r-trail" }), body = svg("g", { class: "lb-r-body" }, mark, dot);
    node.append(svg("line", { x1: x - cell * 0.36, x2: x + cell * 0.36, y1: y0 - up, y2: y0 - up, class: "lb-r-nearest" }), trail, ghost, body);
    return { when, ghost, mark, dot, trail, body };
  });
  const update = (m, before) => {
    const when = decidedBy(record, layer, m.r);
    parts.forEach((part, i) => {
      if (!part) return;
      const y = (h) => spots[i].y0 - h * track, hard = m.state[i] === "h", old = before?.strip[i] ?? m.strip[i];
      part.body.style.transform = `translateY(${y(m.strip[i]).toFixed(2)}px)`;
      part.ghost.style.transform = `translateY(${y(old).toFixed(2)}px)`;
      part.ghost.style.opacity = Math.abs(old - m.strip[i]) < 0.005 ? 0 : 1;
      part.trail.setAttribute("y1", y(old).toFixed(2)); part.trail.setAttribute("y2", y(m.strip[i]).toFixed(2));
      part.mark.style.rx = `${hard ? 0 : size / 2}px`;
      part.mark.setAttribute("class", `lb-r-mark${hard ? "" : " lb-r-soft"}${m.away[i] ? " lb-r-away" : ""}`);
      part.dot.setAttribute("class", `lb-r-dot${hard ? "" : " lb-r-soft"}${m.away[i] ? "" : " lb-r-none"}`);
      part.when.textContent = String(when[i]);
      part.when.setAttribute("class", `lb-mid ${when[i] === m.r ? "lb-t-ink" : "lb-t"}`);
    });
    const n = (test) => [...m.state].filter(test).length;
    node.setAttribute("aria-label", `strip of ${count} weights after round ${m.r}: ${n((s) => s === "s")} soft, ${n((s) => s === "h")} hard, ${m.away.filter(Boolean).length} away from their nearest mark, ${when.filter((w) => w === m.r).length} decided in this round`);
  };
  return { node, update };
}

// Ticks of a square-root axis up to a share, at least 16 pixels apart.
function rootTicks(most, pixels) {
  const kept = [];
  for (const t of MARKS.filter((v) => v <= most * 1.001)) if (!kept.length || Math.sqrt(t / most) * pixels - Math.sqrt(kept.at(-1) / most) * pixels >= 16) kept.push(t);
  return kept.map(Math.sqrt);
}

const asPercent = (v) => `${Number((100 * v * v).toPrecision(3))} %`;

// The line under a plot's title: what each colour is.
const under = (...parts) => svg("text", { x: 0, y: 31, class: "lb-t" }, ...parts.map(([words, cls]) => svg("tspan", { class: cls }, words)));

// Where the soft ones stand, with a tower at each end for the hard ones.
function placesPlot(m, before, all, width) {
  const most = Math.max(...all.flatMap((o) => [...o.histogram, ...o.hard].map((c) => c / o.n))) * 1.3;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 226, title: "Where all weights stand", margin: { left: 44, right: 10, top: 46 },
    x: { range: [-0.15, 1.15], ticks: [0, 0.25, 0.5, 0.75, 1], label: "h, from mark below to mark above" }, y: { range: [0, Math.sqrt(most)], ticks: rootTicks(most, 140), format: asPercent },
    alt: `histogram of h: ${m.hard[0]} hard below, ${m.hard[1]} hard above; soft in 20 bins from 0 to 1: ${m.histogram.join(", ")}` });
  const bar = (x0, x1, count, cls) => layer.append(svg("rect", { x: (sx(x0) + 0.75).toFixed(1), width: Math.max(1, sx(x1) - sx(x0) - 1.5).toFixed(1), y: sy(Math.sqrt(count / m.n)).toFixed(1), height: Math.max(0, box.y0 - sy(Math.sqrt(count / m.n))).toFixed(1), class: cls }));
  m.histogram.forEach((count, i) => bar(i / 20, (i + 1) / 20, count, "lb-r-bar"));
  [[-0.12, -0.03], [1.03, 1.12]].forEach(([x0, x1], i) => bar(x0, x1, m.hard[i], "lb-r-tower"));
  if (before) {
    const level = (count) => sy(Math.sqrt(count / before.n)), line = (x0, x1, count) => [[sx(x0), level(count)], [sx(x1), level(count)]];
    layer.append(svg("path", { d: linePath(before.histogram.flatMap((count, i) => line(i / 20, (i + 1) / 20, count))), class: "lb-r-before" }),
      ...[[-0.12, -0.03], [1.03, 1.12]].map(([x0, x1], i) => svg("path", { d: linePath(line(x0, x1, before.hard[i])), class: "lb-r-before" })));
  }
  node.append(under(["share of the layer's weights, square-root scale", "lb-t"]));
  const high = (i) => Math.min(box.y0 - 6, sy(Math.sqrt(m.hard[i] / m.n)) - 5);
  layer.append(textAt(sx(-0.12), high(0), `hard ${percent(m.hard[0] / m.n)}`, "lb-t-ink lb-halo"), textAt(sx(1.12), high(1), `hard ${percent(m.hard[1] / m.n)}`, "lb-t-ink lb-end lb-halo"),
    textAt(sx(0.5), sy(Math.sqrt(Math.max(...m.histogram.slice(5, 15)) / m.n)) - 7, `soft ${percent(m.soft)}`, "lb-t-blue lb-mid lb-halo"));
  return node;
}

// A place to click or touch for every round.
function roundsToChoose(layer, { box, sx }, all, go) {
  const half = all.length > 1 ? (sx(2) - sx(1)) / 2 : 20;
  all.forEach(({ r }) => layer.append(svg("rect", { x: (sx(r) - half).toFixed(1), y: box.y1, width: (2 * half).toFixed(1), height: box.y0 - box.y1, fill: "transparent", class: "lb-click", onclick: () => go(r) })));
}

const roundTicks = (n, width) => { const every = Math.ceil(n / Math.max(2, Math.floor(width / 34))); return Array.from({ length: n }, (_, i) => i + 1).filter((r) => (r - 1) % every === 0); };
const roundRange = (n) => [0.6, Math.max(n, 2) + 0.4];

function sharesPlot(m, all, width, go) {
  const axes = plot({ width, height: 226, title: "When it is decided", margin: { left: 44, right: 10, top: 46 }, x: { range: roundRange(all.length), label: "round (click to choose)", ticks: roundTicks(all.length, width - 50) },
    y: { range: [0, 1], ticks: rootTicks(1, 140), format: asPercent }, alt: `soft share ${percent(m.soft)} and flips ${percent(m.flips)} after round ${m.r}` });
  const { root: node, layer, box, sx, sy } = axes, points = (key) => all.map((o) => [sx(o.r), sy(Math.sqrt(o[key]))]);
  layer.append(svg("line", { x1: sx(m.r), x2: sx(m.r), y1: box.y0, y2: box.y1, class: "lb-r-now" }));
  layer.append(svg("path", { d: linePath(points("soft")), class: "lb-r-blue" }), svg("path", { d: linePath(points("flips")), class: "lb-r-red" }));
  layer.append(dotAt(sx(m.r), sy(Math.sqrt(m.soft)), 5, "lb-r-at lb-r-softdot"), dotAt(sx(m.r), sy(Math.sqrt(m.flips)), 5, "lb-r-at lb-r-harddot"));
  node.append(under(["soft", "lb-t-blue"], [", ", "lb-t"], ["away from nearest (dashed)", "lb-t-red"], [width < 290 ? "" : ", √ scale", "lb-t"]));
  roundsToChoose(layer, axes, all, go);
  return node;
}

function lossPlot(m, all, record, width, go) {
  const most = Math.max(record.start, ...all.flatMap((o) => [o.softLoss, o.hardLoss])) * 1.06, least = Math.min(record.start, ...all.flatMap((o) => [o.softLoss, o.hardLoss]));
  const log = least > 0 && most > 40 * least;    // only where a straight axis would hide the smaller loss
  const axes = plot({ width, height: 226, title: "What deciding costs", margin: { left: 44, right: 10, top: 46 }, x: { range: roundRange(all.length), label: "round (click to choose)", ticks: roundTicks(all.length, width - 54) },
    y: { range: [log ? least / 1.5 : 0, most], log }, alt: `loss after round ${m.r}: ${digits(m.softLoss)} soft, ${digits(m.hardLoss)} if hardened now; start ${digits(record.start)}` });
  const { root: node, layer, box, sx, sy } = axes, points = (key) => all.map((o) => [sx(o.r), sy(o[key])]);
  const soft = points("softLoss"), hard = points("hardLoss"), best = all.find((o) => o.hardLoss === record.end);
  layer.append(svg("path", { d: `${linePath(hard)}${linePath([...soft].reverse()).replace("M", "L")}Z`, class: "lb-r-gap" }),
    svg("line", { x1: box.x0, x2: box.x1, y1: sy(record.start), y2: sy(record.start), class: "lb-r-start" }), svg("line", { x1: sx(m.r), x2: sx(m.r), y1: box.y0, y2: box.y1, class: "lb-r-now" }));
  layer.append(svg("path", { d: linePath(hard), class: "lb-r-red" }), svg("path", { d: linePath(soft), class: "lb-r-blue" }));
  layer.append(svg("line", { x1: sx(m.r), x2: sx(m.r), y1: sy(m.softLoss), y2: sy(m.hardLoss), class: "lb-r-cost" }), dotAt(sx(m.r), sy(m.softLoss), 5, "lb-r-at lb-r-softdot"), dotAt(sx(m.r), sy(m.hardLoss), 5, "lb-r-at lb-r-harddot"));
  node.append(under(["soft", "lb-t-blue"], [", ", "lb-t"], ["if hardened now (dashed)", "lb-t-red"], [", start (dotted)", "lb-t"]));
  if (best) layer.append(textAt(sx(best.r), sy(best.hardLoss) + 19, "kept ▴", "lb-t lb-t-ink lb-end lb-halo"));
  roundsToChoose(layer, axes, all, go);
  return node;
}

export default { render };
