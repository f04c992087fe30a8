"""The anatomy of a notebook, in one place: headings, their order, limits. CONTRIBUTING.md explains it."""

from __future__ import annotations

import re

HEADINGS = (
    "You will be able to",
    "Before you start",
    "Setup",
    "The idea in one picture",
    "Notation",
    "Build it slowly",
    "Check against the package",
    "Make it fast",
    "Explore",
    "On a real layer",
    "Where it breaks",
    "Paper, official code, this notebook",
    "Exercises",
    "Summary",
    "References",
)

# Each of these holds at least one cell whose output nbval compares.
CHECKED_HEADINGS = (
    "Build it slowly",
    "Check against the package",
    "Make it fast",
    "Explore",
    "On a real layer",
)

# The table in the first cell says these things.
HEADER = ("Time", "Level", "Needs", "Data", "Paper")

# The first cell ends in links that tests/weave.py writes: previous, index, next.
INDEX = "00_start_here"
NAVIGATION = re.compile(r"^\[?(?:previous|index|next)[:\]].*\.ipynb\).*$", re.IGNORECASE | re.MULTILINE)

MAX_WORDS = 2500
MAX_CODE_CELLS = 40
MAX_CODE_LINES = 25
MIN_CHECKED_CELLS = 8
MIN_EXERCISES = 3
MAX_BYTES = 600_000

CHECK_TAG = "nbval-check-output"
IGNORE_TAG = "nbval-ignore-output"

# A section that would make one notebook worse may be left out: {notebook: {heading: reason}}.
OMITTED: dict[str, dict[str, str]] = {}

# Notebooks that must exist. Others may be added freely; these may not disappear.
EXPECTED = ("00_start_here", "01_grids_and_bits", "02_packing", "03_hessians_and_feedback",
            "04_scaling_and_salient_channels", "05_learned_clipping", "06_tesseraq",
            "07_output_adaptive_hessians", "08_outliers_spqr",
            "09_one_bit", "10_ptq161", "11_codebooks", "12_vptq", "13_activations_lrquant",
            "14_cross_block_cbq", "15_packed_kernels", "16_speed_runs", "17_the_table", "18_compose_your_own")


def headings_of(notebook: str) -> list[str]:
    """The H2 headings that this notebook must have, in order."""
    return [heading for heading in HEADINGS if heading not in OMITTED.get(notebook, {})]
