// The packing explorer: which bit of which word holds a column, and what one shift of all words gives.
import { chips, el, followWidth, root, select, slider, svg, textAt, tile } from "./dom.js";

const PLANE = 64;
const WIDTHS = { 1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8] };
const RAMP = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
const LAYOUTS = [["planar", "planar (this kit)"], ["interleaved", "interleaved"]];

function render({ model, el: host }) {
  const sizes = model.get("sizes");
  const node = root("packing", "Packing explorer", model.get("about"),
    "Which bit of which word holds a column, and which columns does one shift of all words give?");
  const state = () => ({ bits: model.get("bits"), dIn: model.get("d_in"), layout: model.get("layout_name"), column: model.get("column") });
  const set = (change) => {
    if (change.d_in) change.column = Math.min(change.column ?? model.get("column"), change.d_in - 1);
    Object.entries(change).forEach(([k, v]) => model.set(k, v));
    model.save_changes();
    update();
  };
  const control = {
    bits: select({ label: "Bits a code", options: Object.keys(WIDTHS).map((b) => [b, WIDTHS[b].length > 1 ? `${b} bits = ${WIDTHS[b].join(" + ")}` : `${b} bit${b > 1 ? "s" : ""}`]), onchange: (v) => set({ bits: Number(v) }) }),
    dIn: select({ label: "Columns in the row", options: sizes.map((n) => [n, `${n} columns`]), onchange: (v) => set({ d_in: Number(v) }) }),
    layout: select({ label: "Layout", options: LAYOUTS, onchange: (v) => set({ layout_name: v }) }),
    column: slider({ label: "Column", min: 0, max: 255, text: (v) => `${v} of 0 to ${model.get("d_in") - 1}`, oninput: (v) => set({ column: v }) }),
  };
  const tiles = { words: tile("Words a row"), each: tile("Bits a code on disk"), run: tile("One shift gives columns") };
  const main = el("div", { class: "lb-main" }), strips = el("div", { class: "lb-main" });
  const readout = el("p", { class: "lb-readout", role: "status", "aria-live": "polite" });
  node.append(el("div", { class: "lb-controls" }, ...Object.values(control).map((c) => c.node)),
    chips("Try", [["the other layout", () => set({ layout_name: model.get("layout_name") === "planar" ? "interleaved" : "planar" })],
      ["3 bits", () => set({ bits: 3, d_in: 256, layout_name: "planar" })],
      ["a row that does not fill its words", () => set({ bits: 2, d_in: 100, layout_name: "planar", column: 99 })],
      ["two slices", () => set({ bits: 2, d_in: 1100, layout_name: "planar", column: 1024 })]]),
    el("div", { class: "lb-tiles" }, ...Object.values(tiles).map((t) => t.node)), main, strips, readout);
  let view = null;

  function update() {
    const { bits, dIn, layout, column } = state(), parts = partsOf(bits, dIn, layout);
    const at = parts.map((p) => placeOf(p, column)), run = runOf(parts[0], at[0]);
    const words = parts.reduce((n, p) => n + p.nWords, 0), padding = 32 * words - bits * dIn;
    view = { dIn, column, parts, at, run };
    control.bits.update(bits); control.dIn.update(dIn); control.layout.update(layout);
    control.column.update(column, { max: dIn - 1 });
    tiles.words.update(String(words), parts.map((p) => `${p.nWords} × ${32 / p.width} fields`).join(" + "));
    tiles.each.update(((32 * words) / dIn).toFixed(3), padding ? `${padding} padding bits in the row` : "no padding");
    tiles.run.update(run.short, run.note);
    readout.replaceChildren(`Column ${column} of ${dIn}: `, ...parts.flatMap((p, i) => [i ? " and " : "", el("code", { class: "lb-code" }, formula(p, at[i]))]), ".");
    Object.assign(node.dataset, { words, padding, word: at.map((a) => a.word).join(","), field: at.map((a) => a.field).join(",") });
    draw();
  }

  function draw() {
    const width = main.clientWidth;
    if (!width || !view) return;
    main.replaceChildren(...view.parts.map((p, i) => fieldsPicture(p, view.at[i], view, width, (column) => set({ column }))));
    strips.replaceChildren(...view.parts.map((p, i) => wordPicture(p, view.at[i], view, width)));
  }

  host.append(node);
  update();
  const names = ["bits", "d_in", "layout_name", "column"].map((k) => `change:${k}`);
  names.forEach((name) => model.on(name, update));
  const stop = followWidth(node, draw);
  return () => { stop(); names.forEach((name) => model.off(name, update)); };
}

// The slices of a row for words of one width: [first column, first word, words].
function slicesOf(dIn, width) {
  const fields = 32 / width, out = [];
  for (let first = 0, start = 0; first < dIn; first += fields * PLANE, start += PLANE) {
    out.push({ first, start, plane: Math.min(PLANE, Math.ceil((dIn - first) / fields)) });
  }
  return out;
}

// The words of one row, part by part: at(word, field) is the column there, or -1 for padding.
function partsOf(bits, dIn, layout) {
  let low = 0;
  return WIDTHS[bits].map((width) => {
    const slices = slicesOf(dIn, width), fields = 32 / width, nWords = slices.at(-1).start + slices.at(-1).plane;
    const at = (word, field) => {
      const { first, start, plane } = slices[Math.floor(word / PLANE)], w = word - start;
      const column = first + (layout === "planar" ? field * plane + w : w * fields + field);
      return column < dIn ? column : -1;
    };
    const part = { width, low, slices, fields, nWords, at, layout };
    low += width;
    return part;
  });
}

function placeOf({ slices, fields, layout }, column) {
  const { first, start, plane } = slices.findLast((s) => s.first <= column), c = column - first;
  return layout === "planar" ? { word: start + (c % plane), field: Math.floor(c / plane) } : { word: start + Math.floor(c / fields), field: c % fields };
}

// What one shift and mask of the words of this slice gives.
function runOf({ slices, at, fields, layout }, { word, field }) {
  const { start, plane } = slices[Math.floor(word / PLANE)];
  const columns = Array.from({ length: plane }, (_, w) => at(start + w, field)).filter((c) => c >= 0);
  const [a, z] = [columns[0], columns.at(-1)];
  if (columns.length === 1) return { short: String(a), note: "a single word" };
  return layout === "planar" ? { short: `${a} to ${z}`, note: `${columns.length} neighbours, in order` }
    : { short: `${a}, ${columns[1]}, … ${z}`, note: `every ${fields}th column; neighbours must be gathered` };
}

const formula = ({ width, low, fields }, { word, field }) =>
  `(${low ? `words_${width}` : "words"}[${word}] >> ${field * width}) & ${2 ** width - 1}${low ? ` << ${low}` : ""}`.replace(/^(.*) << (\d+)$/, "($1) << $2");

function colourOf(column, dIn) {
  const at = (column / Math.max(1, dIn - 1)) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2), t = at - k;
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return `rgb(${[0, 1, 2].map((i) => Math.round(part(RAMP[k], i) * (1 - t) + part(RAMP[k + 1], i) * t)).join(",")})`;
}

const bitsOf = ({ width, low }) => (width === 1 ? `Bit ${low}` : `Bits ${low} to ${low + width - 1}`);

// Words across, fields down, colour by column; the chosen column is ringed, its shift framed.
function fieldsPicture(part, chosen, { dIn, column }, width, choose) {
  const { nWords, fields, slices, at } = part, left = 62, gap = 5;
  const cw = Math.min(46, (width - left - 4 - gap * (slices.length - 1)) / nWords), ch = Math.max(8, Math.min(20, 260 / fields));
  const top = 26, height = top + ch * fields + 24, x = (word) => left + word * cw + gap * Math.floor(word / PLANE);
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${nWords} words of ${fields} fields; column ${column} is field ${chosen.field} of word ${chosen.word}` });
  node.append(svg("text", { x: 0, y: 14, class: "lb-t-title" }, `${bitsOf(part)} of every code: ${nWords} word${nWords > 1 ? "s" : ""} of ${fields} fields, coloured by column`));
  for (let f = 0; f < fields; f++) {
    if (f % Math.ceil(13 / ch) === 0) node.append(textAt(left - 6, top + f * ch + ch / 2 + 4, f === 0 ? "shift by 0" : String(f * part.width), "lb-t lb-end"));
    for (let w = 0; w < nWords; w++) {
      const c = at(w, f), more = c < 0 ? { class: "lb-pad" } : { class: "lb-cell lb-click", fill: colourOf(c, dIn), onclick: () => choose(c) };
      node.append(svg("rect", { x: x(w).toFixed(2), y: (top + f * ch).toFixed(2), width: (cw - (cw > 8 ? 1 : 0.3)).toFixed(2), height: (ch - (ch > 9 ? 1 : 0.5)).toFixed(2), ...more }));
      if (cw >= 24 && ch >= 12 && c >= 0) node.append(svg("text", { x: x(w) + cw / 2, y: top + f * ch + ch / 2 + 3.5, class: c < 0.55 * dIn ? "lb-on-dark" : "lb-on-light", "pointer-events": "none" }, String(c)));
    }
  }
  const { start, plane } = slices[Math.floor(chosen.word / PLANE)], y = top + chosen.field * ch;
  node.append(svg("rect", { x: x(start) - 1.5, y: y - 1.5, width: cw * plane + 2, height: ch + 2, class: "lb-band-row" }));
  node.append(svg("rect", { x: x(chosen.word) - 1, y: y - 1, width: Math.max(5, cw + 1), height: ch + 1, class: "lb-ring" }));
  const every = Math.ceil(34 / cw / 4) * 4 || 1;
  for (let w = 0; w < nWords; w += cw > 20 ? 1 : every) node.append(textAt(x(w) + cw / 2, top + fields * ch + 14, w === 0 ? "word 0" : String(w), "lb-t lb-mid"));
  return node;
}

// The 32 bits of the chosen word, highest first, cut into fields that name their columns.
function wordPicture(part, chosen, { dIn }, width) {
  const { fields, at, width: bits } = part, left = 62, bw = Math.min(30, (width - left - 4) / 32), h = 24, top = 26, height = top + h + 22;
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `word ${chosen.word}: bits ${chosen.field * bits} to ${chosen.field * bits + bits - 1} hold the column` });
  node.append(svg("text", { x: 0, y: 14, class: "lb-t-title" }, `The 32 bits of word ${chosen.word}; each field names its column`));
  const x = (bit) => left + (31 - bit) * bw;
  for (let f = 0; f < fields; f++) {
    const c = at(chosen.word, f), on = f === chosen.field, x0 = x(f * bits + bits - 1);
    node.append(svg("rect", { x: x0 + 0.5, y: top, width: bw * bits - 1, height: h, class: c < 0 ? "lb-field lb-pad" : `lb-field${on ? " lb-on" : ""}` }));
    const words = c < 0 ? "–" : String(c);
    if (on || bw * bits > 7 * words.length + 3) node.append(textAt(x0 + (bw * bits) / 2, top + h / 2 + 4, words, `lb-mid lb-tiny ${on ? "lb-t-ink" : "lb-t"}`));
  }
  for (const bit of [31, 24, 16, 8, 0]) node.append(textAt(x(bit) + bw / 2, top + h + 14, bit === 31 ? "bit 31" : String(bit), "lb-t lb-mid"));
  return node;
}

export default { render };
