// The two limits of a packed product; the same formulas as roofline_model.py, and a browser test compares the numbers.

const HALF_BITS = 16, MIXTURE = 1.61, LINE = [8, 4, 3, 2, 1], ALL_BITS = [16, 8, 4, 3, 2, 1.61, 1];
const PARTS = { 1: [1], 2: [2], 3: [2, 1], 4: [4], 8: [8] };    // widths that a code is packed in

const wordsOf = (columns, bits) => PARTS[bits].reduce((sum, width) => sum + Math.ceil((columns * width) / 32), 0);
const toEven = (x) => { const r = Math.round(x); return Math.abs(x % 1) === 0.5 && r % 2 ? r - 1 : r; };

// Slots a weight for batch rows of x: full passes, and one that is just wide enough; integer instructions run at half rate.
export function charge(counts, batch) {
  const cost = counts.map(([rows, slots, integer]) => [rows, Math.max(slots, 2 * integer)]), [most, full] = cost.at(-1), rest = batch % most;
  return Math.floor(batch / most) * full + (rest ? cost.find(([rows]) => rows >= rest)[1] : 0);
}

// s: d_out, d_in, bits, group (0: a scale a row), zeros, batch, kernel, own, bandwidth, rate, launch, counts, constants
export function limitsOf(s) {
  const weights = s.d_out * s.d_in, salient = Math.min(s.d_in, Math.max(1, toEven((s.constants.share * s.d_in) / 32)) * 32), bytes = bytesOf(s, weights, salient);
  const moved = bytes.codes + bytes.scales + bytes.zeros + bytes.vectors, slots = slotsOf(s, salient / s.d_in);
  const floor = moved / s.bandwidth / 1e6, issue = (weights * slots) / s.rate / 1e6;
  return { ...s, weights, bytes, moved, slots, floor, issue, stored: (8 * (moved - bytes.vectors)) / weights, limit: Math.max(floor, issue),
    time: s.launch + Math.max(floor, issue), budget: (floor * s.rate * 1e6) / weights, binds: floor >= issue ? "memory" : "instructions" };
}

function bytesOf({ d_out, d_in, bits, group, zeros, batch }, weights, salient) {
  const vectors = 2 * batch * (d_in + d_out);
  if (bits === HALF_BITS) return { codes: 2 * weights, scales: 0, zeros: 0, vectors };
  if (bits === MIXTURE) {                        // a scale and a zero point a row for 4 bits; a level and a mean a row, a factor a column for 1; a mask
    const low = d_in - salient;
    return { codes: 4 * d_out * (wordsOf(salient, 4) + wordsOf(low, 1)), scales: 4 * d_out + 2 * low + 4 * wordsOf(d_in, 1), zeros: 4 * d_out, vectors };
  }
  const numbers = d_out * (group ? Math.ceil(d_in / group) : 1), words = PARTS[bits] ? wordsOf(d_in, bits) : (d_in * bits) / 32;
  return { codes: 4 * d_out * words, scales: 2 * numbers, zeros: zeros ? 2 * numbers : 0, vectors };
}

function slotsOf({ kernel, own, bits, batch, counts, constants }, share) {
  if (kernel === constants.own) return own;
  const table = counts[kernel], of = (b) => charge(table[b], batch);
  if (bits === HALF_BITS) return charge(constants.half, batch);
  if (bits === MIXTURE) return share * of(4) + (1 - share) * of(1);
  return table[bits] ? of(bits) : NaN;
}

// Everything about one setting: its limits, those of all widths, where the two lines cross, what is left of the gain over 4 bits.
export function rooflineOf(s) {
  const now = limitsOf(s), all = ALL_BITS.map((bits) => limitsOf({ ...s, bits })), line = LINE.map((bits) => all.find((r) => r.bits === bits)), four = line[1];
  const over = line.map((r) => [Math.log(r.stored), Math.log(r.issue / r.floor)]), crossings = [];
  over.slice(1).forEach(([b2, a2], i) => { const [b, a] = over[i]; if ((a > 0) !== (a2 > 0)) crossings.push(Math.exp(b + ((b2 - b) * a) / (a - a2))); });
  const faster = { bits: 4 / s.bits, bytes: four.floor / now.floor, limits: four.limit / now.limit, time: four.time / now.time };
  return { ...now, all, line, crossings, faster, verdict: verdictOf(line, crossings) };
}

function verdictOf(line, crossings) {
  const bound = line.filter((r) => r.binds === "instructions").map((r) => r.bits);
  if (!bound.length) return "memory limits this kernel at every width";
  if (bound.length === line.length) return "instructions limit this kernel at every width";
  if (crossings.length === 1 && bound.at(-1) === 1) return `below ${crossings[0].toFixed(2)} stored bits a weight this kernel is limited by instructions, not by memory`;
  return `instructions limit this kernel at ${bound.join(", ")} bits, memory at the other widths`;
}
