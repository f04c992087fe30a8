// The composer: menus of choices, the rules that say which go together, and where each combination was measured to be.
import { decades, digits, el, followWidth, linePath, plot, root, select, slider, svg, textAt } from "./dom.js";

const fits = (picked, wanted) => Object.entries(wanted).every(([kind, options]) => options.includes(picked[kind]));
const broken = (rules, picked) => rules.filter((rule) => fits(picked, rule.when) && !fits(picked, rule.allow));
const concerns = (rule, kind) => kind in rule.when || kind in rule.allow;
const blocked = (rules, picked, kind, option) => broken(rules, { ...picked, [kind]: option }).filter((rule) => concerns(rule, kind)).map((rule) => rule.why);
const keyOf = (choices, picked) => choices.map(([kind]) => picked[kind]).join("|");

function everyOne(choices) {                     // all combinations, in menu order, the last kind running fastest
  return choices.reduce((some, [kind, options]) => some.flatMap((one) => options.map(([option]) => ({ ...one, [kind]: option }))), [{}]);
}

// The legal combinations that differ least from what is picked; those that keep the last choice first.
function nearest(choices, legal, picked, kept, most = 3) {
  const away = (one) => choices.filter(([kind]) => one[kind] !== picked[kind]).map(([kind]) => kind);
  const ranked = legal.map((one) => ({ one, changed: away(one) })).sort((a, b) => a.changed.includes(kept) - b.changed.includes(kept) || a.changed.length - b.changed.length);
  return ranked.filter((r) => r.changed.length === ranked[0].changed.length && !r.changed.includes(kept)).slice(0, most);
}

const bitsOf = (p) => `${p.bits.toFixed(2)}\u00a0bits`;
const spread = (p) => (p.seeds > 1 ? `${digits(p.kl)} (${p.seeds}\u00a0seeds, ${digits(p.low)} to ${digits(p.high)})` : digits(p.kl));
const KINDS = [["method", "single method"], ["combination", "combination"], ["yours", "run in this kernel"]];

function render({ model, el: host }) {
  const [choices, rules, known, base, defaults] = ["choices", "rules", "known", "base", "defaults"].map((k) => model.get(k));
  const every = everyOne(choices), legal = every.filter((one) => !broken(rules, one).length), kinds = choices.map(([kind]) => kind);
  let last = kinds[0], shown = null, wide = false;
  const node = root("composer", "Composer", model.get("about"),
    "Pick one of each. A struck option breaks a rule beside your other choices: hover or focus it to read why, or pick it and be told what else would have to change.");
  const set = (picked, kind) => { last = kind ?? last; model.set("picked", picked); model.save_changes(); };
  const groups = choices.map(([kind, options]) => menu(kind, options, (option) => set({ ...model.get("picked"), [kind]: option }, kind), (option) => { shown = option && [kind, option]; tell(); }));
  const hint = el("p", { class: "lb-co-hint" }), verdict = el("div", { class: "lb-co-verdict", role: "status", "aria-live": "polite" });
  const papers = el("div", { class: "lb-chips lb-co-papers", role: "group", "aria-label": "Published methods" }, el("span", { class: "lb-name" }, "Published"));
  for (const [name, key] of model.get("published")) papers.append(el("button", { type: "button", onclick: () => set(ofKey(key)) }, name));
  const limit = slider({ label: "At most, honest bits", min: 1.5, max: 4.5, step: 0.01, text: (v) => `${v.toFixed(2)} bits a weight`, oninput: (v) => { model.set("limit", v); model.save_changes(); } });
  const range = select({ label: "Plot", options: [["near", "near this limit"], ["all", "everything"]], onchange: (v) => { wide = v === "all"; update(); } });
  const picture = el("div"), ranks = el("div"), readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(papers, el("div", { class: "lb-co-menus" }, ...groups.map((g) => g.node)), hint, verdict,
    el("div", { class: "lb-controls lb-co-controls" }, limit.node, range.node), el("div", { class: "lb-row lb-co-both" }, picture, ranks), readout);
  const ofKey = (key) => Object.fromEntries(kinds.map((kind, i) => [kind, key.split("|")[i]]));

  function tell() {                              // what the option under the pointer is, and why it is impossible
    const picked = model.get("picked"), [kind, option] = shown ?? [last, picked[last]], why = blocked(rules, picked, kind, option);
    const line = choices.find(([k]) => k === kind)[1].find(([o]) => o === option)?.[1] ?? "";
    hint.replaceChildren(el("b", {}, `${kind}: ${option}`), ` · ${line}`, why.length ? el("span", { class: "lb-co-why" }, ` ${why.join(" ")}`) : "");
  }

  function update() {
    const picked = model.get("picked"), bad = broken(rules, picked), name = known[keyOf(choices, picked)];
    groups.forEach((g) => g.update(picked, rules));
    papers.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === name)));
    limit.update(model.get("limit"));
    range.update(wide ? "all" : "near");
    tell();
    const fixes = bad.length ? nearest(choices, legal, picked, last) : [];
    verdict.className = `lb-co-verdict ${bad.length ? "lb-co-bad" : "lb-co-good"}`;
    verdict.replaceChildren(el("p", {}, el("b", {}, bad.length ? "✕ Not legal." : "✓ Legal."), ` ${bad.length ? bad.map((r) => r.why).join(" ") : name ? `This is ${name}.` : "No paper of this kit has it."}`),
      bad.length ? el("p", { class: "lb-co-fixes" }, "Nearest legal: ", ...fixes.map(({ one, changed }) => el("button", { type: "button", onclick: () => set(one) }, changed.map((k) => `${k} → ${one[k]}`).join(", ")))) : el("code", {}, codeOf(picked, base, defaults)));
    const all = model.get("points").filter((p) => p.activations === picked.activations), here = ofPicked(all, picked, name);
    ranks.replaceChildren(tableOf(all, here, model.get("limit")));
    readout.textContent = readoutOf(all, here, model.get("limit"), legal.length, every.length);
    Object.assign(node.dataset, { key: keyOf(choices, picked), legal: String(!bad.length), name: name ?? "", why: bad.map((r) => r.why).join("\n"), count: legal.length,
      struck: choices.flatMap(([kind, options]) => options.filter(([o]) => blocked(rules, picked, kind, o).length).map(([o]) => `${kind}=${o}`)).join("\n"), here: here.length, points: all.length });
    draw(all, here);
  }

  const isHere = (p, picked, name) => p.key === keyOf(choices, picked) || Boolean(name && !p.key && (p.family === name || p.family.startsWith(`${name}+`)) && p.nominal[0] === base.bits && p.nominal[1] === String(base.group ?? "None"));
  const ofPicked = (all, picked, name) => {      // points of these very choices, and the best variant of the published method
    const found = all.filter((p) => isHere(p, picked, name)), variants = found.filter((p) => !p.key).sort((a, b) => a.kl - b.kl);
    return [...found.filter((p) => p.key), ...variants.slice(0, 1)];
  };
  const draw = (all, here) => { if (picture.clientWidth) picture.replaceChildren(plotOf(all, here, model.get("limit"), wide, picture.clientWidth, (p) => p.key && set(ofKey(p.key)))); };
  node.dataset.map = every.map((one) => (broken(rules, one).length ? "0" : "1")).join("");
  host.append(node);
  update();
  const watched = ["picked", "points", "limit"].map((k) => `change:${k}`);
  watched.forEach((name) => model.on(name, update));
  const stop = followWidth(node, update);
  return () => { stop(); watched.forEach((name) => model.off(name, update)); };
}

// One kind of choice: radio buttons, one below the other.
function menu(kind, options, choose, show) {
  const group = `lb-co-${kind}-${Math.random().toString(36).slice(2)}`;
  const items = options.map(([option]) => {
    const input = el("input", { type: "radio", name: group, value: option, onchange: () => choose(option), onfocus: () => show(option), onblur: () => show(null) });
    const why = el("span", { class: "lb-co-hidden" });
    const node = el("label", { class: "lb-co-item", onmouseenter: () => show(option), onmouseleave: () => show(null) }, input, el("span", { class: "lb-co-word" }, option), why);
    return { option, input, node, why };
  });
  const node = el("fieldset", { class: "lb-co-menu" }, el("legend", { class: "lb-name" }, kind), ...items.map((i) => i.node));
  const update = (picked, rules) => items.forEach(({ option, input, node: label, why }) => {
    const reasons = blocked(rules, picked, kind, option), mine = picked[kind] === option;
    input.checked = mine;
    label.className = `lb-co-item${mine ? " lb-co-mine" : ""}${reasons.length ? " lb-co-struck" : ""}`;
    label.title = reasons.join(" ");
    why.textContent = reasons.length ? ` (impossible here: ${reasons.join(" ")})` : "";
  });
  return { node, update };
}

function codeOf(picked, base, defaults) {        // as one would type it: what is not the default
  const all = { ...picked, ...base }, same = (v, d) => (v === null ? "none" : String(v)) === d;
  const quoted = (k, v) => (k in base || k === "activations" ? (v === null ? "None" : typeof v === "string" && k in base ? `"${v}"` : v) : `"${v}"`);
  return `lb.Recipe(${Object.entries(all).filter(([k, v]) => !same(v, defaults[k])).map(([k, v]) => `${k}=${quoted(k, v)}`).join(", ")})`;
}

const within = (all, limit) => all.filter((p) => p.bits <= limit + 1e-9).sort((a, b) => a.kl - b.kl);

function tableOf(all, here, limit, most = 9) {
  const ranked = within(all, limit).map((p, i) => ({ p, rank: i + 1 })), always = (p) => here.includes(p) || p.kind === "yours";
  const rows = ranked.filter(({ p, rank }) => rank <= most || always(p)).slice(0, most + 6);
  const table = el("table", { class: "lb-co-table" }, el("caption", {}, `The table: at most ${limit.toFixed(2)} bits a weight`),
    el("thead", {}, el("tr", {}, ...["", "name", "bits", "KL, nats"].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, ...rows.map(({ p, rank }) => el("tr", { class: `lb-co-${p.kind}${here.includes(p) ? " lb-co-now" : ""}` }, el("td", {}, String(rank)),
      el("th", { scope: "row" }, markOf(p.kind), ` ${p.name}`, el("span", { class: "lb-co-note" }, p.note)), el("td", {}, p.bits.toFixed(2)), el("td", { title: spread(p) }, digits(p.kl))))));
  return rows.length ? table : el("p", { class: "lb-note" }, "Nothing was measured here yet.");
}

function readoutOf(all, here, limit, n, of) {
  const ranked = within(all, limit), told = KINDS.map(([kind, words]) => [words, ranked.find((p) => p.kind === kind)]).filter(([, p]) => p).map(([words, p]) => `best ${words}: ${p.name}, KL ${spread(p)} at ${bitsOf(p)}`);
  const mine = here.length ? `Measured of what is picked: ${here.map((p) => `${p.name} (${p.note}), KL ${spread(p)} at ${bitsOf(p)}`).join("; ")}.` : "What is picked was not measured here.";
  return `${n} of ${of} combinations are legal. ${mine}${told.length ? ` At most ${limit.toFixed(2)} bits, ${told.join("; ")}.` : ""}`;
}

const SHAPES = { method: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, combination: (x, y, r) => `M${x},${y - 1.5 * r}l${1.5 * r},${1.5 * r}l${-1.5 * r},${1.5 * r}l${-1.5 * r},${-1.5 * r}Z`, yours: (x, y, r) => `M${x},${y - 1.6 * r}L${x + 0.5 * r},${y - 0.5 * r}L${x + 1.6 * r},${y - 0.4 * r}L${x + 0.75 * r},${y + 0.4 * r}L${x + r},${y + 1.5 * r}L${x},${y + 0.85 * r}L${x - r},${y + 1.5 * r}L${x - 0.75 * r},${y + 0.4 * r}L${x - 1.6 * r},${y - 0.4 * r}L${x - 0.5 * r},${y - 0.5 * r}Z` };
const markAt = (kind, x, y, r, cls = "") => svg("path", { d: SHAPES[kind](Number(x.toFixed(1)), Number(y.toFixed(1)), r), class: `lb-co-point lb-co-p-${kind} ${cls}` });
const markOf = (kind) => svg("svg", { width: 13, height: 13, viewBox: "0 0 13 13", role: "img", "aria-label": KINDS.find(([k]) => k === kind)[1] }, markAt(kind, 6.5, 6.5, 4));

function front(points) {                         // what no other point beats at no more bits, to a thousandth: files are rounded
  const kept = [], at = (p) => Math.round(1000 * p.bits);
  for (const p of [...points].sort((a, b) => at(a) - at(b) || a.kl - b.kl)) if (!kept.length || p.kl < kept.at(-1).kl) kept.push(p);
  return kept;
}

const TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

// KL against honest bits: every point with its spread, the front of the single methods, what is picked in a ring.
function plotOf(all, here, limit, wide, width, pick) {
  const X = wide ? [Math.min(1.5, ...all.map((p) => p.bits)) - 0.1, Math.max(4.5, ...all.map((p) => p.bits)) + 0.1] : [limit - 0.45, limit + 0.45];
  const seen = all.filter((p) => p.bits >= X[0] && p.bits <= X[1]), kls = seen.flatMap((p) => [p.low, p.high]), low = Math.min(...kls), high = Math.max(...kls, low * 1.5);
  const top = wide ? high : Math.min(high, Math.max(8 * low, ...here.map((p) => p.high))), Y = kls.length ? [low / 1.25, top * 1.2] : [0.1, 10], above = seen.filter((p) => p.kl > Y[1]).length;
  const steps = Y[1] / Y[0] > 3 ? TICKS.filter((t) => t >= Y[0] && t <= Y[1]) : undefined;
  const { root: node, layer, box, sx, sy } = plot({ width, height: 430, title: "KL against honest bits", margin: { top: 46, left: 44 }, x: { range: X, label: "bits a weight, everything counted" }, y: { range: Y, log: true, ticks: steps ?? decades(Y[0] / 10, Y[1]).filter((t) => t >= Y[0]) },
    alt: `KL against honest bits: ${front(seen).map((p) => `${p.name} ${bitsOf(p)} KL ${digits(p.kl)}`).join("; ")}` });
  node.append(textAt(0, 31, `nats a token, logarithmic; lower is better${above ? `; ${above} settings lie above` : ""}`));
  layer.append(svg("rect", { x: box.x0, y: box.y1, width: Math.max(0, sx(Math.min(limit, X[1])) - box.x0), height: box.y0 - box.y1, class: "lb-co-within" }), svg("line", { x1: sx(limit), x2: sx(limit), y1: box.y1, y2: box.y0, class: "lb-co-limit" }));
  const edge = front(all.filter((p) => p.kind === "method")).filter((p) => p.bits <= X[1]), from = edge.filter((p) => p.bits < X[0]).at(-1), stairs = edge.filter((p) => p.bits >= X[0] && p.kl <= Y[1]);
  let line = from && from.kl <= Y[1] ? [[box.x0, sy(from.kl)]] : [];
  for (const p of stairs) line = [...line, ...(line.length ? [[sx(p.bits), line.at(-1)[1]]] : []), [sx(p.bits), sy(p.kl)]];
  if (line.length) layer.append(svg("path", { d: linePath([...line, [box.x1, line.at(-1)[1]]]), class: "lb-co-front" }));
  for (const kind of ["method", "combination", "yours"]) for (const p of seen.filter((q) => q.kind === kind && q.kl <= Y[1])) {
    const x = sx(p.bits), y = sy(p.kl), mark = markAt(kind, x, y, kind === "method" ? 4 : 5, p.key ? "lb-click" : "");
    mark.append(svg("title", {}, `${p.name}, ${p.note}: ${bitsOf(p)}, KL ${spread(p)}`));
    mark.addEventListener("click", () => pick(p));
    if (p.seeds > 1) layer.append(svg("line", { x1: x, x2: x, y1: sy(p.low), y2: sy(Math.min(p.high, Y[1])), class: "lb-co-spread" }));
    layer.append(mark);
  }
  here.filter((p) => seen.includes(p)).forEach((p) => layer.append(svg("circle", { cx: sx(p.bits), cy: sy(p.kl), r: 10, class: "lb-co-ring" })));
  labels(layer, box, [...here.filter((p) => seen.includes(p)), ...[...seen].filter((p) => p.kind !== "method").sort((a, b) => a.kl - b.kl), ...stairs], sx, sy);
  return node;
}

// Names beside their points, as many as find room.
function labels(layer, box, points, sx, sy) {
  const taken = [];
  for (const p of new Set(points)) {
    const words = p.name.length > 44 ? `${p.name.slice(0, 42)}…` : p.name, w = 6.3 * words.length, x = sx(p.bits), y = sy(p.kl) - 5, right = x + 14 + w < box.x1, at = right ? x + 13 : x - 13 - w;
    if (at < box.x0 + 2 || taken.some((t) => Math.abs(t.y - y) < 15 && at < t.x + t.w && t.x < at + w)) continue;
    taken.push({ x: at, y, w });
    layer.append(textAt(right ? x + 13 : x - 13, y, words, `${p.kind === "method" ? "lb-t" : "lb-t-ink"} lb-halo${right ? "" : " lb-end"}`));
  }
}

export default { render };
