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
