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


# 12_vptq

_VPTQ_BILL = (
    "def total_bits(d_out, d_in, v, k, k_res):\n"
    "    n_pieces = -(-d_out // v) * d_in\n"
    "    bits = n_pieces * (k.bit_length() - 1) + 16 * k * v + 16 * d_in\n"
    "    return bits + (n_pieces * (k_res.bit_length() - 1) + 16 * k_res * v if k_res else 0)\n"
)
_READ_INDEX = (
    "def read_index(words, t, b, b_res):\n"
    "    at, shift = divmod(t * (b + b_res), 32)\n"
    "    both = words[at] & 0xFFFFFFFF\n"
    "    if at + 1 < len(words):\n"
    "        both |= (words[at + 1] & 0xFFFFFFFF) << 32\n"
    "    element = both >> shift\n"
    "    return element & (1 << b) - 1, element >> b & (1 << b_res) - 1\n"
)
_GRADIENTS = (
    "def gradients(G, C, idx, s):\n"
    "    (R, d_in), v = idx.shape, C.shape[1]\n"
    "    padded = torch.nn.functional.pad(G, (0, 0, 0, R * v - len(G)))\n"
    "    pieces = padded.reshape(R, v, d_in).transpose(1, 2)\n"
    "    dC = torch.zeros_like(C).index_add_(0, idx.flatten(), (pieces * s[:, None]).reshape(-1, v))\n"
    "    return dC, (pieces * C[idx]).sum((0, 2))\n"
)
MUTANTS |= {
    "vptq-1": [
        _VPTQ_BILL.replace(" + 16 * k * v", ""),  # names of models count like this
        _VPTQ_BILL.replace(" + 16 * d_in", ""),  # no scales
        _VPTQ_BILL.replace("-(-d_out // v)", "(d_out // v)"),  # the short last piece has no index
        _VPTQ_BILL.replace("k.bit_length() - 1)", "k.bit_length())"),  # a bit too many
        _VPTQ_BILL.replace("16 * k_res * v", "16 * k * v"),  # the second codebook as large as the first
    ],
    "vptq-2": [
        _READ_INDEX.replace("at + 1 < len(words)", "False"),  # never straddles
        _READ_INDEX.replace("both = words[at] & 0xFFFFFFFF", "both = words[at]"),  # a negative low word fills the high one
        _READ_INDEX.replace("(1 << b_res) - 1", "(1 << b) - 1"),  # the published code's mask
        _READ_INDEX.replace("element & (1 << b) - 1, element >> b & (1 << b_res) - 1",
                            "element >> b_res & (1 << b) - 1, element & (1 << b_res) - 1"),  # the residual index below
        _READ_INDEX.replace("t * (b + b_res)", "t * b"),  # a stream of main indices only
    ],
    "vptq-3": [
        _GRADIENTS.replace(" * s[:, None]", ""),  # the scale does not come along
        _GRADIENTS.replace(".transpose(1, 2)", ".reshape(R, d_in, v)"),  # rows and columns mixed up
        _GRADIENTS.replace("idx.flatten()", "idx.T.flatten()"),  # another order than the pieces
        _GRADIENTS.replace("(pieces * C[idx]).sum((0, 2))", "(pieces * C[idx] * s[:, None]).sum((0, 2))"),  # after scaling
        # a mean, as in k-means
        _GRADIENTS.replace("    return dC,", "    return dC / idx.flatten().bincount(minlength=len(C)).clamp(min=1)[:, None],"),
        # the last piece wins, nothing is summed
        _GRADIENTS.replace("torch.zeros_like(C).index_add_(0, ", "torch.zeros_like(C).index_copy_(0, "),
    ],
}
_WHOLE_BILL = (
    "def bits_per_weight(d_out, d_in, v, k, k_res, norm_bits):\n"
    "    index = math.ceil(math.log2(k)) + (math.ceil(math.log2(k_res)) if k_res else 0)\n"
    "    total = math.ceil(d_out / v) * d_in * index + 16 * v * (k + k_res) + norm_bits * d_in\n"
    "    return total / (d_out * d_in)\n"
)
_LLOYD_STEP = (
    "def lloyd_step(x, w, C):\n"
    "    idx = (x @ C.T - C.square().sum(1) / 2).argmax(1)\n"
    "    sums = torch.zeros_like(C).index_add(0, idx, w[:, None] * x)\n"
    "    total = torch.zeros_like(C[:, 0]).index_add(0, idx, w)[:, None]\n"
    "    return idx, torch.where(total > 0, sums / total.clamp(min=1e-300), C)\n"
)
_BEST_PAIRS = (
    "def best_pairs(x, A, B):\n"
    "    table = A.square().sum(1)[:, None] + B.square().sum(1) + 2 * A @ B.T\n"
    "    scores = table - 2 * (x @ A.T)[:, :, None] - 2 * (x @ B.T)[:, None, :]\n"
    "    at = scores.flatten(1).argmin(1)\n"
    "    return torch.stack([at // len(B), at % len(B)], 1)\n"
)
MUTANTS |= {
    "codebooks-1": [
        _WHOLE_BILL.replace(" + 16 * v * (k + k_res)", ""),  # the number in the title
        _WHOLE_BILL.replace("(k + k_res)", "k"),  # the second list is not stored
        _WHOLE_BILL.replace("math.ceil(d_out / v)", "d_out / v"),  # half pieces
        _WHOLE_BILL.replace("math.ceil(math.log2(k))", "math.log2(k)"),  # indices of 8.2 bits
        _WHOLE_BILL.replace("norm_bits * d_in", "norm_bits * d_out"),  # rows in place of columns
        _WHOLE_BILL.replace("16 * v * (k", "16 * (k"),  # entries of one number
    ],
    "codebooks-2": [
        _LLOYD_STEP.replace("square().sum(1) / 2", "square().sum(1)"),  # the half forgotten
        _LLOYD_STEP.replace(" - C.square().sum(1) / 2", ""),  # the greatest product
        _LLOYD_STEP.replace("w[:, None] * x", "x").replace("idx, w)", "idx, torch.ones_like(w))"),  # all alike
        _LLOYD_STEP.replace("torch.where(total > 0, sums / total.clamp(min=1e-300), C)", "sums / total"),  # 0 / 0
        _LLOYD_STEP.replace("1e-300), C)", "1e-300), 0.0)"),  # empty entries fall to the origin
        _LLOYD_STEP.replace("(x @ C.T - C", "(w[:, None] * x @ C.T - C"),  # importance in the assignment
    ],
    "codebooks-3": [
        _BEST_PAIRS.replace(" + 2 * A @ B.T", ""),  # lists that do not know of each other
        _BEST_PAIRS.replace("- 2 * (x @ B.T)[:, None, :]", "- (x @ B.T)[:, None, :]"),  # a factor forgotten
        _BEST_PAIRS.replace("[at // len(B), at % len(B)]", "[at % len(B), at // len(B)]"),  # swapped
        _BEST_PAIRS.replace("at // len(B), at % len(B)", "at // len(A), at % len(A)"),  # the wrong list's length
        # one after the other
        "def best_pairs(x, A, B):\n"
        "    i = torch.cdist(x, A).argmin(1)\n"
        "    return torch.stack([i, torch.cdist(x - A[i], B).argmin(1)], 1)\n",
    ],
}

# 10_ptq161

_HONEST = (
    "def honest(d_out, d_in, n_high, bits):\n"
    "    n_low = d_in - n_high\n"
    "    total = d_out * (bits * n_high + n_low) + d_in + d_out * (16 + bits + 32) + 16 * n_low\n"
    "    return total / (d_out * d_in)\n"
)
_BITWISE = (
    "def product(x, salient, q, s, z, b, a, mu, v):\n"
    "    xs, xv = x[salient], x[~salient] * v\n"
    "    return s * (q @ xs) - s * z * xs.sum() + 2 * a * (b @ xv) + (mu - a) * xv.sum()\n"
)
_SLOPE = (
    "def slope(Y, T):\n"
    "    y, t = (M / M.norm(dim=1, keepdim=True) for M in (Y, T))\n"
    "    cos = (y * t).sum(1, keepdim=True)\n"
    "    return -(t - cos * y) / Y.norm(dim=1, keepdim=True) / len(Y) / cos.mean()\n"
)
MUTANTS |= {
    "ptq161-1": [
        _HONEST.replace(" + 16 * n_low", ""),  # no column factors
        _HONEST.replace("(16 + bits + 32)", "(16 + bits + 16)"),  # a level without a mean
        _HONEST.replace("+ d_in +", "+ d_out * d_in +"),  # a map of single weights
        _HONEST.replace("16 + bits", "32"),  # a zero point in half precision
        _HONEST.replace("(d_out * d_in)", "(d_out * (bits * n_high + n_low))"),  # over the number of bits, as in the paper
    ],
    "ptq161-2": [
        _BITWISE.replace("x[salient], x[~salient]", "x[: q.shape[1]], x[q.shape[1] :]"),  # salient channels assumed first
        _BITWISE.replace(" - s * z * xs.sum()", ""),  # no zero point
        _BITWISE.replace("(mu - a)", "mu"),  # bits taken for signs
        _BITWISE.replace("2 * a", "a"),  # half the level
        _BITWISE.replace("x[~salient] * v", "x[~salient]"),  # no column factors
    ],
    "ptq161-3": [
        _SLOPE.replace("-(t - cos * y)", "-t"),  # a part along the output
        _SLOPE.replace(" / cos.mean()", ""),  # the logarithm forgotten
        _SLOPE.replace("cos.mean()", "cos.mean().abs()"),  # wrong where cosines are negative
        _SLOPE.replace(" / len(Y) / cos.mean()", " / len(Y) / cos"),  # a mean of logarithms
        _SLOPE.replace(" / len(Y)", ""),  # a sum over tokens
        _SLOPE.replace("return -", "return "),  # the sign
    ],
}
_RANK_ONE = (
    "def rank_one(A, mask, rounds):\n"
    "    M = mask.to(A.dtype)\n"
    "    A, v = A * M, torch.ones_like(A[0])\n"
    "    for _ in range(rounds):\n"
    "        u = (A @ v) / (M @ v**2)\n"
    "        v = (A.T @ u) / (M.T @ u**2)\n"
    "    return u, v\n"
)
_BY_COLUMN = (
    "def by_column(W, H, levels):\n"
    "    W_hat, E = torch.zeros_like(W), torch.zeros_like(W)\n"
    "    for j in range(W.shape[1]):\n"
    "        now = W[:, j] + (E[:, :j] @ H[:j, j:] @ torch.linalg.inv(H[j:, j:]))[:, 0]\n"
    "        nearest = (levels - now[:, None]).abs().argmin(1, keepdim=True)\n"
    "        W_hat[:, j] = levels.gather(1, nearest)[:, 0]\n"
    "        E[:, j] = W[:, j] - W_hat[:, j]\n"
    "    return W_hat\n"
)
_BILLM_BILL = (
    "def total_bits(d_out, d_in, span):\n"
    "    n_blocks = -(-d_in // span)\n"
    "    return 2 * d_out * d_in + d_in + 7 * 16 * d_out * n_blocks\n"
)
MUTANTS |= {
    "onebit-1": [
        _BILLM_BILL.replace("-(-d_in // span)", "d_in // span"),  # the narrow block is free
        _BILLM_BILL.replace("2 * d_out", "d_out"),  # the second plane is called free
        _BILLM_BILL.replace("7 * 16", "8 * 16"),  # two means for salient columns, as the code computes them
        _BILLM_BILL.replace(" + d_in", ""),  # no flags
        _BILLM_BILL.replace("d_out * n_blocks", "d_out"),  # numbers of a row, not of a row and block
    ],
    "onebit-2": [
        _RANK_ONE.replace("M @ v**2", "(v**2).sum()").replace("M.T @ u**2", "(u**2).sum()"),  # lower sums without the mask
        _RANK_ONE.replace("A, v = A * M,", "A, v = A,"),  # upper sums without the mask
        _RANK_ONE.replace("M @ v**2", "M @ v").replace("M.T @ u**2", "M.T @ u"),  # averages instead of least squares
        _RANK_ONE.replace("(A.T @ u) / (M.T @ u**2)", "v / v.mean()"),  # columns stay as they are
        _RANK_ONE.replace("range(rounds)", "range(1)"),  # once only
    ],
    "onebit-3": [
        _BY_COLUMN.replace(" + (E[:, :j] @ H[:j, j:] @ torch.linalg.inv(H[j:, j:]))[:, 0]", ""),  # no feedback
        _BY_COLUMN.replace("W[:, j] + (", "W[:, j] - ("),  # errors pushed the wrong way
        _BY_COLUMN.replace(" @ torch.linalg.inv(H[j:, j:]))[:, 0]", ")[:, 0] / H[j, j]"),  # the columns after it do not adapt
        _BY_COLUMN.replace("torch.linalg.inv(H[j:, j:])", "torch.linalg.inv(H)[j:, j:]"),  # the inverse of all columns
        _BY_COLUMN.replace("levels.gather(1, nearest)[:, 0]", "now"),  # nothing is rounded
    ],
}
_SYMMETRIC = (
    "def symmetric(X, bits):\n"
    "    s = X.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)\n"
    "    s = torch.where(s > 0, s, 1.0)\n"
    "    return s * (X / s).round()\n"
)
_FOLD = (
    "def fold(gain, bias, W, c, f, delta):\n"
    "    return gain / f, (bias - delta) / f, W * f, c + W @ delta\n"
)
_INTEGERS = (
    "def product(p, s_x, z_x, q, s_w, z_w):\n"
    "    whole = p @ q.T - z_x[:, None] * q.sum(1) - p.sum(1, keepdim=True) * z_w + p.shape[1] * z_x[:, None] * z_w\n"
    "    return s_x[:, None] * whole * s_w\n"
)
MUTANTS |= {
    "activations-1": [
        _SYMMETRIC.replace("X.abs().amax(1, keepdim=True)", "X.abs().amax()"),  # one ruler for all tokens
        _SYMMETRIC.replace("X.abs().amax(1, keepdim=True)", "X.abs().amax(0, keepdim=True)"),  # a ruler a channel
        _SYMMETRIC.replace(" - 1)\n", ")\n"),  # one mark more than there is
        _SYMMETRIC.replace("2 ** (bits - 1) - 1", "2**bits - 1"),  # steps of an asymmetric ruler
        _SYMMETRIC.replace("    s = torch.where(s > 0, s, 1.0)\n", ""),  # nothing over nothing
        _SYMMETRIC.replace("X.abs().amax", "X.amax"),  # large negative numbers forgotten
        _SYMMETRIC.replace(".round()", ".floor()"),  # not to the nearest
    ],
    "activations-2": [
        _FOLD.replace("c + W @ delta", "c + (W * f) @ delta"),  # the scaled weights give the shift back
        _FOLD.replace("c + W @ delta", "c - W @ delta"),  # taken off twice
        _FOLD.replace("(bias - delta) / f", "bias / f - delta"),  # shifted after the division
        _FOLD.replace("(bias - delta) / f", "bias - delta"),  # the bias is not divided
        _FOLD.replace("gain / f", "gain * f"),  # the wrong way
        _FOLD.replace("W * f", "W / f"),  # weights divided too
        "def fold(gain, bias, W, c, f, delta):\n    return gain, bias, W, c\n",  # nothing moved, nothing done
    ],
    "activations-3": [
        _INTEGERS.replace(" + p.shape[1] * z_x[:, None] * z_w", ""),  # the fourth term forgotten
        _INTEGERS.replace("p.shape[1] * ", ""),  # the fourth term once, not d times
        _INTEGERS.replace("- z_x[:, None] * q.sum(1)", "- z_x[:, None] * p.sum(1, keepdim=True)"),  # sums of the wrong codes
        _INTEGERS.replace("- p.sum(1, keepdim=True) * z_w ", ""),  # zero points of weights left in
        _INTEGERS.replace("whole * s_w", "whole"),  # steps of weights forgotten
        _INTEGERS.replace("s_x[:, None] * whole", "whole / s_x[:, None]"),  # inverse steps
    ],
}
_VISITS = (
    "def visits(n, width, overlap):\n"
    "    counts, first = [0] * n, 0\n"
    "    while True:\n"
    "        end = min(first + width, n)\n"
    "        for k in range(first, end):\n"
    "            counts[k] += 1\n"
    "        if end == n:\n"
    "            return counts\n"
    "        first += width - overlap\n"
)
_FOLD_OUTLIERS = (
    "def fold(gain, W, peak, cut):\n"
    "    f = torch.where(peak > cut, (peak / cut).sqrt(), torch.ones_like(peak))\n"
    "    return gain / f, W * f\n"
)
_THIN = (
    "def factor_gradients(W, s, z, q_max, V0, A1, A2, kappa, G):\n"
    "    sigma = torch.sigmoid(kappa * (V0 + A1 @ A2))\n"
    "    h = 1.2 * sigma - 0.1\n"
    "    mark = torch.floor(W / s) + h.clamp(0, 1) + z\n"
    "    counts = (h > 0) & (h < 1) & (mark > 0) & (mark < q_max)\n"
    "    D = G * s * 1.2 * kappa * sigma * (1 - sigma) * counts\n"
    "    return D @ A2.T, A1.T @ D\n"
)
MUTANTS |= {
    "cbq-1": [
        _VISITS.replace("width - overlap", "width"),  # windows side by side
        _VISITS.replace("width - overlap", "1"),  # always one block further
        _VISITS.replace("if end == n:", "if first >= n - 1:"),  # a window too many
        _VISITS.replace("[0] * n", "[1] * n"),
    ],
    "cbq-2": [
        _FOLD_OUTLIERS.replace("gain / f, W * f", "gain / f, W / f"),  # divided twice
        _FOLD_OUTLIERS.replace("(peak / cut).sqrt()", "peak / cut"),  # without the root
        _FOLD_OUTLIERS.replace("torch.where(peak > cut, (peak / cut).sqrt(), torch.ones_like(peak))", "(peak / cut) ** 0.5"),
        _FOLD_OUTLIERS.replace("gain / f, W * f", "gain / f, W"),  # the weights forgotten
    ],
    "cbq-3": [
        _THIN.replace("1.2 * kappa * sigma", "1.2 * sigma"),  # the steepness forgotten
        _THIN.replace("(h > 0) & (h < 1) & (mark > 0) & (mark < q_max)", "torch.ones_like(h)"),  # clipped weights count
        _THIN.replace("(h > 0) & (h < 1) & ", ""),  # a clipped h counts
        _THIN.replace(" & (mark > 0) & (mark < q_max)", ""),  # a clipped mark counts
        _THIN.replace("D @ A2.T, A1.T @ D", "A1.T @ D, D @ A2.T"),  # the factors exchanged
        _THIN.replace("V0 + A1 @ A2", "A1 @ A2"),  # the start forgotten
    ],
}


# 15_packed_kernels

_BUDGET = """
def budget(bits, group, read, rate, kept=0.0):
    size = (bits + 16 / group + 32 * kept) / 8
    return size / read * rate
"""
_EXACT_DIGITS = """
def exact_digits(x):
    top, most = max(abs(v) for v in x), 127 * (1 + 256 + 65536)
    step = 2.0 ** (math.frexp(top)[1] - 25)
    while max(abs(math.floor(v / step + 0.5)) for v in x) > most:
        step *= 2
    out = []
    for v in x:
        whole, three = math.floor(v / step + 0.5), []
        for _ in range(3):
            three.append((whole + 128) % 256 - 128)
            whole = (whole - three[-1]) // 256
        out.append(three)
    return step, out
"""
_INTEGER_PRODUCT = """
def product(words, digits, step, s, z, group):
    n = words.shape[1]
    x = digits @ torch.tensor([1, 256, 65536])
    total = torch.zeros(s.shape, dtype=torch.int64)
    for j in range(16):
        total[:, j * n // group] += ((words.long() >> (2 * j)) & 3) @ x[j * n : (j + 1) * n]
    sums = x.reshape(-1, group).sum(1)
    return step * (s * (total - z * sums)).sum(1)
"""

MUTANTS |= {
    "packed-1": [
        _BUDGET.replace(") / 8", ")"),  # bits taken for bytes
        _BUDGET.replace("16 / group", "16 * group"),
        _BUDGET.replace(" + 16 / group", ""),  # scales forgotten
        _BUDGET.replace("32 * kept", "16 * kept"),  # addresses forgotten
        _BUDGET.replace("/ read * rate", "* read / rate"),
    ],
    "packed-2": [
        _EXACT_DIGITS.replace("step = 2.0 ** (math.frexp(top)[1] - 25)", "step = top / 8300000"),  # no power of two
        _EXACT_DIGITS.replace("(whole + 128) % 256 - 128", "whole % 256"),  # digits without signs
        _EXACT_DIGITS.replace("- 25)", "- 22)"),  # too large a step
        _EXACT_DIGITS.replace("127 * (1 + 256 + 65536)", "2**23 - 1"),  # the last digit may leave its byte
        _EXACT_DIGITS.replace("whole = (whole - three[-1]) // 256", "whole = whole // 256"),  # no carry
    ],
    "packed-3": [
        _INTEGER_PRODUCT.replace("j * n // group", "0"),  # everything in the first group
        _INTEGER_PRODUCT.replace(" & 3", ""),  # no mask
        _INTEGER_PRODUCT.replace("[1, 256, 65536]", "[1, 256, 512]"),
        _INTEGER_PRODUCT.replace("total - z * sums", "total"),  # the zero point forgotten
        _INTEGER_PRODUCT.replace("return step * ", "return "),
        _INTEGER_PRODUCT.replace("x[j * n : (j + 1) * n]", "x[j::16]"),  # interleaved
    ],
}


# 16_speed_runs

_FAIR = "def faster(old, new, warm):\n    return median_naive([a / b for a, b in zip(old, new, strict=True)], warm)\n"
_BITS_FOR = (
    "def bits_for(target, weights, bandwidth, rest):\n"
    "    left = 1 / target - rest\n"
    "    return min(16.0, 8 * left * bandwidth / weights) if left > 0 else None\n"
)
_SHORT_QUEUE = (
    "def finish(work, issue, depth):\n"
    "    cpu, ends = 0.0, []\n"
    "    for k, w in enumerate(work):\n"
    "        if k >= depth:\n"
    "            cpu = max(cpu, ends[k - depth])\n"
    "        cpu += issue\n"
    "        ends.append(max(cpu, ends[-1] if ends else 0.0) + w)\n"
    "    return ends[-1]\n"
)
MUTANTS |= {
    "speed-1": [
        _FAIR.replace("a / b for", "b / a for"),  # upside down
        _FAIR.replace("True)], warm)", "True)], 0)"),  # warm-up counted
        "def faster(old, new, warm):\n    return median_naive(old, warm) / median_naive(new, warm)\n",  # not inside rounds
        "def faster(old, new, warm):\n    return sum(old[warm:]) / sum(new[warm:])\n",  # one bad round decides
        "def faster(old, new, warm):\n    return min(old[warm:]) / min(new[warm:])\n",  # the luckiest calls
    ],
    "speed-2": [
        _BITS_FOR.replace("1 / target - rest", "1 / target"),  # nothing but weights
        _BITS_FOR.replace("8 * left", "left"),  # bytes, not bits
        _BITS_FOR.replace("min(16.0, 8 * left * bandwidth / weights)", "8 * left * bandwidth / weights"),  # 40 bits
        _BITS_FOR.replace(" if left > 0 else None", ""),  # negative bits
        _BITS_FOR.replace("left > 0", "left >= 0"),  # 0 bits are none
    ],
    "speed-3": [
        _SHORT_QUEUE.replace("if k >= depth:", "if False:"),  # an endless queue
        _SHORT_QUEUE.replace("k >= depth", "k > depth").replace("k - depth", "k - depth - 1"),  # room for one more
        _SHORT_QUEUE.replace("max(cpu, ends[k - depth])", "ends[k - depth]"),  # the CPU's clock turned back
        _SHORT_QUEUE.replace("max(cpu, ends[-1] if ends else 0.0)", "cpu"),  # kernels side by side
        "def finish(work, issue, depth):\n    return sum(work) + issue * len(work)\n",  # nothing overlaps
    ],
}


# 18_compose_your_own

_MARGIN = (
    "def margin(combination, singles):\n"
    "    def mean(one):\n"
    "        return sum(one['kls']) / len(one['kls'])\n"
    "    rival = min((one for one in singles if one['bits'] <= combination['bits']), key=mean)\n"
    "    return rival['name'], 1 - mean(combination) / mean(rival), max(combination['kls']) < min(rival['kls'])\n"
)
_REFIT_ALL = (
    "def refit_all(W, q, z, H, g):\n"
    "    n = W.shape[1] // g\n"
    "    C = torch.zeros(len(W), n, W.shape[1], dtype=W.dtype)\n"
    "    for k in range(n):\n"
    "        C[:, k, k * g : (k + 1) * g] = (q - z)[:, k * g : (k + 1) * g]\n"
    "    A, b = C @ H @ C.mT, (C @ H @ W[..., None])[..., 0]\n"
    "    return torch.linalg.solve(A, b)\n"
)
MUTANTS |= {
    "compose-1": [
        "def in_the_way(neither, first, second, both):\n    return both / (first * second)",  # shares without a whole
        "def in_the_way(neither, first, second, both):\n    return first * second / (neither * both)",  # upside down
        # gains that add up
        "def in_the_way(neither, first, second, both):\n    return both / (first + second - neither)",
        "def in_the_way(neither, first, second, both):\n    return both / min(first, second)",  # against the better one
    ],
    "compose-2": [
        _MARGIN.replace("if one['bits'] <= combination['bits']", ""),  # any bits
        _MARGIN.replace("<= combination", "< combination"),  # as many bits are no rival
        _MARGIN.replace("key=mean)", "key=lambda one: min(one['kls']))"),  # luck
        _MARGIN.replace("1 - mean(combination) / mean(rival)", "mean(rival) / mean(combination) - 1"),  # of the wrong whole
        _MARGIN.replace("max(combination['kls']) < min(rival['kls'])", "mean(combination) < mean(rival)"),  # means alone
        _MARGIN.replace("max(combination['kls']) <", "min(combination['kls']) <"),  # the luckiest seed
    ],
    "compose-3": [
        # once over the groups, as in the notebook
        "def refit_all(W, q, z, H, g):\n    s = torch.ones(len(W), W.shape[1] // g, dtype=W.dtype)\n"
        "    return refit_naive(W, q, z, s, H, g)\n",
        _REFIT_ALL.replace("A, b = C @ H @ C.mT", "A, b = (C @ H @ C.mT) * torch.eye(n, dtype=W.dtype)"),  # each by itself
        _REFIT_ALL.replace("C @ H @", "C @"),  # the weights, not the output
        _REFIT_ALL.replace("(q - z)[", "q["),  # the zero point forgotten
        # one step for all groups of a row
        _REFIT_ALL.replace("torch.linalg.solve(A, b)", "(b.sum(1) / A.sum((1, 2)))[:, None].repeat(1, n)"),
    ],
}


# 17_the_table

_PAIRED = (
    "def paired(old, new):\n"
    "    changes = [new[seed] / old[seed] - 1 for seed in old.keys() & new.keys()]\n"
    "    return sum(changes) / len(changes), sum(change < 0 for change in changes)\n"
)
_FRONT_OF_MANY = (
    "def front_of_many(methods):\n"
    "    def beats(b, a):\n"
    "        return all(x <= y for x, y in zip(b, a)) and b != a\n"
    "    return sorted(name for name, a in methods.items() if not any(beats(b, a) for b in methods.values()))\n"
)
_CHANCE = (
    "def chance(first, second):\n"
    "    pool, k = [*first, *second], len(first)\n"
    "    def gap(chosen):\n"
    "        mine = [pool[i] for i in chosen]\n"
    "        other = [x for i, x in enumerate(pool) if i not in chosen]\n"
    "        return sum(other) / len(other) - sum(mine) / len(mine)\n"
    "    real = gap(range(k))\n"
    "    deals = list(itertools.combinations(range(len(pool)), k))\n"
    "    return sum(gap(deal) >= real - 1e-12 for deal in deals) / len(deals)\n"
)
MUTANTS |= {
    "table-1": [
        _PAIRED.replace("new[seed] / old[seed]", "old[seed] / new[seed]"),  # the other way round
        _PAIRED.replace("old.keys() & new.keys()", "old"),  # seeds that one of them lacks
        _PAIRED.replace("change < 0", "change <= 0"),  # equal counted as better
        "def paired(old, new):\n"  # a ratio of means
        "    both = old.keys() & new.keys()\n"
        "    return (sum(new[s] for s in both) / sum(old[s] for s in both) - 1, sum(new[s] < old[s] for s in both))\n",
        _PAIRED.replace("return sum(changes) / len(changes), ", "return sum(changes), "),  # no mean
    ],
    "table-2": [
        _FRONT_OF_MANY.replace("all(x <= y", "any(x < y"),  # better in one cost
        _FRONT_OF_MANY.replace(" and b != a", ""),  # everything beats itself
        _FRONT_OF_MANY.replace("x <= y", "x < y"),  # ties beat nothing
        _FRONT_OF_MANY.replace("zip(b, a)", "zip(b[:2], a[:2])"),  # two costs only
        "def front_of_many(methods):\n    return sorted({min(methods, key=lambda n: methods[n][i]) for i in range(2)})\n",
    ],
    "table-3": [
        _CHANCE.replace(">= real - 1e-12", "> real + 1e-12"),  # the real deal left out
        _CHANCE.replace("gap(deal) >=", "abs(gap(deal)) >="),  # either side
        _CHANCE.replace("sum(other) / len(other) - sum(mine) / len(mine)", "sum(mine) / len(mine) - sum(other) / len(other)"),
        _CHANCE.replace("if i not in chosen", "if x not in mine"),  # values instead of places
        "def chance(first, second):\n    return float(min(second) < max(first))\n",  # separate or not
    ],
}
