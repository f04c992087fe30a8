// Points of the plane, the codebook vectors that stand for them, and the cells in which each vector is the nearest.
import { linePath, plot, svg, textAt } from "./dom.js";

export const LOOKS = 24;                          // six colours by four shapes; with more vectors they repeat

// The part of the square |x|, |y| <= reach that is nearest to each vector: the square, cut by the bisector with every other.
export function cellsOf(C, reach) {
  const k = C.length / 2, square = [[-reach, -reach], [reach, -reach], [reach, reach], [-reach, reach]];
  return Array.from({ length: k }, (_, i) => {
    let cell = square;
    for (let j = 0; j < k && cell.length; j++) {
      const dx = C[2 * j] - C[2 * i], dy = C[2 * j + 1] - C[2 * i + 1];
      if (j === i) continue;
      if (dx === 0 && dy === 0) { if (j < i) cell = []; continue; }               // of equal vectors the first is taken
      const edge = (dx * (C[2 * j] + C[2 * i]) + dy * (C[2 * j + 1] + C[2 * i + 1])) / 2;
      cell = cutBy(cell, ([px, py]) => px * dx + py * dy - edge);
    }
    return cell;
  });
}

function cutBy(cell, beyond) {                    // what of a convex polygon lies where beyond(p) <= 0
  const out = [];
  cell.forEach((p, i) => {
    const q = cell[(i + 1) % cell.length], a = beyond(p), b = beyond(q);
    if (a <= 0) out.push(p);
    if ((a < 0 && b > 0) || (a > 0 && b < 0)) out.push([p[0] + ((q[0] - p[0]) * a) / (a - b), p[1] + ((q[1] - p[1]) * a) / (a - b)]);
  });
  return out;
}

// Half the side of a square that holds nearly all coordinates; the few beyond are drawn on its edge.
export function reachOf(values) {
  const sizes = Array.from(values, Math.abs).sort((p, q) => p - q), most = sizes.at(-1), usual = 1.4 * sizes[Math.floor(0.99 * (sizes.length - 1))];
  return (most < 1.5 * usual ? 1.05 * most : usual) || 1;
}

const near = (t) => t.toFixed(1);
function shapePath(shape, x, y, r) {
  if (shape === 0) return `M${near(x - r)},${near(y)}a${near(r)},${near(r)} 0 1 0 ${near(2 * r)},0a${near(r)},${near(r)} 0 1 0 ${near(-2 * r)},0`;
  if (shape === 1) return `M${near(x - r)},${near(y - r)}h${near(2 * r)}v${near(2 * r)}h${near(-2 * r)}Z`;
  if (shape === 2) return `M${near(x)},${near(y - 1.2 * r)}l${near(1.2 * r)},${near(2.2 * r)}h${near(-2.4 * r)}Z`;
  return `M${near(x - r)},${near(y - r)}l${near(2 * r)},${near(2 * r)}m0,${near(-2 * r)}l${near(-2 * r)},${near(2 * r)}`;
}

export const diamond = (x, y, r) => `M${near(x)},${near(y - r)}l${near(r)},${near(r)}l${near(-r)},${near(r)}l${near(-r)},${near(-r)}Z`;

// One map. at: two coordinates of v; radii: pixels; C: the vectors shown, or null; path: codebooks up to this one.
export function mapPlot({ title, alt, labels, width, x, v, at: [a, b], reach, radii, idx, C, path, choose, point }) {
  const side = Math.max(150, width - 64), n = radii.length, flat = v === 2;
  const format = (t) => String(Number(t.toPrecision(3))).replace("-", "−"), range = [-reach, reach];
  const { root: node, layer, box, sx, sy } = plot({ width, height: side + 84, title, alt, margin: { left: 56, right: 8, top: 42, bottom: 42 }, x: { range, label: labels[0], format }, y: { range, format } });
  const inside = (t) => Math.max(-reach, Math.min(reach, t)), px = (from, i) => sx(inside(from[i * v + a])), py = (from, i) => sy(inside(from[i * v + b]));
  const beyond = (p) => Math.abs(x[p * v + a]) > reach || Math.abs(x[p * v + b]) > reach, vectors = C ? C.length / v : 0;
  const cells = C && flat ? cellsOf(a === 0 ? C : C.map((_, i) => C[i ^ 1]), reach).map((cell) => (cell.length ? `${linePath(cell.map(([p, q]) => [sx(p), sy(q)]))}Z` : "")) : null;
  if (cells) layer.append(svg("path", { d: cells.join(""), class: "lb-c-cell" }));
  const chosen = svg("g"), marks = {};
  layer.append(chosen);
  for (let p = 0; p < n; p++) {
    const look = beyond(p) ? "out" : C && !flat ? idx[p] % LOOKS : "point";
    (marks[look] ??= []).push(look === "out" ? shapePath(1, px(x, p), py(x, p), 2.2) : shapePath(look === "point" ? 0 : Math.floor(look / 6), px(x, p), py(x, p), radii[p]));
  }
  for (const [look, all] of Object.entries(marks)) layer.append(svg("path", { d: all.join(""), class: isNaN(look) ? `lb-c-${look}` : `lb-c-look lb-c-k${look % 6}${look >= 18 ? " lb-c-cross" : ""}` }));
  if (C) {
    const way = (i) => linePath(path.map((from) => [px(from, i), py(from, i)]));
    layer.append(svg("path", { d: Array.from({ length: vectors }, (_, i) => way(i)).join(""), class: "lb-c-way" }),
      svg("path", { d: Array.from({ length: vectors }, (_, i) => diamond(px(C, i), py(C, i), vectors > 100 ? 3.4 : 5.2)).join(""), class: "lb-c-centre" }));
  }
  const over = svg("g");
  layer.append(over);
  const highlight = (p) => {
    const i = idx ? idx[p] : -1, mine = cells ? [svg("path", { d: cells[i], class: "lb-c-mine" })] : [];
    chosen.replaceChildren(...mine);
    const own = C && !flat ? Array.from({ length: n }, (_, q) => (idx[q] === i ? shapePath(0, px(x, q), py(x, q), radii[q] + 2) : "")).join("") : "";
    over.replaceChildren(...(own ? [svg("path", { d: own, class: "lb-c-own" })] : []), ...(C ? [svg("path", { d: linePath([[px(x, p), py(x, p)], [px(C, i), py(C, i)]]), class: "lb-c-gap" }), svg("path", { d: diamond(px(C, i), py(C, i), 7.5), class: "lb-c-centre lb-c-now" })] : []),
      svg("circle", { cx: near(px(x, p)), cy: near(py(x, p)), r: near(Math.max(5.5, radii[p] + 3)), class: "lb-c-ring" }));
  };
  const found = (ev) => {
    const frame = node.getBoundingClientRect(), mx = ev.clientX - frame.left, my = ev.clientY - frame.top;
    let best = -1, far = 26 ** 2;
    for (let p = 0; p < n; p++) {
      const d2 = (px(x, p) - mx) ** 2 + (py(x, p) - my) ** 2;
      if (d2 < far) { far = d2; best = p; }
    }
    return best;
  };
  node.append(svg("rect", { x: box.x0, y: box.y1, width: box.x1 - box.x0, height: box.y0 - box.y1, fill: "transparent", class: "lb-click",
    onpointermove: (ev) => point(found(ev)), onpointerleave: () => point(-1), onclick: (ev) => { const p = found(ev); if (p >= 0) choose(p); } }));
  const away = Array.from({ length: n }, (_, p) => beyond(p)).filter(Boolean).length;
  node.append(textAt(0, box.y1 - 7, labels[1]));
  if (away) node.append(textAt(box.x1, box.y1 - 7, `${away} beyond the frame □`, "lb-t lb-end"));
  return { node, highlight };
}
