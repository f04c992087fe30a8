// Weighted k-means in float64, as in kmeans.py: Lloyd's two half-steps in turn. A browser test compares every step.
import { toHalf } from "./math.js";

const ITERATIONS = 20, TOL = 1e-4;

// For each of the points x [n, v] the number of the nearest vector of C [k, v]; of equal ones the first.
export function nearestOf(x, v, C) {
  const n = x.length / v, k = C.length / v, halves = new Float64Array(k), idx = new Uint16Array(n);
  for (let i = 0; i < k; i++) for (let c = 0; c < v; c++) halves[i] += (C[i * v + c] * C[i * v + c]) / 2;
  for (let p = 0; p < n; p++) {
    let best = -Infinity;
    for (let i = 0; i < k; i++) {
      let score = -halves[i];
      for (let c = 0; c < v; c++) score += x[p * v + c] * C[i * v + c];
      if (score > best) { best = score; idx[p] = i; }
    }
  }
  return idx;
}

// The first `most` points in that order that have weight and differ from one another.
export function firsts(x, v, w, order, most) {
  const seen = new Set(), out = [];
  for (const p of order) {
    const key = x.subarray(p * v, p * v + v).join();
    if (!(w[p] > 0) || seen.has(key)) continue;
    seen.add(key);
    out.push(p);
    if (out.length === most) break;
  }
  return out;
}

const gather = (x, v, ids) => Float64Array.from(ids.flatMap((p) => Array.from(x.subarray(p * v, p * v + v))));

// Every codebook on the way, and the weighted squared error with each.
export function lloyd(x, v, w, order, k) {
  const start = firsts(x, v, w, order, k + 1);
  if (start.length <= k) return { path: [distinctOnly(x, v, start, k)], inertia: [0] };
  const path = [gather(x, v, start.slice(0, k))], inertia = [];
  for (let step = 0; ; step++) {
    const C = path[step], idx = nearestOf(x, v, C), cost = new Float64Array(w.length);
    let sum = 0;
    for (let p = 0; p < w.length; p++) {
      for (let c = 0; c < v; c++) cost[p] += (x[p * v + c] - C[idx[p] * v + c]) ** 2;
      sum += cost[p] *= w[p];
    }
    inertia.push(sum);
    if (step === ITERATIONS || (step && inertia[step - 1] - sum <= TOL * inertia[step - 1])) return { path, inertia };
    path.push(meansOf(x, v, w, idx, C, cost));
  }
}

function distinctOnly(x, v, ids, k) {             // no more points than vectors: they are the codebook, the last one repeated
  const compare = (p, q) => { for (let c = 0; c < v; c++) if (x[p * v + c] !== x[q * v + c]) return x[p * v + c] - x[q * v + c]; return 0; };
  const sorted = [...ids].sort(compare);
  return gather(x, v, [...sorted, ...Array(k - sorted.length).fill(sorted.at(-1))]);
}

// Weighted means; vectors without points move to the points of greatest cost that differ from one another.
function meansOf(x, v, w, idx, C, cost) {
  const k = C.length / v, out = new Float64Array(C.length), total = new Float64Array(k), empty = [];
  for (let p = 0; p < w.length; p++) {
    total[idx[p]] += w[p];
    for (let c = 0; c < v; c++) out[idx[p] * v + c] += w[p] * x[p * v + c];
  }
  for (let i = 0; i < k; i++) {
    if (!(total[i] > 0)) empty.push(i);
    for (let c = 0; c < v; c++) out[i * v + c] = total[i] > 0 ? out[i * v + c] / total[i] : C[i * v + c];
  }
  if (empty.length) {
    const worst = Array.from(cost.keys()).sort((p, q) => cost[q] - cost[p]).slice(0, 4 * empty.length).filter((p) => cost[p] > 0);
    firsts(x, v, w, worst, empty.length).forEach((p, e) => out.set(x.subarray(p * v, p * v + v), empty[e] * v));
  }
  return out;
}

// What a codebook makes of the points once it is stored as float16: its numbers, who uses which vector, what is left over.
export function coded(x, v, C) {
  const S = C.map((c) => toHalf(Math.fround(c))), idx = nearestOf(x, v, S);
  return { S, idx, left: leftOf(x, v, S, idx) };
}

export const leftOf = (x, v, S, idx) => x.map((number, i) => number - S[idx[Math.floor(i / v)] * v + (i % v)]);

// Mean squared errors of leftovers, plain and weighted, each also as a share of the mean square.
export function errorsOf(x, left, v, w) {
  let plain = 0, weighted = 0, all = 0, allWeighted = 0, total = 0;
  for (let p = 0; p < w.length; p++) {
    let e = 0, a = 0;
    for (let i = p * v; i < p * v + v; i++) { e += left[i] * left[i]; a += x[i] * x[i]; }
    plain += e; all += a; weighted += w[p] * e; allWeighted += w[p] * a; total += w[p];
  }
  return { mse: plain / x.length, share: plain / all, weighted: weighted / (v * total), weightedShare: weighted / allWeighted };
}

export function countsOf(idx, k) {
  const counts = Array(k).fill(0);
  for (const i of idx) counts[i] += 1;
  return counts;
}

export const entropyOf = (counts, n) => counts.reduce((h, c) => (c ? h - (c / n) * Math.log2(c / n) : h), 0);

// Bits a weight of a layer: indices of one or two stages, and the float16 codebooks.
export function bitsOf([rows, columns], v, k, second) {
  const codes = (Math.ceil(rows / v) * columns * (Math.log2(k) + (second ? Math.log2(second) : 0))) / (rows * columns);
  const books = (16 * v * (k + second)) / (rows * columns);
  return { codes, books, total: codes + books };
}
