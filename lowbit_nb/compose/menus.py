"""The menus of the composer, and the rules of what does not go together and why: plain data, also for the browser."""

from __future__ import annotations

from dataclasses import dataclass

CHOICES: dict[str, dict[str, str]] = {
    "transform": {
        "none": "weights and activations stay as they are",
        "smooth": "channels with large activations are divided by a fixed power of them (SmoothQuant)",
        "searched": "that power is searched, place by place, by the error of the layers' output (AWQ)",
        "learned": "a factor for every channel is learned together with the ends of the ranges (OmniQuant's LET)",
        "logarithm": "the same, begun where every channel's largest activation becomes its logarithm (LRQuant)"},
    "grid": {
        "affine": "evenly spaced marks over the whole range of a group",
        "searched": "evenly spaced marks over the shorter range that has the least error",
        "learned clip": "evenly spaced marks between two ends that are learned (OmniQuant's LWC)",
        "codebook": "a list of vectors: several weights together are one number of the list (VPTQ)",
        "signs": "about one bit: signs times scales, and more for a few channels (BiLLM, PTQ1.61)"},
    "rounding": {
        "nearest": "every weight takes its nearest mark",
        "feedback": "column by column, the later ones make up for the error of the earlier (GPTQ)",
        "progressive": "every weight's choice between two marks is learned and made hard bit by bit (TesseraQ)",
        "feedback, then progressive": "the two marks are those beside the value that feedback rounded",
        "low rank": "the choices are learned as a product of two thin matrices (CBQ)"},
    "objective": {
        "weight": "the weights alone",
        "layer": "the layer's output, by H = X.T X / n",
        "loss": "the end loss, by the output-adaptive Hessian (OAC)",
        "block": "the block's output, squared error",
        "block and angle": "the block's output by size and by direction (LRQuant)",
        "two teachers": "size and direction, against the original block on the original and on the real inputs (CBQ, PTQ1.61)",
        "loss, then block": "feedback listens to the end loss, what is learned afterwards to the block's output",
        "loss, then two teachers": "feedback listens to the end loss, what is learned afterwards to two teachers"},
    "scope": {
        "layer": "one layer at a time",
        "block": "all layers of a block together",
        "window": "two neighbouring blocks together (CBQ)",
        "model": "as layer or block; then steps, codebooks and scales of the whole model are learned together",
        "block, then model": "as block; then all roundings of the model are learned once more, together, by what it predicts"}}

LEARNED = ("block", "block and angle", "two teachers")  # objectives that something is learned from
THEN = ("loss, then block", "loss, then two teachers")
MARKS = ("affine", "searched", "learned clip")


@dataclass(frozen=True)
class Rule:
    """If a recipe has one of the named values in every field of `when`, each field of `allow` must have one of its values.

    Source: this project. Differs: no difference.
    """

    when: dict[str, tuple[str, ...]]
    allow: dict[str, tuple[str, ...]]
    why: str

    def broken(self, picks: dict[str, str]) -> bool:
        """Whether these picks are what the rule speaks of and not what it allows."""
        return (all(picks[name] in values for name, values in self.when.items())
                and not all(picks[name] in values for name, values in self.allow.items()))


RULES: tuple[Rule, ...] = (
    Rule({"grid": ("codebook", "signs")}, {"transform": ("none",)},
         "Codebooks and signs bring columns to one scale by themselves; a transform before them is not built."),
    Rule({"transform": ("learned", "logarithm")}, {"grid": ("learned clip",)},
         "Channel factors are learned together with the ends of the ranges: take the learned clip."),
    Rule({"grid": ("learned clip",)}, {"objective": LEARNED},
         "The ends of a range are learned from the output of a block: take an objective that compares blocks."),
    Rule({"grid": ("codebook",)}, {"rounding": ("feedback",)},
         "Vectors are chosen by error feedback; the other roundings choose between two neighbouring marks, "
         "and vectors have no order."),
    Rule({"grid": ("signs",)}, {"rounding": ("nearest", "feedback")},
         "A sign is one of two values already; nothing lies between two marks that could be learned."),
    Rule({"grid": ("signs",), "rounding": ("nearest",)}, {"objective": LEARNED},
         "Plain signs live from their learned scales (PTQ1.61): take an objective that compares blocks, or feedback."),
    Rule({"grid": ("affine",), "rounding": ("nearest",), "transform": ("none", "smooth")}, {"objective": ("weight",)},
         "Nearest marks of the plain range leave nothing to decide, so only the weights are looked at."),
    Rule({"grid": ("searched",), "rounding": ("nearest",)}, {"objective": ("weight", "layer")},
         "A range is searched by the error of the weights or of the layer's output."),
    Rule({"transform": ("searched",), "grid": ("affine", "searched"), "rounding": ("nearest",)}, {"objective": ("layer",)},
         "AWQ's search asks the layer's output."),
    Rule({"rounding": ("feedback",)}, {"objective": ("layer", "loss", *LEARNED)},
         "Error feedback needs a Hessian, that of the layer's output or of the loss; with an objective that compares blocks, "
         "the layer's output decides the codes and steps or vectors are learned afterwards."),
    Rule({"rounding": ("progressive", "low rank")}, {"objective": LEARNED},
         "Roundings are learned from the output of a block: take an objective that compares blocks."),
    Rule({"rounding": ("feedback, then progressive",)}, {"objective": (*LEARNED, *THEN)},
         "What follows feedback is learned from the output of a block: take an objective that compares blocks."),
    Rule({"objective": ("loss",)}, {"rounding": ("feedback",)},
         "The end loss speaks through a Hessian, and only error feedback listens to one."),
    Rule({"objective": THEN}, {"rounding": ("feedback, then progressive",)},
         "First the loss, then blocks: that needs a rounding in two parts."),
    Rule({"objective": ("loss", *THEN)}, {"transform": ("none",)},
         "The end loss is asked about the model's own layers, before any transform."),
    Rule({"objective": ("weight", "layer", "loss")}, {"scope": ("layer", "model")},
         "These objectives look at one layer at a time."),
    Rule({"objective": (*LEARNED, *THEN)}, {"scope": ("block", "window", "model", "block, then model")},
         "These objectives look at whole blocks."),
    Rule({"scope": ("window",)}, {"rounding": ("progressive", "feedback, then progressive", "low rank")},
         "What is learned over a window of blocks here are roundings."),
    Rule({"scope": ("block, then model",)}, {"rounding": ("progressive", "feedback, then progressive")},
         "Only progressive rounding can begin again where blocks have left it."),
)

# the published methods: their picks, in menu order
KNOWN: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = tuple(
    (name, dict(zip(CHOICES, picks, strict=True))) for name, *picks in (
        ("RTN", ("none",), ("affine", "searched"), ("nearest",), ("weight",), ("layer",)),
        ("GPTQ", ("none",), ("affine", "searched"), ("feedback",), ("layer",), ("layer",)),
        ("SmoothQuant", ("smooth",), ("affine",), ("nearest",), ("weight",), ("layer",)),
        ("AWQ", ("searched",), ("searched",), ("nearest",), ("layer",), ("layer",)),
        ("OmniQuant", ("none", "learned"), ("learned clip",), ("nearest",), ("block",), ("block",)),
        ("TesseraQ", ("none", "searched"), ("searched",), ("progressive",), ("block",), ("block",)),
        ("TesseraQ", ("none", "learned"), ("learned clip",), ("progressive",), ("block",), ("block",)),
        ("VPTQ", ("none",), ("codebook",), ("feedback",), ("layer",), ("layer", "model")),
        ("VPTQ", ("none",), ("codebook",), ("feedback",), ("block",), ("block", "model")),
        ("BiLLM", ("none",), ("signs",), ("feedback",), ("layer",), ("layer",)),
        ("PTQ1.61", ("none",), ("signs",), ("nearest", "feedback"), ("two teachers",), ("block",)),
        ("LRQuant", ("logarithm",), ("learned clip",), ("nearest",), ("block and angle",), ("block",)),
        ("CBQ", ("none",), ("searched",), ("low rank",), ("two teachers",), ("window",)),
        ("OAC", ("none",), ("affine", "searched", "codebook", "signs"), ("feedback",), ("loss",), ("layer",))))
