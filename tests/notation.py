"""The one table of names: a notebook's "Notation" section chooses rows, tests/weave.py fills them in."""

from __future__ import annotations

# Name: (meaning, shape or unit). Capital = matrix, lower case = vector or number; beyond this table, words.
NOTATION: dict[str, tuple[str, str]] = {
    # weights and data; PyTorch order
    "W": ("weights of a layer", "`[d_out, d_in]`"),
    "w": ("one row of `W`", "`[d_in]`"),
    "W_hat": ("the weights that the codes stand for", "`[d_out, d_in]`"),
    "X": ("inputs of a layer, one token a row", "`[n, d_in]`"),
    "Y": ("outputs, `X @ W.T`", "`[n, d_out]`"),
    "H": ("second moments of a layer's inputs, `X.T @ X / n`", "`[d_in, d_in]`"),
    "A": ("gradient of a sequence's loss at a layer's outputs, one token a row", "`[n, d_out]`"),
    "G": ("gradient of a sequence's loss in a layer's weights, `A.T @ X`", "`[d_out, d_in]`"),
    "H_loss": ("output-adaptive Hessian: mean of `G.T @ G` over sequences", "`[d_in, d_in]`"),
    "W_star": ("weights that give the original outputs from the inputs that really come", "`[d_out, d_in]`"),
    # a grid
    "q": ("codes: the stored integers, 0 to $2^b-1$", "`[d_out, d_in]`"),
    "s": ("step of each group (real units per integer, never its inverse)", "`[d_out, n_groups]`"),
    "z": (
        "zero point of each group (in integer units), so that `W_hat = s * (q - z)`",
        "`[d_out, n_groups]`",
    ),
    "b": ("bits a code", "integer"),
    "g": ("weights a group, which share `s` and `z`", "integer"),
    "q_min": ("smallest code", "integer"),
    "q_max": ("largest code", "integer"),
    "nominal": ("bits of the codes alone", "bits a weight"),
    "honest bits": ("bits of everything that must be stored", "bits a weight"),
    # scalings
    "f": ("factor of each channel: its weights are multiplied by it, its inputs divided", "`[d_in]`"),
    "alpha": ("exponent that makes factors from sizes", "number"),
    # what is learned
    "low": ("logit of the share of a group's range that is kept below zero", "`[d_out, n_groups]`"),
    "high": ("the same above zero", "`[d_out, n_groups]`"),
    "reach": ("how far a variable can travel: rate × steps", "number"),
    "base": ("code of the mark below a weight", "`[d_out, n_groups, g]`"),
    "nu": ("rounding variable of each weight", "`[d_out, n_groups, g]`"),
    "h": ("share of the way from the mark below to the mark above", "`[d_out, n_groups, g]`"),
    "k": ("multiplier of the step on dequantization only", "`[d_out, n_groups]`"),
    # packed codes
    "width": ("bits a field: 1, 2, 4 or 8", "integer"),
    "E": ("fields a word, `32 / width`", "integer"),
    "words": ("packed codes", "`[d_out, n_words]`, int32"),
    "plane": ("words in a slice: 64, or fewer in the last slice", "integer"),
    # errors and orders
    "err": ("error of one weight", "elementwise"),
    "loss": ("sum of squared errors, weighted where the text says so", "scalar"),
    "e": (r"error $w - \hat w$", "`[d_in]`"),
    "t": ("target: what a weight should be once earlier ones are fixed", "`[d_in]`"),
    "V": (
        r"upper triangular factor of `H`, ones on its diagonal: $H = V\,\mathrm{diag}(D)\,V^\top$",
        "`[d_in, d_in]`",
    ),
    "D": ("cost of each column's squared error", "`[d_in]`"),
    "perm": ("order in which columns are visited", "`[d_in]`"),
    "inv_perm": ("`perm` undone", "`[d_in]`"),
    # codebooks
    "C": ("codebook, one entry a row", "`[k, v]`"),
    "idx": ("which codebook entry stands for each piece", "`[d_out//v, d_in]`"),
    "v": ("weights a piece, which share an index", "integer"),
    # parts of names
    "mask_*": ("true where the rest of the name holds", "boolean"),
    "_g": ("suffix: seen in groups", "`[d_out, n_groups, g]`"),
    "_naive": ("suffix: the notebook's own build", ""),
    "_ref": ("suffix: an independent reference", ""),
    "_": ("suffix: changes its argument in place", ""),
}

HEAD = ["| Name | Meaning | Shape or unit |", "|---|---|---|"]


def names_of(cell: str) -> list[str]:
    """The names in a row's first cell: "`s`, `z`" -> ["s", "z"]."""
    return [name.strip().strip("`") for name in cell.split(",")]


def row(cell: str) -> str:
    """The row for the names in its first cell: meanings in turn, and one shape where all have the same."""
    names = names_of(cell)
    unknown = [name for name in names if name not in NOTATION]
    if unknown:
        raise KeyError(f"no meaning for {unknown}; add it to NOTATION in tests/notation.py")
    meanings, shapes = zip(*(NOTATION[name] for name in names), strict=True)
    shape = shapes[0] if len(set(shapes)) == 1 else ", ".join(filter(None, shapes))
    return f"| {cell} | {'; '.join(meanings)} | {shape} |"


def rewrite(source: str) -> str:
    """A "Notation" cell with every row of its one table taken from NOTATION; all other lines stay."""
    lines = source.split("\n")
    at = [number for number, line in enumerate(lines) if line.lstrip().startswith("|")]
    if len(at) < 3 or at != list(range(at[0], at[-1] + 1)):
        raise KeyError("needs one table, its first column filled with names")
    cells = [lines[number].split("|")[1].strip() for number in at[2:]]
    return "\n".join(lines[: at[0]] + HEAD + [row(cell) for cell in cells] + lines[at[-1] + 1 :])
