// Arithmetic of the explorers. The same formulas as grid.py, hessian.py and feedback.py; a browser test compares the numbers.
// Math.fround after each operation makes the codes those of a float32 computation, bit for bit.

const f32 = Math.fround;

export function roundEven(x) {
  const r = Math.round(x);                       // JS rounds halves up
  return Math.abs(x % 1) === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

export function toHalf(x) {                      // nearest float16, ties to even
  const a = Math.abs(x);
  if (!(a > 0) || !Number.isFinite(a)) return x;
  let e = Math.floor(Math.log2(a));
  if (2 ** e > a) e -= 1;
  if (2 ** (e + 1) <= a) e += 1;
  const unit = 2 ** (Math.max(e, -14) - 10);
  return Math.sign(x) * roundEven(a / unit) * unit;
}

// zero: "integer" (range contains 0, z is a code), "real" (range free, z is a float16), "none" (symmetric, z not stored)
export function ruler(lo, hi, bits, zero) {
  const qMax = 2 ** bits - 1;
  const span = f32(hi - lo);
  const flat = span <= 0;
  const s = toHalf(flat ? (lo === 0 ? 1 : Math.abs(lo)) : f32(span / qMax));
  const ideal = f32(-lo / s);
  if (zero === "none") return { s, z: 2 ** (bits - 1) };
  if (zero === "real") return { s, z: toHalf(ideal) };
  return { s, z: Math.min(qMax, Math.max(0, roundEven(ideal))) };
}

export function range(w, start, g, zero) {
  let lo = Infinity, hi = -Infinity;
  for (let i = start; i < start + g; i++) {
    if (w[i] < lo) lo = w[i];
    if (w[i] > hi) hi = w[i];
  }
  if (zero !== "real") { lo = Math.min(lo, 0); hi = Math.max(hi, 0); }
  if (zero === "none") { hi = Math.max(-lo, hi); lo = -hi; }
  return { lo, hi };
}

export function code(w, s, z, bits, zero) {
  const q = zero === "real" ? roundEven(f32(f32(w / s) + z)) : roundEven(f32(w / s)) + z;
  return Math.min(2 ** bits - 1, Math.max(0, q));
}

export const value = (q, s, z) => f32(f32(q - z) * s);

export function fitGroup(w, start, g, { bits, zero, clip }) {
  const { lo, hi } = range(w, start, g, zero);
  const p = f32(clip);
  return { lo, hi, clipLo: f32(lo * p), clipHi: f32(hi * p), ...ruler(f32(lo * p), f32(hi * p), bits, zero) };
}

// Squared error relative to the squared weights, of each group and of all; both weighted by column if importance is given.
export function quantizeAll(w, g, setting, importance = null) {
  const groups = new Float64Array(w.length / g);
  let err = 0, all = 0;
  for (let k = 0; k < groups.length; k++) {
    const { s, z } = fitGroup(w, k * g, g, setting);
    let e = 0, a = 0;
    for (let i = k * g; i < (k + 1) * g; i++) {
      const d = value(code(w[i], s, z, setting.bits, setting.zero), s, z) - w[i];
      const h = importance ? importance[i % importance.length] : 1;
      e += h * d * d; a += h * w[i] * w[i];
    }
    groups[k] = a > 0 ? e / a : 0;
    err += e; all += a;
  }
  return { groups, error: all > 0 ? err / all : 0 };
}

export function bitBudget(g, bits, zero) {
  const zeros = zero === "none" ? 0 : zero === "real" ? 16 / g : bits / g;
  return { codes: bits, scales: 16 / g, zeros, total: bits + 16 / g + zeros };
}

// ---- matrices: Float64Array, row by row ----

export function reorder(H, d, perm) {
  const out = new Float64Array(d * d);
  for (let i = 0; i < d; i++) for (let j = 0; j < d; j++) out[i * d + j] = H[perm[i] * d + perm[j]];
  return out;
}

// Dead inputs (zero on the diagonal) get the mean of the live diagonal; then damp * mean is added to every diagonal entry.
export function damped(H, d, damp) {
  const out = Float64Array.from(H);
  let mean = 0, live = 0;
  for (let i = 0; i < d; i++) if (H[i * d + i] > 0) { mean += H[i * d + i]; live += 1; }
  mean /= live || 1;
  for (let i = 0; i < d; i++) {
    const dead = !(H[i * d + i] > 0);
    if (dead) for (let j = 0; j < d; j++) { out[i * d + j] = 0; out[j * d + i] = 0; }
    out[i * d + i] = (dead ? mean : H[i * d + i]) + damp * mean;
  }
  return out;
}

// The order in which columns are visited; H is conditioned. Ties keep their natural order.
export function order(H, d, name, g) {
  const natural = Array.from({ length: d }, (_, i) => i);
  const diag = (i) => H[i * d + i];
  const largestFirst = (ids) => [...ids].sort((i, j) => diag(j) - diag(i));
  if (name === "act") return largestFirst(natural);
  if (name === "gar") {
    const groups = Array.from({ length: d / g }, (_, k) => largestFirst(natural.slice(k * g, (k + 1) * g)));
    return groups.sort((a, b) => diag(b[0]) - diag(a[0])).flat();
  }
  return name === "min_pivot" ? minPivot(H, d) : natural;
}

function minPivot(H, d) {                        // eliminate the cheapest column again and again; the first goes last
  const S = Float64Array.from(H), left = Array.from({ length: d }, (_, i) => i), out = [];
  while (left.length) {
    let j = left[0];
    for (const i of left) if (S[i * d + i] < S[j * d + j]) j = i;
    out.push(j);
    left.splice(left.indexOf(j), 1);
    for (const i of left) {
      const f = S[i * d + j] / S[j * d + j];
      if (f !== 0) for (const k of left) S[i * d + k] -= f * S[j * d + k];
    }
  }
  return out.reverse();
}

// H = V diag(D) V^T with V unit upper triangular, by elimination from the last column. null if H is not positive definite.
export function factor(H, d) {
  const A = Float64Array.from(H), V = new Float64Array(d * d), D = new Float64Array(d);   // lower triangle of A is used
  for (let k = d - 1; k >= 0; k--) {
    const pivot = A[k * d + k];
    if (!(pivot > 1e-9 * H[k * d + k])) return null;                                      // H comes as float32
    D[k] = pivot;
    for (let i = 0; i <= k; i++) V[i * d + k] = A[k * d + i] / pivot;
    for (let i = 0; i < k; i++) {
      const f = A[k * d + i];
      for (let j = 0; j <= i; j++) A[i * d + j] -= f * V[j * d + k];
    }
  }
  return { V, D };
}

// Eigenvalues of a symmetric matrix, ascending: Householder reduction to three diagonals, then bisection by sign counts.
export function eigenvalues(H, d) {
  const { a, b } = tridiagonal(H, d);
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < d; i++) {
    const r = Math.abs(b[i]) + Math.abs(b[i + 1] ?? 0);
    low = Math.min(low, a[i] - r); high = Math.max(high, a[i] + r);
  }
  const tiny = 1e-300 + 1e-18 * Math.max(Math.abs(low), Math.abs(high));
  const below = (x) => {                         // how many eigenvalues are less than x
    let count = 0, t = 1;
    for (let i = 0; i < d; i++) {
      t = a[i] - x - (i ? (b[i] * b[i]) / t : 0);
      if (Math.abs(t) < tiny) t = -tiny;
      if (t < 0) count += 1;
    }
    return count;
  };
  return Float64Array.from({ length: d }, (_, k) => {
    let lo = low, hi = high;
    for (let step = 0; step < 60; step++) {
      const mid = (lo + hi) / 2;
      if (below(mid) > k) hi = mid; else lo = mid;
    }
    return (lo + hi) / 2;
  });
}

function tridiagonal(H, d) {
  const A = Float64Array.from(H), u = new Float64Array(d), p = new Float64Array(d), b = new Float64Array(d);
  for (let k = 0; k < d - 2; k++) {
    let norm = 0;
    for (let i = k + 1; i < d; i++) { u[i] = A[i * d + k]; norm += u[i] * u[i]; }
    norm = Math.sqrt(norm);
    if (norm === 0) continue;
    const alpha = u[k + 1] > 0 ? -norm : norm;
    u[k + 1] -= alpha;
    const scale = 1 / (norm * norm - alpha * A[(k + 1) * d + k]);       // 2 / |u|^2
    let up = 0;
    for (let i = k + 1; i < d; i++) {
      let t = 0;
      for (let j = k + 1; j < d; j++) t += A[i * d + j] * u[j];
      p[i] = t * scale; up += p[i] * u[i];
    }
    for (let i = k + 1; i < d; i++) p[i] -= (scale / 2) * up * u[i];
    for (let i = k + 1; i < d; i++) for (let j = k + 1; j < d; j++) A[i * d + j] -= u[i] * p[j] + p[i] * u[j];
    b[k + 1] = alpha;
  }
  if (d > 1) b[d - 1] = A[(d - 1) * d + d - 2];
  return { a: Float64Array.from({ length: d }, (_, i) => A[i * d + i]), b };
}

// tr(E H E^T) / tr(W H W^T) of W [rows, d] rounded on fixed group grids: nearest, or fed back in the order of perm (null = nearest).
export function layerError(W, rows, d, H, g, setting, V, perm) {
  const err = new Float64Array(rows * d), t = new Float64Array(d);
  for (let r = 0; r < rows; r++) {
    const fits = Array.from({ length: d / g }, (_, k) => fitGroup(W, r * d + k * g, g, setting));
    t.fill(0);                                   // what the earlier columns add to each target
    for (let k = 0; k < d; k++) {
      const c = perm ? perm[k] : k, w = W[r * d + c], { s, z } = fits[Math.floor(c / g)];
      const e = w - value(code(f32(w + t[k]), s, z, setting.bits, setting.zero), s, z);
      err[r * d + c] = e;
      if (V) for (let j = k + 1; j < d; j++) t[j] += e * V[k * d + j];
    }
  }
  return quadratic(err, rows, d, H) / quadratic(W, rows, d, H);
}

function quadratic(E, rows, d, H) {
  let total = 0;
  for (let r = 0; r < rows; r++) for (let i = 0; i < d; i++) {
    let t = 0;
    for (let j = 0; j < d; j++) t += H[i * d + j] * E[r * d + j];
    total += E[r * d + i] * t;
  }
  return total;
}
