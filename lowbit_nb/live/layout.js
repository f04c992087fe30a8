// The layout explorer: which lane loads which word, and which lane unpacks which plane into which operand register.
import { chips, digits, el, followWidth, root, select, slider, svg, textAt, tile } from "./dom.js";
import { PLANE, bitsAt, columnOf, formulaOf, hex, linesOf, moves, partOf, placeOf, raised, seq, spread, sumOf, viewOf } from "./lanes.js";

const ROWS = 16;
const ORDERS = [["planar", "planar (this kit)"], ["interleaved", "interleaved (GPTQ)"]];
const NUMBERS = [["int8", "int8, four words"], ["fp16", "fp16, two words"]];
const MORE = { "the other order": (at) => ({ order: at.order === "planar" ? "interleaved" : "planar" }), "the word beside it": (at) => ({ word: at.word ^ 1 }),
  "eight rows down": (at) => ({ row: (at.row + 8) % ROWS }), "3 bits: two words, one lane": () => ({ bits: 3, order: "planar" }) };

function render({ model, el: host }) {
  const table = model.get("table"), words = model.get("words"), copiers = model.get("copiers"), names = ["bits", "order", "number", "row", "word", "plane"];
  const node = root("layout", "Layout explorer", model.get("about"), "Which lane of a warp (32 GPU threads) loads which word, and which lane unpacks which plane into which operand register?");
  const last = ({ bits, number }) => table[number].bits[bits].planes.length - 1;
  let peek = null, view = null;                                      // what the pointer is over, until it leaves; what is shown
  const chosen = () => { const at = Object.fromEntries(names.map((k) => [k, model.get(k)])); return { ...at, plane: Math.min(at.plane, last(at)) }; };
  const set = (change) => {
    peek = null;
    const next = { ...chosen(), ...change };
    next.plane = Math.min(next.plane, last(next));
    names.forEach((k) => model.set(k, next[k]));
    model.save_changes();
    update();
  };
  const look = (change) => { if (JSON.stringify(change) !== JSON.stringify(peek)) { peek = change; update(); } };
  const hand = { look, set }, widthsOf = (b) => table.int8.bits[b].widths;
  const control = {
    bits: select({ label: "Bits a code", options: Object.keys(words).map((b) => [b, widthsOf(b).length > 1 ? `${b} bits = ${widthsOf(b).join(" + ")}` : `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) }),
    order: select({ label: "Order of the columns", options: ORDERS, onchange: (order) => set({ order }) }),
    number: select({ label: "What is multiplied", options: NUMBERS, onchange: (number) => set({ number }) }),
    row: slider({ label: "Row", min: 0, max: ROWS - 1, text: String, oninput: (row) => set({ row }) }),
    word: slider({ label: "Word", min: 0, max: PLANE - 1, text: String, oninput: (word) => set({ word }) }),
    plane: slider({ label: "Field (plane)", min: 0, max: 15, text: String, oninput: (plane) => set({ plane }) }),
  };
  const tiles = { column: tile("Column"), lane: tile("Unpacked by"), needed: tile("Needed by"), count: tile("Instructions a weight") };
  const word = el("div", { class: "lb-l-words" }), strip = el("div", { class: "lb-main" }), steps = el("div"), costs = el("div"), grid = el("div");
  const readout = el("p", { class: "lb-l-now", role: "status", "aria-live": "polite" }), note = el("p", { class: "lb-note lb-l-note" });
  node.append(el("div", { class: "lb-controls lb-l-controls" }, ...Object.values(control).map((c) => c.node)),
    chips("Try", Object.entries(MORE).map(([name, of]) => [name, () => set(of(chosen()))])),
    el("div", { class: "lb-tiles lb-4" }, ...Object.values(tiles).map((t) => t.node)), readout, word, strip,
    el("div", { class: "lb-row lb-l-both" }, el("div", {}, steps, costs), grid), note);

  function update() {
    view = viewOf({ ...chosen(), ...peek }, table, words, copiers);
    const { at, here, table: { counted, home } } = view;
    names.forEach((k) => control[k].update(at[k], k === "plane" ? { max: last(at) } : undefined));
    tiles.column.update(String(view.column), formulaOf(view));
    tiles.lane.update(`lane ${view.lane}`, `into operand register ${view.register}; copied by lane ${view.copier}`);
    tiles.needed.update(`lane ${view.needed}`, `${Math.round(100 * home[at.order])} % of the codes lie where they are needed`);
    tiles.count.update(counted.together.sum, `to unpack it, counted; ${counted.single.sum} one code after the other`);
    readout.replaceChildren(...storyOf(view));
    note.textContent = whyOf(view);
    Object.assign(node.dataset, { ...at, column: view.column, lane: view.lane, register: view.register, place: view.place, copier: view.copier, needed: view.needed, code: view.code, pattern: view.pattern, value: view.value, here });
    draw();
  }

  function draw() {
    if (!word.clientWidth || !view) return;
    word.replaceChildren(...view.parts.map((part) => wordPicture(view, part, word.clientWidth, hand)));
    strip.replaceChildren(stripPicture(view, strip.clientWidth, hand));
    steps.replaceChildren(stepsPicture(view, steps.clientWidth));
    costs.replaceChildren(costsPicture(view, costs.clientWidth));
    grid.replaceChildren(gridPicture(view, grid.clientWidth, hand));
  }

  host.append(node);
  [word, strip, grid].forEach((part) => part.addEventListener("pointerleave", () => look(null)));
  update();
  names.forEach((name) => model.on(`change:${name}`, update));
  const stop = followWidth(node, draw);
  return () => { stop(); names.forEach((name) => model.off(`change:${name}`, update)); };
}

const signed = (x) => String(x).replace("-", "−");

function storyOf(view) {
  const { at: { row, word }, parts, used, whole, size, pack, lane, register, copier, needed, column, code, here, pos, one, bias, pattern, value } = view;
  const shown = (words) => el("code", { class: "lb-code" }, words), quad = word - (word % 4), [{ group, piece }] = parts, which = pack === 2 ? `${group} and ${group + 1}` : `${group} to ${group + pack - 1}`;
  const step = ({ piece: p }, i) => {
    const moved = p.shift ? `(joined ${moves(p.shift)})` : "joined", taken = p.width === size ? moved : `(${moved} & ${hex(spread(p.mask, view), 8)})`;
    return [i ? ", then with the high bits " : "", shown(i ? `${taken} | the rest` : one ? `${taken} ${size === 16 ? "|" : "^"} ${hex(spread(one, view), 8)}` : taken.replace(/^\((.*)\)$/, "$1"))];
  };
  const out = [`Lane ${copier} of the warp that copies rows ${row & ~1} and ${row | 1} brings words ${quad} to ${quad + 3} of row ${row} (16 bytes) to shared memory. Lane ${lane} of the warp that multiplies row ${row} reads words ${which} there, joins their ${partOf(view, piece)} and frees ${pack === 2 ? "two" : "four"} weights at once: `, ...used.flatMap(step)];
  out.push(`. Word ${word}’s is `, shown(hex(pattern, size / 4)), ` = ${signed(value)}${pos || bias ? ` = ${sumOf(view)}` : ""}, in operand register ${register}. `);
  if (pos) out.push(`x of this plane was divided by 2${raised(pos)}, so it counts ${here}${bias ? ` ${bias > 0 ? "+" : "−"} ${Math.abs(bias) / 2 ** pos}` : ""}. `);
  if (bias) out.push(`The ${signed(bias)} times the sum of x as it is multiplied ${bias > 0 ? "is taken off" : "is made up for"} once a group. `);
  if (!whole) out.push(`The high bit lies elsewhere: bit ${parts[1].piece.bit} of 1-bit word ${parts[1].word}, with lane ${parts[1].lane}; the whole code is ${code}. `);
  out.push(needed === lane ? `Lane ${lane} is also the one that multiplies column ${column}: nothing moves.` : `But a step of neighbouring columns wants column ${column} in lane ${needed}: a shuffle from lane ${lane}.`);
  return out;
}

function whyOf({ at: { order }, table: { home }, step, pack }) {
  const share = `${Math.round(100 * home[order])} %`;
  if (order === "planar") return `Planar: in every plane the ${step} words of a step are ${step} neighbouring columns, so a lane that reads its ${pack} words has its weights of all planes: ${share} in place, no shuffle.`;
  return `Interleaved: the same lane reads the same words, but a word holds neighbouring columns, which belong to several lanes: ${share} are in place. The others have to be shuffled between lanes, or x has to be put into this order first.`;
}

// The 32 bits of one word, highest first; fields of one colour share a shift.
function wordPicture({ at, table: { planes }, parts }, { piece, i, word, plane, words, group }, width, { look, set }) {
  const n = 32 / piece.width, first = plane - (plane % n), bw = Math.min(36, (width - 4) / 32), top = 40, h = 26, height = top + h + 30, value = words[word - group];
  const x = (bit) => (31 - bit) * bw, fields = seq(n).map((j) => planes[first + j][i]), kinds = [...new Set(fields.map((p) => p.shift))].sort((a, b) => b - a), column = (j) => columnOf(at.order, word, first + j, piece.width);
  const what = parts.length > 1 ? (piece.low ? ", the high bit of each code" : ", the two low bits of each code") : "";
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `word ${word} of row ${at.row}, ${hex(value, 8)}: field ${plane % n} of ${n} is column ${column(plane % n)}, from bit ${piece.bit}, ${moves(piece.shift)}` });
  node.append(textAt(0, 14, width < (what ? 900 : 640) ? `Word ${word}${what}` : `Word ${word} of row ${at.row}${what}: ${n} fields, named by their columns; one colour, one shift`, "lb-t-title"));
  const wide = bw * piece.width, every = Math.ceil(30 / wide);
  fields.forEach((p, j) => {
    const left = x(p.bit + p.width - 1), on = first + j === plane, away = Math.abs(j - (plane % n));
    node.append(svg("rect", { x: (left + 0.8).toFixed(1), y: top, width: (wide - 1.6).toFixed(1), height: h, rx: 2, class: `lb-l-k lb-l-k${kinds.indexOf(p.shift) % 8}` }));
    if (bw > 7) for (let b = 0; b < p.width; b++) node.append(textAt(x(p.bit + b) + bw / 2, top + h / 2 + 4.5, String(bitsAt(value, p.bit + b, 1)), `lb-mid ${on ? "lb-t-ink" : "lb-t"}`));
    if (on || (j % every === 0 && away * wide >= 32)) node.append(textAt(Math.min(width - 14, Math.max(14, left + wide / 2)), top - 7, String(column(j)), `lb-mid lb-l-small ${on ? "lb-t-red" : "lb-t"}`));
  });
  const runs = fields.reduce((all, p) => { const run = all.at(-1); if (run && run[0].shift === p.shift && run[0].part === p.part) run.push(p); else all.push([p]); return all; }, []);
  runs.forEach((run) => {
    const room = wide * run.length, left = x(run.at(-1).bit + piece.width - 1), { shift } = run[0], said = [moves(shift), shift ? `${shift > 0 ? "≪" : "≫"}${Math.abs(shift)}` : "0"].find((t) => room > 6.4 * t.length + 8);
    node.append(svg("line", { x1: left + 1.5, x2: left + room - 1.5, y1: top + h + 5, y2: top + h + 5, class: `lb-l-brace lb-l-k${kinds.indexOf(shift) % 8}` }));
    if (said) node.append(textAt(left + room / 2, top + h + 19, said, "lb-t lb-mid lb-l-small"));
  });
  node.append(svg("rect", { x: x(piece.bit + piece.width - 1), y: top - 1, width: wide, height: h + 2, rx: 3, class: "lb-l-ring" }));
  const to = (event) => { const j = Math.max(0, Math.min(n - 1, Math.floor((32 - local(event, node)[0] / bw) / piece.width))); return i ? placeOf(at.order, column(j), planes[0][0].width) : { plane: first + j }; };
  node.append(cover(0, top, bw * 32, h, (e) => look(to(e)), (e) => set(to(e))));
  return node;
}

const local = (event, node) => { const box = node.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
const cover = (x, y, width, height, onpointermove, onclick) => svg("rect", { x, y, width, height, fill: "transparent", class: "lb-click", onpointermove, onclick });
const laneBox = (x, y, width, height, who, mine, words, colour = who) => [svg("rect", { x: (x + 0.7).toFixed(1), y: y + 0.7, width: (width - 1.4).toFixed(1), height: height - 1.4, rx: 2, class: `lb-l-lane lb-l-k${colour % 4}${mine ? " lb-l-mine" : ""}` }),
  width > 13 ? textAt(x + width / 2, y + height / 2 + 4, words ?? String(who), `lb-mid lb-l-small ${mine ? "lb-t-ink" : "lb-t"}`) : null].filter(Boolean);

// The 64 words of one row: who copies them, who unpacks them.
function stripPicture({ at: { row, word, bits }, lane, copier, lanes, copiers, step, pack }, width, { look, set }) {
  const side = width < 640 ? 0 : 92, cw = (width - side - 2) / PLANE, h = 23, rows = side ? [26, 56] : [40, 84], height = rows[1] + h + 22, unpacks = (w) => lanes[row][w % step][0];
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `the 64 words of row ${row}: lane ${copier} copies words ${word - (word % 4)} to ${word - (word % 4) + 3}, lane ${lane} unpacks words ${seq(PLANE).filter((w) => unpacks(w) === lane).join(", ")}` });
  node.append(textAt(0, 14, `The 64 words of row ${row}${bits === 3 && width > 430 ? ", the same for each part" : ""}: which lane?`, "lb-t-title"));
  [["copied by", 4, (w) => copiers[row][w], copier], ["unpacked by", pack, unpacks, lane]].forEach(([name, size, of, mine], i) => {
    node.append(textAt(0, side ? rows[i] + h / 2 + 4 : rows[i] - 5, name, "lb-t"));
    for (let w = 0; w < PLANE; w += size) node.append(...laneBox(side + w * cw, rows[i], cw * size, h, of(w), of(w) === mine));
    for (const y of [rows[i] - 3, rows[i] + h]) node.append(svg("rect", { x: (side + word * cw).toFixed(1), y, width: Math.max(4, cw).toFixed(1), height: 3, class: "lb-l-dot" }));
  });
  for (let w = 0; w < PLANE; w += 8) node.append(textAt(side + (w + 0.5) * cw, height - 5, w || side ? String(w) : "word 0", `lb-t lb-l-small ${w || side ? "lb-mid" : ""}`));
  if (side) node.append(textAt(0, height - 5, "word", "lb-t lb-l-small"));
  const to = (event) => ({ word: Math.min(PLANE - 1, Math.max(0, Math.floor((local(event, node)[0] - side) / cw))) });
  node.append(cover(side, rows[0], cw * PLANE, rows[1] + h - rows[0], (e) => look(to(e)), (e) => set(to(e))));
  return node;
}

// From neighbouring words to one operand register, 32 bits a line; bits of a word keep its colour.
function stepsPicture(view, width) {
  const { size, pack, place, at: { word }, table: { bias }, one } = view, lines = linesOf(view), left = lines.length > 8 ? 92 : 84, gap = 5, bw = (width - left - 2 - gap * (pack - 1)) / 32, top = 26, h = lines.length > 6 ? 18 : 21, pitch = h + 4, foot = top + lines.length * pitch + 14, height = foot + 22, x = (bit) => left + (31 - bit) * bw + gap * (pack - 1 - Math.floor(bit / size));
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${lines.map(({ name, value }) => `${name} ${hex(value, 8)}`).join(", ")}` });
  node.append(textAt(0, 14, `${pack === 2 ? "Two" : "Four"} words become one operand register`, "lb-t-title"));
  lines.forEach(({ name, value, word: from, from: low, width: wide, last, ...line }, k) => {
    const y = top + k * pitch, own = lines[k].word;
    node.append(textAt(0, y + h / 2 + 4, name, last ? "lb-t-ink" : "lb-t"));
    for (let bit = 31; bit >= 0; bit--) {
      const b = own === undefined ? bit % size : bit, on = b >= lines[k].from && b < lines[k].from + wide, bias = last && (one >> b) % 2 === 1;
      node.append(svg("rect", { x: (x(bit) + 0.4).toFixed(1), y, width: Math.max(1, bw - 0.8).toFixed(1), height: h, class: `lb-l-bit${on ? ` lb-l-k${own ?? Math.floor(bit / size)}` : bias ? " lb-l-one" : ""}` }));
      if (bw > 7.5) node.append(textAt(x(bit) + bw / 2, y + h / 2 + 4, String((value >> BigInt(bit)) & 1n), `lb-mid lb-l-small ${on ? "lb-t-ink" : "lb-t"}`));
    }
  });
  seq(pack).forEach((k) => {
    const pattern = Number((lines.at(-1).value >> BigInt(size * k)) & BigInt(2 ** size - 1)), value = (pattern ^ one) + bias, middle = (x(size * k) + x(size * k + size - 1) + bw) / 2, cls = `lb-mid ${k === place ? "lb-t-red" : "lb-t"}`;
    node.append(textAt(middle, foot, `${hex(pattern, size / 4)} = ${signed(value)}`, cls), textAt(middle, foot + 16, `word ${word - (word % pack) + k}`, `${cls} lb-l-small`));
  });
  return node;
}

// What it takes to unpack a weight, by kind of instruction.
function costsPicture({ table: { counted } }, width) {
  const rows = [["words together", counted.together], ["one code after the other", counted.single]], top = 24, height = top + 84, most = Math.max(...rows.map(([, c]) => Number(c.sum))), one = (width - 2) / most;
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", class: "lb-l-costs", "aria-label": `instructions to unpack a weight, counted from the table: ${rows.map(([name, c]) => `${name} ${c.sum}: ${Object.entries(c.kinds).map(([k, n]) => `${k} ${digits(n)}`).join(", ")}`).join("; ")}` });
  node.append(textAt(0, 14, width < 430 ? "Instructions a weight, counted" : "Instructions to unpack a weight, counted from the table", "lb-t-title"));
  rows.forEach(([name, { kinds, sum }], i) => {
    const y = top + 12 + i * 44;
    let x = 0;
    node.append(textAt(0, y - 1, `${name}: ${sum}${width < 460 ? "" : ` = ${Object.entries(kinds).filter(([, n]) => n).map(([k, n]) => `${k} ${digits(n, 2)}`).join(" + ")}`}`, "lb-t lb-l-small"));
    Object.entries(kinds).forEach(([kind, n], k) => { node.append(svg("rect", { x: x.toFixed(1), y: y + 4, width: Math.max(0.5, n * one - 1).toFixed(1), height: 15, class: `lb-l-cost lb-l-k${k}` })); if (n * one > 48) node.append(textAt(x + (n * one) / 2, y + 15.5, kind, "lb-mid lb-l-small lb-t-ink")); x += n * one; });
  });
  return node;
}

// The operand of one step: whose register every place is, and where the chosen column is needed.
function gridPicture({ at, column, lane, needed, lanes, step, pack, parts: [{ piece }] }, width, { look, set }) {
  const left = 54, top = 64, cw = Math.min(34, (width - left - 2) / step), ch = 18, foot = top + ROWS * ch, height = foot + 20, base = at.word - (at.word % step), k = column % step, held = at.word - base;
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `operand of ${ROWS} rows and ${step} places: row ${at.row} belongs to lanes ${seq(step).filter((c) => c % pack === 0).map((c) => lanes[at.row][c][0]).join(", ")}; column ${column} is needed at place ${k}, in lane ${needed}, and lies in lane ${lane}` });
  node.append(textAt(0, 14, width < 400 ? "The operand: whose place?" : `The operand: ${ROWS} rows, ${step} places a step. Whose?`, "lb-t-title"), textAt(0, 31, `Columns that plane ${at.plane} of lane ${lane} puts there:`, "lb-t lb-l-small"));
  seq(ROWS).forEach((y) => {
    if (y === at.row || (y % 4 === 0 && Math.abs(y - at.row) > 0)) node.append(textAt(left - 7, top + y * ch + 13, y === at.row ? `row ${y}` : String(y), `lb-end ${y === at.row ? "lb-t-ink" : "lb-t"}`));
    for (let c = 0; c < step; c += pack) {
      const [who, register] = lanes[y][c], on = who === lane;
      node.append(...laneBox(left + c * cw, top + y * ch, cw * pack, ch, who, on, on ? `reg ${register}` : undefined));
      if (y === at.row && on) {
        const names = namesOf(seq(pack).map((d) => columnOf(at.order, base + c + d, at.plane, piece.width)));
        node.append(textAt(Math.min(width - 3.6 * names.length, left + (c + pack / 2) * cw), top - 9, names, "lb-mid lb-l-small lb-t-ink"));
      }
    }
  });
  const y = top + at.row * ch, cx = (c) => left + (c + 0.5) * cw, toward = Math.sign(k - held);
  node.append(...[y - 2, y + ch - 1].map((at) => svg("rect", { x: (left + k * cw).toFixed(1), y: at, width: cw.toFixed(1), height: 3, class: "lb-l-dot" })), svg("rect", { x: (left + k * cw).toFixed(1), y, width: cw.toFixed(1), height: ch, class: "lb-l-want" }), svg("circle", { cx: cx(held), cy: y + ch + 0.5, r: 3.5, class: needed === lane ? "lb-l-none" : "lb-l-dot" }));
  if (needed !== lane) node.append(svg("line", { x1: cx(held), x2: cx(k) - (toward * cw) / 2, y1: y + ch + 0.5, y2: y + ch + 0.5, class: "lb-l-move" }));
  seq(4).forEach((i) => node.append(textAt(cx((i * step) / 4), foot + 15, i ? String((i * step) / 4) : "place 0", "lb-t lb-mid lb-l-small")));
  const cell = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v))), to = (event) => { const [px, py] = local(event, node); return { row: cell((py - top) / ch, ROWS), word: base + cell((px - left) / cw, step) }; };
  node.append(cover(left, top, cw * step, ROWS * ch, (e) => look(to(e)), (e) => set(to(e))));
  return node;
}

const namesOf = (columns) => (columns.length === 2 ? columns.join(" ") : `${columns[0]} … ${columns.at(-1)}`);

export default { render };
