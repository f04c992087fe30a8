"""The checkpoint format that the `vptq` package and transformers read: its tensors, its streams of bits, its configuration.

A row of indices is one stream: element t of a row takes bits t (b + b_res) up to (t + 1) (b + b_res), index in the low b bits,
residual index above it, lowest bit first; a row ends on a whole 32-bit word.  Columns lie in the order of importance, `perm`
says where each belongs; where there is one group and no outlier column they lie in their own order and there is no `perm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.codebooks.codebook import OUTLIERS, Stage, index_bits
from lowbit_nb.codebooks.vector import VectorWeight


def pack_stream(idx: Tensor, b: int, res: Tensor | None = None, b_res: int = 0) -> Tensor:
    """Indices, and residual indices above them, as one stream of bits a row.

    Shapes:  idx, res [..., n] integers; returns [..., ceil(n (b + b_res) / 32)] int32.
    Units:   indices in, words out.
    Raises:  ValueError if the two take more than 32 bits together, or an index does not fit its bits.
    Source:  VPTQ code (utils/pack.py).
    Differs: shifts on 64-bit words; the reference expands every bit to a number.

    >>> [hex(w) for w in pack_stream(torch.tensor([1, 2, 3]), 12).tolist()]
    ['0x3002001', '0x0']
    """
    width = _width(b, b_res)
    for t, bits in ((idx, b), (res, b_res)):
        if t is not None and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < 2**bits:
            raise ValueError(f"indices run from {int(t.min())} to {int(t.max())}; {bits} bits hold 0 to {2**bits - 1}")
    merged = idx.long() if res is None else idx.long() | res.long() << b
    word, shift = _places(idx.shape[-1], width, idx.device)
    words = torch.zeros(*idx.shape[:-1], -(-idx.shape[-1] * width // 32) + 1, dtype=torch.int64, device=idx.device)
    shifted = merged << shift  # below 2**63: at most 32 bits, shifted by at most 31
    words.index_add_(-1, word, shifted & 0xFFFFFFFF).index_add_(-1, word + 1, shifted >> 32 & 0xFFFFFFFF)
    return _wrapped(words[..., :-1], 32).to(torch.int32)


def unpack_stream(words: Tensor, n: int, b: int, b_res: int = 0) -> tuple[Tensor, Tensor | None]:
    """The exact inverse of `pack_stream`.

    Shapes:  words [..., ceil(n (b + b_res) / 32)] int32; returns idx and res [..., n] int32, res None if b_res = 0.
    Units:   as `pack_stream`.
    Raises:  ValueError if the number of words does not fit n, or as `pack_stream`.
    Source:  VPTQ code (utils/pack.py).
    Differs: residual indices are masked with their own width (the reference's mask cuts them where b_res > b), and rows shorter
             than their padding are read right.
    """
    width = _width(b, b_res)
    if words.shape[-1] != -(-n * width // 32):
        raise ValueError(f"{words.shape[-1]} words a row do not hold {n} indices of {width} bits; {-(-n * width // 32)} do")
    words = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))
    word, shift = _places(n, width, words.device)
    merged = (words[..., word] | words[..., word + 1] << 32) >> shift
    idx = (merged & (1 << b) - 1).to(torch.int32)
    return idx, (merged >> b & (1 << b_res) - 1).to(torch.int32) if b_res else None


def layer_tensors(weight: VectorWeight, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of one quantized linear layer, by their names in a checkpoint.

    Shapes:  centroids.weight [G, k v], res_centroids.weight [G, k_res v], indices [G, R, n_words] int32,
             outlier_centroids.weight [1, k_out v_out], outlier_indices [1, R_out, n_out] int16, perm [d_in] int16,
             weight_scale, weight_bias [d_in].
    Units:   int16 holds unsigned 16-bit numbers.
    Raises:  ValueError if a codebook's size is not a power of two, groups are not of one size, or d_in is above 65536.
    Source:  VPTQ code (layers/vqlinear.py).
    Differs: scale and bias are always written, as 1 and 0 if there are none: the package's GPU code needs them.
    """
    _check_writable(weight)
    (_, inliers, main), G = next(weight.stages()), len(weight.main.C)
    by_group = weight.group(inliers).argsort(stable=True)  # groups one after the other, columns in their own order inside
    b, b_res = index_bits(main.C.shape[1]), index_bits(weight.residual.C.shape[1]) if weight.residual else 0
    idx, res = (None if stage is None else stage.idx[:, by_group].reshape(len(stage.idx), G, -1).transpose(0, 1)
                for stage in (main, weight.residual))
    ones = torch.ones(weight.shape[1], device=main.C.device)
    out = {"centroids.weight": main.C.reshape(G, -1), "indices": pack_stream(idx, b, res, b_res),
           "weight_scale": ones if weight.s is None else weight.s, "weight_bias": 0 * ones if weight.m is None else weight.m}
    if weight.residual:
        out["res_centroids.weight"] = weight.residual.C.reshape(G, -1)
    if weight.outlier:
        out["outlier_centroids.weight"] = weight.outlier.C.reshape(1, -1)
        out["outlier_indices"] = _wrapped(weight.outlier.idx[None].long(), 16).to(torch.int16)
    if weight.label is not None:
        out["perm"] = _wrapped(weight.label.argsort(stable=True), 16).to(torch.int16)
    return {name: (t.to(dtype) if t.is_floating_point() else t).contiguous() for name, t in out.items()}


def layer_config(weight: VectorWeight, bias: bool = False) -> dict:
    """What `config_for_layers` says about one layer; -1 stands for "none", outliers come first in each pair.

    Shapes:  plain JSON values.
    Units:   none.
    Raises:  nothing.
    Source:  VPTQ code; transformers' VptqLayerConfig.
    Differs: no difference.
    """
    out, res, (G, k, v) = weight.outlier, weight.residual, weight.main.C.shape
    size = weight.main.idx.shape[1] // G
    return {"in_features": weight.shape[1], "out_features": weight.d_out,
            "vector_lens": [out.C.shape[2] if out else -1, v], "num_centroids": [out.C.shape[1] if out else -1, k],
            "num_res_centroids": [-1, res.C.shape[1] if res else -1], "group_num": G, "group_size": size,
            "outlier_size": out.idx.shape[1] if out else 0, "enable_norm": True, "enable_perm": weight.label is not None,
            "is_indice_packed": True, "indices_as_float": False, "bias": bias}


def read_layer(tensors: dict[str, Tensor], config: dict) -> VectorWeight:
    """A stored weight from a layer's tensors and its configuration; keys that are not known are not looked at.

    Shapes:  as `layer_tensors`.
    Units:   none.
    Raises:  ValueError if a tensor is missing or does not fit the configuration, or for the legacy layouts (indices that are
             not packed, or kept as floats).
    Source:  VPTQ code (layers/vqlinear.py).
    Differs: tolerates keys of other versions; the permutation is absorbed.
    """
    if not config.get("is_indice_packed", True) or config.get("indices_as_float", False):
        raise ValueError("indices that are not packed, or kept as floats, belong to a legacy layout; repack the checkpoint "
                         "with the vptq package")
    c = {"group_num": 1, "outlier_size": 0, "num_res_centroids": [-1, -1], "enable_norm": True} | config
    d_in, d_out, G, n_out = (c[name] for name in ("in_features", "out_features", "group_num", "outlier_size"))
    n, (v_out, v), (k_out, k), k_res = (d_in - n_out) // G, c["vector_lens"], c["num_centroids"], c["num_res_centroids"][1]
    b, b_res, R, R_out = index_bits(k), index_bits(k_res) if k_res > 0 else 0, -(-d_out // v), -(-d_out // v_out)
    shapes = {"centroids.weight": (G, k * v), "indices": (G, R, -(-n * (b + b_res) // 32))}
    shapes |= {"res_centroids.weight": (G, k_res * v)} if k_res > 0 else {}
    shapes |= {"weight_scale": (d_in,), "weight_bias": (d_in,)} if c["enable_norm"] else {}
    shapes |= {"outlier_centroids.weight": (1, k_out * v_out), "outlier_indices": (1, R_out, n_out)} if n_out else {}
    wanted = shapes | ({"perm": (d_in,)} if "perm" in tensors or G > 1 or n_out else {})
    for name, shape in wanted.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape) if name in tensors else "missing"
            raise ValueError(f"{name} is {found} and should be {list(shape)}; checkpoint and configuration do not fit")
    idx, res = unpack_stream(tensors["indices"], n, b, b_res)
    perm = tensors["perm"].long() & 0xFFFF if "perm" in tensors else torch.arange(d_in)
    position = torch.arange(d_in, device=perm.device)
    label = torch.where(position < n_out, OUTLIERS, 1 + (position - n_out).div(n, rounding_mode="floor")).to(torch.uint8)
    home = [perm[label != OUTLIERS].argsort(), perm[label == OUTLIERS].argsort()]

    def stage(name: str, idx: Tensor, part: int, *shape: int) -> Stage:
        flat = (idx.long() & 0xFFFF).transpose(0, 1).reshape(idx.shape[1], -1)[:, home[part]]
        return Stage(tensors[name].half().reshape(shape), flat.to(torch.int32).contiguous())

    main = stage("centroids.weight", idx, 0, G, k, v)
    residual = stage("res_centroids.weight", res, 0, G, k_res, v) if k_res > 0 else None
    outlier = stage("outlier_centroids.weight", tensors["outlier_indices"], 1, 1, k_out, v_out) if n_out else None
    s, m = (_unless(tensors[name].half(), usual) if c["enable_norm"] else None
            for name, usual in (("weight_scale", 1.0), ("weight_bias", 0.0)))
    return VectorWeight(d_out, main, residual, outlier, s, m, None if G == 1 and not n_out else label[perm.argsort()])


def _check_writable(weight: VectorWeight) -> None:
    for name, _, stage in weight.stages():
        if (k := stage.C.shape[1]) & (k - 1):
            raise ValueError(f"the {name} codebook has {k} vectors; this format needs a power of two")
    sizes = weight.group(next(weight.stages())[1]).bincount(minlength=len(weight.main.C))
    if int(sizes.min()) != int(sizes.max()):
        raise ValueError(f"there are groups of {int(sizes.min())} to {int(sizes.max())} columns; this format needs equal ones")
    if weight.shape[1] > 65536:
        raise ValueError(f"d_in={weight.shape[1]} is more than the 65536 columns that this format's 16-bit numbers can name")


def _unless(t: Tensor, usual: float) -> Tensor | None:
    """The tensor, or None if it says nothing."""
    return None if bool((t == usual).all()) else t


def _width(b: int, b_res: int) -> int:
    if b < 1 or b_res < 0 or b + b_res > 32:
        raise ValueError(f"b={b} and b_res={b_res}: an index takes 1 bit at least, and the two 32 at most")
    return b + b_res


def _places(n: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The word in which each element begins, and the bit inside it."""
    at = torch.arange(n, device=device) * width
    return at >> 5, at & 31


def _wrapped(t: Tensor, bits: int) -> Tensor:
    """Unsigned numbers as the signed ones with the same bits."""
    return t - ((t >> bits - 1 & 1) << bits)
