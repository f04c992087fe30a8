"""Wrong answers that the exercises must refuse: the mistakes readers really make.

MUTANTS[exercise id] is a list of at least three sources, each a whole definition of the exercise's function.
They run where the solution runs: with the notebook's imports and its `*_naive` functions.
"""

from __future__ import annotations

MUTANTS: dict[str, list[str]] = {}


# 01_grids_and_bits

MUTANTS |= {
    "grids-1": [
        "def price(bits, g, zero):\n    return bits + 16 / g",  # no zero points
        "def price(bits, g, zero):\n    return bits + (16 + bits) / g",  # every zero point a code
        # a ruler for every weight
        "def price(bits, g, zero):\n    return bits + 16 + {'integer': bits, 'real': 16, 'none': 0}[zero]",
        # no steps
        "def price(bits, g, zero):\n    return bits + {'integer': bits, 'real': 16, 'none': 0}[zero] / g",
        "def price(bits, g, zero):\n    return float(bits)",  # the number in the title
    ],
    "grids-2": [
        # only the zero point of the ruler
        """def search(w, bits, weight):
    tried = [ruler_naive(min(w) * (1 - i / 40), max(w) * (1 - i / 40), bits) for i in range(33)]
    return min(tried, key=lambda sz: loss_naive(w, *sz, bits, weight))
""",
        # importance forgotten
        """def search(w, bits, weight):
    best = (float("inf"), 0.0, 0)
    for i in range(33):
        s, _ = ruler_naive(min(w) * (1 - i / 40), max(w) * (1 - i / 40), bits)
        for z in range(2**bits):
            best = min(best, (loss_naive(w, s, z, bits), s, z))
    return best[1], best[2]
""",
        # stops at 75 % of the range
        """def search(w, bits, weight):
    best = (float("inf"), 0.0, 0)
    for i in range(11):
        s, _ = ruler_naive(min(w) * (1 - i / 40), max(w) * (1 - i / 40), bits)
        for z in range(2**bits):
            best = min(best, (loss_naive(w, s, z, bits, weight), s, z))
    return best[1], best[2]
""",
        # one zero point too few
        """def search(w, bits, weight):
    best = (float("inf"), 0.0, 0)
    for i in range(33):
        s, _ = ruler_naive(min(w) * (1 - i / 40), max(w) * (1 - i / 40), bits)
        for z in range(2**bits - 1):
            best = min(best, (loss_naive(w, s, z, bits, weight), s, z))
    return best[1], best[2]
""",
        # keeps the last pair, not the best
        """def search(w, bits, weight):
    for i in range(33):
        s, z = ruler_naive(min(w) * (1 - i / 40), max(w) * (1 - i / 40), bits)
    return s, z
""",
    ],
    "grids-3": [
        # importance forgotten
        """def refit(w, s, z, bits, weight, rounds):
    for _ in range(rounds):
        c = [code_naive(x, s, z, bits) - z for x in w]
        if any(c):
            s = sum(k * x for k, x in zip(c, w)) / sum(k * k for k in c)
    return s
""",
        # the step upside down
        """def refit(w, s, z, bits, weight, rounds):
    for _ in range(rounds):
        c = [code_naive(x, s, z, bits) - z for x in w]
        if any(c):
            s = sum(h * x * x for h, x in zip(weight, w)) / sum(h * k * x for h, k, x in zip(weight, c, w))
    return s
""",
        # codes chosen once
        """def refit(w, s, z, bits, weight, rounds):
    c = [code_naive(x, s, z, bits) - z for x in w]
    for _ in range(rounds):
        square = sum(h * k * k for h, k in zip(weight, c))
        if square:
            s = sum(h * k * x for h, k, x in zip(weight, c, w)) / square
    return s
""",
        # the zero point is not taken off
        """def refit(w, s, z, bits, weight, rounds):
    for _ in range(rounds):
        q = [code_naive(x, s, z, bits) for x in w]
        square = sum(h * k * k for h, k in zip(weight, q))
        if square:
            s = sum(h * k * x for h, k, x in zip(weight, q, w)) / square
    return s
""",
    ],
}


# 02_packing

MUTANTS |= {
    "packing-1": [
        "def padding(d_in, bits):\n    return -(d_in * bits) % 32",  # 3 bits as one stream
        "def padding(d_in, bits):\n    return sum(d_in * w % 32 for w in ([2, 1] if bits == 3 else [bits]))",
        "def padding(d_in, bits):\n    return -d_in % (32 // bits)",  # codes, not bits
        "def padding(d_in, bits):\n    return 0",
    ],
    "packing-2": [
        # interleaved
        "def place(column, d_in, width):\n    w, j = divmod(column, 32 // width)\n    return w, width * j",
        # one slice for the whole row
        """def place(column, d_in, width):
    plane = -(-d_in * width // 32)
    return column % plane, width * (column // plane)
""",
        # every slice is 64 words wide
        """def place(column, d_in, width):
    t, c = divmod(column, 32 // width * 64)
    return 64 * t + c % 64, width * (c // 64)
""",
        # the field, not the shift
        """def place(column, d_in, width):
    start = 0
    for first, plane in slices_naive(d_in, width):
        if column < first + 32 // width * plane:
            return start + (column - first) % plane, (column - first) // plane
        start += plane
""",
        # word counted within the slice
        """def place(column, d_in, width):
    for first, plane in slices_naive(d_in, width):
        if column < first + 32 // width * plane:
            return (column - first) % plane, width * ((column - first) // plane)
""",
    ],
    "packing-3": [
        # no mask
        """def dot(words, x, s, z):
    n = words.shape[1]
    total = sum((words >> (2 * j)).float() @ x[j * n : (j + 1) * n] for j in range(16))
    return s * (total - z * x.sum())
""",
        # interleaved columns
        """def dot(words, x, s, z):
    total = sum(((words >> (2 * j)) & 3).float() @ x[j::16] for j in range(16))
    return s * (total - z * x.sum())
""",
        # the zero point forgotten
        """def dot(words, x, s, z):
    n = words.shape[1]
    return s * sum(((words >> (2 * j)) & 3).float() @ x[j * n : (j + 1) * n] for j in range(16))
""",
        # the zero point not scaled
        """def dot(words, x, s, z):
    n = words.shape[1]
    return s * sum(((words >> (2 * j)) & 3).float() @ x[j * n : (j + 1) * n] for j in range(16)) - z * x.sum()
""",
        # one field too few
        """def dot(words, x, s, z):
    n = words.shape[1]
    total = sum(((words >> (2 * j)) & 3).float() @ x[j * n : (j + 1) * n] for j in range(15))
    return s * (total - z * x.sum())
""",
    ],
}


# 03_hessians_and_feedback

MUTANTS |= {
    "feedback-1": [
        "def best_rest(w, H, first):\n"
        "    return w[1:] - (w[0] - first) * torch.linalg.solve(H[1:, 1:], H[1:, 0])\n",
        "def best_rest(w, H, first):\n    return w[1:] + (w[0] - first) * H[1:, 0]\n",
        "def best_rest(w, H, first):\n"
        "    return w[1:] + (w[0] - first) * torch.linalg.inv(H)[1:, 1:] @ H[1:, 0]\n",
        "def best_rest(w, H, first):\n    return w[1:]\n",
        "def best_rest(w, H, first):\n"
        "    rest = w[1:] + (w[0] - first) * torch.linalg.solve(H[1:, 1:], H[1:, 0])\n"
        "    return torch.cat([torch.tensor([first]), rest])\n",
        "def best_rest(w, H, first):\n"
        "    return torch.round(w[1:] + (w[0] - first) * torch.linalg.solve(H[1:, 1:], H[1:, 0]))\n",
    ],
    "feedback-2": [
        "def price(H, j):\n    return H[j, j]\n",
        "def price(H, j):\n    return 1 / torch.linalg.inv(H)[j, j]\n",
        "def price(H, j):\n    return torch.linalg.inv(H[j:, j:])[0, 0]\n",
        "def price(H, j):\n    return 1 / torch.linalg.inv(H[: j + 1, : j + 1])[j, j]\n",
        "def price(H, j):\n    return 1 / torch.linalg.inv(H[j:, j:])[0, 0] ** 0.5\n",
    ],
    "feedback-3": [
        # plain rounding
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    return (torch.round(W / s[:, None]) + z[:, None]).clamp(0, q_max).int()\n",
        # the factor of H, not of its inverse
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    U = torch.linalg.cholesky(H, upper=True)\n"
        "    now, q = W.clone(), torch.zeros_like(W)\n"
        "    for j in range(W.shape[1]):\n"
        "        q[:, j] = (torch.round(now[:, j] / s) + z).clamp(0, q_max)\n"
        "        err = (now[:, j] - s * (q[:, j] - z)) / U[j, j]\n"
        "        now[:, j + 1 :] -= torch.outer(err, U[j, j + 1 :])\n"
        "    return q.int()\n",
        # the error is not divided by the diagonal
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)\n"
        "    now, q = W.clone(), torch.zeros_like(W)\n"
        "    for j in range(W.shape[1]):\n"
        "        q[:, j] = (torch.round(now[:, j] / s) + z).clamp(0, q_max)\n"
        "        err = now[:, j] - s * (q[:, j] - z)\n"
        "        now[:, j + 1 :] -= torch.outer(err, U[j, j + 1 :])\n"
        "    return q.int()\n",
        # wrong sign
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)\n"
        "    now, q = W.clone(), torch.zeros_like(W)\n"
        "    for j in range(W.shape[1]):\n"
        "        q[:, j] = (torch.round(now[:, j] / s) + z).clamp(0, q_max)\n"
        "        err = (now[:, j] - s * (q[:, j] - z)) / U[j, j]\n"
        "        now[:, j + 1 :] += torch.outer(err, U[j, j + 1 :])\n"
        "    return q.int()\n",
        # no clamp
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)\n"
        "    now, q = W.clone(), torch.zeros_like(W)\n"
        "    for j in range(W.shape[1]):\n"
        "        q[:, j] = torch.round(now[:, j] / s) + z\n"
        "        err = (now[:, j] - s * (q[:, j] - z)) / U[j, j]\n"
        "        now[:, j + 1 :] -= torch.outer(err, U[j, j + 1 :])\n"
        "    return q.int()\n",
        # the fixed inverse, never reduced to the columns that are still free
        "def gptq_paper(W, H, s, z, q_max):\n"
        "    M = torch.linalg.inv(H)\n"
        "    now, q = W.clone(), torch.zeros_like(W)\n"
        "    for j in range(W.shape[1]):\n"
        "        q[:, j] = (torch.round(now[:, j] / s) + z).clamp(0, q_max)\n"
        "        err = (now[:, j] - s * (q[:, j] - z)) / M[j, j]\n"
        "        now[:, j + 1 :] -= torch.outer(err, M[j, j + 1 :])\n"
        "    return q.int()\n",
    ],
}
MUTANTS |= {
    "start-bits": [
        "def honest_bits(b, g):\n    return b + 16 / g",  # no zero point
        "def honest_bits(b, g):\n    return b + (16 + b)",  # a ruler for every weight
        "def honest_bits(b, g):\n    return b + (32 + b) / g",  # steps of 32 bits
    ],
    "start-kl": [
        "def kl_from_logits(a, b):\n    p, q = b.log_softmax(-1), a.log_softmax(-1)\n"  # the wrong way round
        "    return (p.exp() * (p - q)).sum(-1).mean()",
        "def kl_from_logits(a, b):\n    p, q = a.log_softmax(-1), b.log_softmax(-1)\n    return (p.exp() * (p - q)).mean()",
        "def kl_from_logits(a, b):\n    return (a.softmax(-1) * (a - b)).sum(-1).mean()",  # logits are not probabilities
    ],
    "start-feedback": [
        "def round_with_feedback(w, x):\n    return [round(a) for a in w]",
        # measured at the weights, not at the output
        "def round_with_feedback(w, x):\n    u, q = 0.0, []\n    for a in w:\n        q.append(round(a + u))\n"
        "        u += a - q[-1]\n    return q",
        # only the neighbour's error is passed on
        "def round_with_feedback(w, x):\n    u, q = 0.0, []\n    for a, b in zip(w, x):\n        q.append(round(a + u / b))\n"
        "        u = (a - q[-1]) * b\n    return q",
    ],
}


# 04_scaling_and_salient_channels

_SEARCH = """def search(W, H, bits, g):
    tried = []
    for k in range(20):
        f = H.diagonal().sqrt() ** (k / 20)
        f = f / (f.max() * f.min()).sqrt()
        E = W - rtn_naive(W * f, bits, g)[1] / f
        tried.append((float((E @ H * E).sum()), k / 20))
    error, alpha = min(tried)
    return alpha, error
"""

MUTANTS |= {
    "scaling-1": [
        "def absorb(gain, W, f):\n    return gain * f, W / f\n",
        "def absorb(gain, W, f):\n    return gain / f, W\n",
        "def absorb(gain, W, f):\n    return gain, W * f\n",
        "def absorb(gain, W, f):\n    return gain, W\n",
        "def absorb(gain, W, f):\n    return gain / f, W * f[:, None]\n",
        "def absorb(gain, W, f):\n    return gain.div_(f), W.mul_(f)\n",
    ],
    "scaling-2": [
        # the mean
        "def share(wanted, repeat, head_dim):\n"
        "    heads = wanted.reshape(-1, repeat, head_dim)\n"
        "    v = heads.mean(1)\n"
        "    return v.flatten(), v[:, None].expand_as(heads).flatten()\n",
        # neighbouring channels share, not heads
        "def share(wanted, repeat, head_dim):\n"
        "    v = wanted.reshape(-1, repeat).amax(1)\n"
        "    return v, v.repeat_interleave(repeat)\n",
        # query heads in another order
        "def share(wanted, repeat, head_dim):\n"
        "    heads = wanted.reshape(repeat, -1, head_dim)\n"
        "    v = heads.amax(0)\n"
        "    return v.flatten(), v[None].expand_as(heads).flatten()\n",
        # repeated as a whole
        "def share(wanted, repeat, head_dim):\n"
        "    v = wanted.reshape(-1, repeat, head_dim).amax(1).flatten()\n"
        "    return v, v.repeat(repeat)\n",
        # o keeps what it wanted
        "def share(wanted, repeat, head_dim):\n"
        "    return wanted.reshape(-1, repeat, head_dim).amax(1).flatten(), wanted\n",
        # one factor an input for v, too
        "def share(wanted, repeat, head_dim):\n    return wanted, wanted\n",
    ],
    "scaling-3": [
        _SEARCH.replace("H.diagonal().sqrt() **", "H.diagonal() **"),
        _SEARCH.replace("[1] / f", "[1]"),
        _SEARCH.replace("(E @ H * E).sum()", "(H.diagonal() * E.square()).sum()"),
        _SEARCH.replace("min(tried)", "max(tried)"),
        _SEARCH.replace("(E @ H * E).sum()), k / 20", "(E @ H * E).sum()), k"),
        _SEARCH.replace("return alpha, error", "return error, alpha"),
        _SEARCH.replace("f = f / (f.max() * f.min()).sqrt()", "f = 1 / f"),
    ],
}
_FLIPS = (
    "def greedy_flips(w, H, s, z, q_max):\n"
    "    base = torch.floor(w / s + z)\n"
    "    low, high = base.clamp(0, q_max), (base + 1).clamp(0, q_max)\n"
    "    q = (torch.round(w / s) + z).clamp(0, q_max)\n"
    "    def cost(q):\n"
    "        e = w - s * (q - z)\n"
    "        return float(e @ H @ e)\n"
    "    while True:\n"
    "        tries = []\n"
    "        for i in range(len(w)):\n"
    "            other = q.clone()\n"
    "            other[i] = low[i] + high[i] - q[i]\n"
    "            tries.append((cost(other), i, other))\n"
    "        least, _, other = min(tries, key=lambda t: t[:2])\n"
    "        if least >= cost(q) - 1e-12:\n"
    "            return q\n"
    "        q = other\n"
)
MUTANTS |= {
    "tesseraq-1": [
        "def scale_and_bias(s, z, k):\n    return s * k, -s * z",  # the zero point keeps the old step
        "def scale_and_bias(s, z, k):\n    return s * k, s * k * z",  # sign
        "def scale_and_bias(s, z, k):\n    return s, -s * z",  # no multiplier
    ],
    "tesseraq-2": [
        # hard variables move
        "def grad_nu(nu, G, s, k, hard):\n    a = torch.sigmoid(nu)\n    h = 1.2 * a - 0.1\n"
        "    return torch.where((h > 0) & (h < 1), G * s * k * 1.2 * a * (1 - a), 0.0)",
        # the slope of the plain sigmoid where h is cut off
        "def grad_nu(nu, G, s, k, hard):\n    a = torch.sigmoid(nu)\n"
        "    return torch.where(hard, 0.0, G * s * k * 1.2 * a * (1 - a))",
        # the stretch is forgotten
        "def grad_nu(nu, G, s, k, hard):\n    a = torch.sigmoid(nu)\n    h = 1.2 * a - 0.1\n"
        "    return torch.where(~hard & (h > 0) & (h < 1), G * s * k * a * (1 - a), 0.0)",
        # the multiplier is forgotten
        "def grad_nu(nu, G, s, k, hard):\n    a = torch.sigmoid(nu)\n    h = 1.2 * a - 0.1\n"
        "    return torch.where(~hard & (h > 0) & (h < 1), G * s * 1.2 * a * (1 - a), 0.0)",
    ],
    "tesseraq-3": [
        "def greedy_flips(w, H, s, z, q_max):\n    return (torch.round(w / s) + z).clamp(0, q_max)",  # nearest
        _FLIPS.replace("        q = other\n", "        return other\n"),  # a single flip
        _FLIPS.replace("torch.round(w / s) + z", "torch.floor(w / s) + z"),  # another start
        _FLIPS.replace("low[i] + high[i] - q[i]", "(q[i] + 1) % (q_max + 1)"),  # any code
    ],
}

# 05_learned_clipping

_HI = (
    "def slope_of_hi(w, lo, hi, q_max):\n"
    "    s = (hi - lo) / q_max\n"
    "    z = round(-lo / s)\n"
    "    free = torch.round(w / s) + z\n"
    "    inside = (free >= 0) & (free <= q_max)\n"
    "    q = free.clamp(0, q_max)\n"
    "    by_z = -s * (lo / s**2 / q_max)\n"
    "    return torch.where(inside, (q - z - w / s) / q_max, (q - z) / q_max + by_z)\n"
)
_ROWS = (
    "def row_factors(f, n_query, n_key, head_dim):\n"
    "    half = f.reshape(n_key, head_dim // 2)\n"
    "    key = torch.cat([half, half], dim=1)\n"
    "    return (1 / key).repeat_interleave(n_query // n_key, dim=0).flatten(), key.flatten()\n"
)
MUTANTS |= {
    "clipping-1": [
        "def rate_for(start, goal, steps):\n    return abs(start - goal) / steps\n",
        "def rate_for(start, goal, steps):\n"
        "    return (math.log(goal / (1 - goal)) - math.log(start / (1 - start))) / steps\n",
        "def rate_for(start, goal, steps):\n    return abs(math.log(start) - math.log(goal)) / steps\n",
        "def rate_for(start, goal, steps):\n"
        "    return abs(math.log(start / (1 - start)) - math.log(goal / (1 - goal))) * steps\n",
    ],
    "clipping-2": [
        _HI.replace(" + by_z", ""),  # the zero point stays deaf
        _HI.replace("(q - z - w / s) / q_max", "(q - z - w / s) / q_max + by_z"),  # heard where it cancels
        _HI.replace("(q - z - w / s)", "(q - z)"),  # codes held fixed inside
        _HI.replace("by_z = -s", "by_z = s"),  # sign
        _HI.replace(" / q_max)\n", ")\n"),  # the step's own slope forgotten in z
    ],
    "clipping-3": [
        _ROWS.replace("torch.cat([half, half], dim=1)", "half.repeat_interleave(2, dim=1)"),  # neighbours paired
        _ROWS.replace("repeat_interleave(n_query // n_key, dim=0)", "repeat(n_query // n_key, 1)"),  # every second head
        _ROWS.replace("(1 / key)", "key"),  # queries not divided
        _ROWS.replace("f.reshape", "torch.ones_like(f).reshape"),  # f not used
        _ROWS.replace(".repeat_interleave(n_query // n_key, dim=0)", ""),  # one query head a key head
    ],
}

# 07_output_adaptive_hessians

_STRENGTH = (
    "def strength(W, X, X_hat):\n"
    "    asked = cost = 0.0\n"
    "    H = [x.T @ x / len(x) for x in X_hat]\n"
    "    C = [(x - y).T @ y / len(x) for x, y in zip(X, X_hat)]\n"
    "    for h in range(2):\n"
    "        M = W @ C[h] @ torch.linalg.inv(H[h])\n"
    "        asked += float((W @ C[1 - h] * M).sum())\n"
    "        cost += float((M @ H[1 - h] * M).sum())\n"
    "    return min(1.0, max(0.0, asked / cost))\n"
)
_LOGITS = (
    "def at_the_logits(logits, ids):\n"
    "    A = logits.softmax(-1)\n"
    "    A[torch.arange(len(ids) - 1), ids[1:]] -= 1\n"
    "    A[-1] = 0\n"
    "    return A\n"
)
_PADDED = (
    "def padded_hessian(X, A, mask):\n"
    "    X, A = (t.masked_fill(~mask[..., None], 0.0) for t in (X, A))\n"
    "    G = torch.einsum('rti,rtj->rij', A, X)\n"
    "    return torch.einsum('rij,rik->jk', G, G) / len(X)\n"
)
MUTANTS |= {
    "adaptive-1": [
        _LOGITS.replace("ids[1:]", "ids[:-1]"),  # the token itself
        _LOGITS.replace("    A[-1] = 0\n", ""),  # the last token predicts
        _LOGITS.replace("return A", "return A / (len(ids) - 1)"),  # a mean
        _LOGITS.replace("return A", "return -A"),  # the sign
    ],
    "adaptive-2": [
        _PADDED.replace("    X, A = (t.masked_fill(~mask[..., None], 0.0) for t in (X, A))\n", ""),  # garbage comes in
        _PADDED.replace("/ len(X)", "/ mask.sum()"),  # a mean over tokens
        _PADDED.replace("/ len(X)", ""),  # a sum
        _PADDED.replace("torch.einsum('rij,rik->jk', G, G) / len(X)", "G.mean(0).T @ G.mean(0)"),  # averaged first
        _PADDED.replace("torch.einsum('rij,rik->jk', G, G)", "G.sum(0).T @ G.sum(0)"),  # products between sequences
        _PADDED.replace("G = torch.einsum('rti,rtj->rij', A, X)", "G = X * A.norm(dim=-1, keepdim=True)"),  # tokens form
    ],
    "adaptive-3": [
        _STRENGTH.replace("1 - h", "h"),  # on the half it was fitted on
        _STRENGTH.replace("min(1.0, max(0.0, asked / cost))", "asked / cost"),
        _STRENGTH.replace("(x - y).T @ y", "y.T @ (x - y)"),  # C the wrong way round
        _STRENGTH.replace("M @ H[1 - h]", "M @ H[h]"),  # the wrong half's cost
        _STRENGTH.replace("min(1.0, max(0.0, asked / cost))", "0.25"),  # the constant of GPTAQ's code
    ],
}
_BILL = (
    "def total_bits(d_out, d_in, bits, g, rows, n_outliers):\n"
    "    n_groups = d_out * d_in // g\n"
    "    return d_out * d_in * bits + 6 * n_groups + 64 * n_groups // rows + 32 * (d_out + 1) + 32 * n_outliers\n"
)
_PRODUCT = (
    "def product(dense, ptr, cols, values, x, replace):\n"
    "    y = dense @ x\n"
    "    for i in range(len(dense)):\n"
    "        for k in range(int(ptr[i]), int(ptr[i + 1])):\n"
    "            j = int(cols[k])\n"
    "            y[i] += (values[k] - dense[i, j] if replace else values[k]) * x[j]\n"
    "    return y\n"
)
_GAINS = (
    "def gains(G, cost, q_max):\n"
    "    def errors(lo, hi):\n"
    "        s = ((hi - lo) / q_max).clamp(min=1e-12)[:, None]\n"
    "        q = ((G - lo[:, None]) / s).round().clamp(0, q_max)\n"
    "        return (lo[:, None] + s * q - G).square() * cost\n"
    "    low, high = G.sort(1).values[:, :2], G.sort(1, descending=True).values[:, :2]\n"
    "    whole = errors(low[:, 0], high[:, 0])\n"
    "    out = whole.clone()\n"
    "    for at, lo, hi in ((G.argmin(1), low[:, 1], high[:, 0]), (G.argmax(1), low[:, 0], high[:, 1])):\n"
    "        rest = errors(lo, hi).scatter(1, at[:, None], 0.0)\n"
    "        out.scatter_(1, at[:, None], (whole.sum(1) - rest.sum(1))[:, None])\n"
    "    return out\n"
)
MUTANTS |= {
    "spqr-1": [
        _BILL.replace(" + 32 * (d_out + 1)", ""),  # no row pointers, as in the paper's formula
        _BILL.replace("d_out + 1", "d_out"),  # one pointer too few
        _BILL.replace("+ 64 * n", "+ 32 * n"),  # steps or zero points, not both
        _BILL.replace("32 * n_outliers", "16 * n_outliers"),  # values without an address
        _BILL.replace("64 * n_groups // rows", "64 * n_groups"),  # nothing shared
    ],
    "spqr-2": [
        _PRODUCT.replace("values[k] - dense[i, j] if replace else values[k]", "values[k]"),  # the double count
        _PRODUCT.replace("values[k] - dense[i, j] if replace else values[k]", "values[k] - dense[i, j]"),  # always replaced
        _PRODUCT.replace("* x[j]", "* x[k % len(x)]"),  # values meet the wrong inputs
        _PRODUCT.replace("    y = dense @ x\n", "    y = torch.zeros(len(dense), dtype=x.dtype)\n"),  # the sparse part alone
        # writes into the dense weights
        "def product(dense, ptr, cols, values, x, replace):\n"
        "    for i in range(len(dense)):\n"
        "        for k in range(int(ptr[i]), int(ptr[i + 1])):\n"
        "            j = int(cols[k])\n"
        "            dense[i, j] = values[k] if replace else dense[i, j] + values[k]\n"
        "    return dense @ x\n",
    ],
    "spqr-3": [
        _GAINS.replace("    for at,", "    return out\n    for at,"),  # the ends' own error only
        _GAINS.replace(".scatter(1, at[:, None], 0.0)", ""),  # the one left out still counts
        _GAINS.replace(" * cost", ""),  # prices forgotten
        _GAINS.replace("low[:, 1], high[:, 0]", "low[:, 0], high[:, 0]"),  # the ruler stays
        _GAINS.replace("whole.sum(1) - rest.sum(1)", "rest.sum(1)"),  # what is left, not what is gained
    ],
}
