// How a warp reads packed words: where a column lies, who holds it, and what its words go through. The tables come from Python.

export const PLANE = 64;
export const hex = (x, n) => `0x${x.toString(16).padStart(n, "0")}`;
export const bitsAt = (x, bit, width) => Math.floor(x / 2 ** bit) % 2 ** width;          // words are numbers of 0 to 2**32 - 1
export const seq = (n) => Array.from({ length: n }, (_, i) => i);
export const spread = (x, { size, pack }) => seq(pack).reduce((sum, i) => sum + x * 2 ** (size * i), 0);

// The column of field `plane` of the words numbered `word`, and the place of a column in words of this width.
export function columnOf(order, word, plane, width) {
  const n = 32 / width, turn = Math.floor(plane / n);
  return turn * n * PLANE + (order === "planar" ? (plane % n) * PLANE + word : word * n + (plane % n));
}

export function placeOf(order, column, width) {
  const n = 32 / width, turn = Math.floor(column / (n * PLANE)), rest = column % (n * PLANE);
  return order === "planar" ? { word: rest % PLANE, plane: turn * n + Math.floor(rest / PLANE) } : { word: Math.floor(rest / n), plane: turn * n + (rest % n) };
}

// What a word holds: as it is stored if planar, else the same codes put together in the other order.
export function wordAt({ order, row }, { planes }, i, word, plane, stored) {
  const { width, block } = planes[plane][i], n = 32 / width, first = plane - (plane % n);
  if (order === "planar") return stored[row][block * PLANE + word];
  return seq(n).reduce((sum, j) => {
    const from = placeOf("planar", columnOf(order, word, first + j, width), width), piece = planes[from.plane][i];
    return sum + bitsAt(stored[row][piece.block * PLANE + from.word], piece.bit, width) * 2 ** (j * width);
  }, 0);
}

// All that is known of one field: where it lies, who copies, unpacks and needs it, and what it becomes.
export function viewOf(at, tables, words, copiers) {
  const { lanes, size, pack, step, bits } = tables[at.number], table = bits[at.bits], { planes, one, bias } = table, { row, word, plane, order } = at, first = planes[plane][0], column = columnOf(order, word, plane, first.width);
  const parts = planes[plane].map((_, i) => {
    const spot = i ? placeOf(order, column, planes[0][i].width) : { word, plane }, group = spot.word - (spot.word % pack);
    return { ...spot, i, piece: planes[spot.plane][i], group, words: seq(pack).map((k) => wordAt(at, table, i, group + k, spot.plane, words[at.bits])), lane: lanes[row][spot.word % step][0] };
  });
  const codeOf = (of) => of.reduce((sum, p) => sum + bitsAt(p.words[p.word - p.group], p.piece.bit, p.piece.width) * 2 ** p.piece.low, 0);
  const [lane, register, place] = lanes[row][word % step], whole = parts.every((p) => p.word === word && p.plane === plane), used = whole ? parts : parts.slice(0, 1), here = codeOf(used), pos = first.pos;
  return { at, table, lanes, copiers, size, pack, step, parts, used, whole, column, lane, register, place, pos, here, one, bias, needed: lanes[row][column % step][0], copier: copiers[row][word], code: codeOf(parts), pattern: (here * 2 ** pos) ^ one, value: here * 2 ** pos + bias };
}

export function formulaOf({ at: { order, word, plane }, parts: [{ piece }] }) {
  const n = 32 / piece.width, turn = Math.floor(plane / n), before = turn ? `${turn} × ${n * PLANE} + ` : "";
  return order === "planar" ? `${before}${plane % n} × 64 + ${word}` : `${before}${word} × ${n} + ${plane % n}`;
}

export const moves = (shift) => (shift ? `${shift > 0 ? "<<" : ">>"} ${Math.abs(shift)}` : "no shift");
export const raised = (p) => [...String(p)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"["0123456789-".indexOf(c)]).join("");
export const partOf = ({ size }, { part }) => (size === 16 ? `${["low", "high"][part]} halves` : `bytes ${part}`);
export const sumOf = ({ here, pos, bias }) => `${here}${pos ? ` × 2${raised(pos)}` : ""}${bias ? ` ${bias > 0 ? "+" : "−"} ${Math.abs(bias)}` : ""}`;

// From neighbouring words to one operand register, 32 bits a line.
export function linesOf(view) {
  const { used, size, one } = view, whole = 0xffffffffn, lines = [];
  let done = BigInt(spread(one, view));
  used.forEach(({ piece, words, group }, i) => {
    const name = used.length > 1 ? `${piece.width}-bit word` : "word", joined = words.reduce((sum, w, k) => sum + BigInt(bitsAt(w, piece.part * size, size)) * 2n ** BigInt(size * k), 0n);
    const moved = piece.shift < 0 ? joined >> BigInt(-piece.shift) : (joined << BigInt(piece.shift)) & whole, spots = (at, w) => ({ from: at, width: w });
    words.forEach((w, k) => lines.push({ name: `${name} ${group + k}`, value: BigInt(w), word: k, ...spots(piece.bit, piece.width) }));
    lines.push({ name: partOf(view, piece), value: joined, ...spots(piece.bit % size, piece.width) });
    if (piece.shift) lines.push({ name: moves(piece.shift), value: moved, ...spots(piece.pos, piece.width) });
    done ^= moved & BigInt(spread(piece.mask, view));
    lines.push({ name: i ? "mask, merge" : one ? (size === 8 ? "top bit" : "mask, bias") : "mask", value: done, last: true, ...spots(used[0].piece.pos, piece.low + piece.width) });
  });
  return lines;
}
