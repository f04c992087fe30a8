"""Explorers: widgets that compute and draw in the browser, so they also live in an exported page.

    live.codebook_explorer(W)   codebook size, importance, second codebook -> where its vectors go, error, bits
    live.composer(rows)         one choice of each kind -> legal or why not, which method it is, where it was measured
    live.grid_explorer(W)       bits, group size, clip, zero point -> where weights land, error, bits
    live.hessian_explorer(H)    damping, column order -> conditioning, factor, spread of one error;
                                with other=H2 two metrics side by side: spectra, columns that each calls salient
    live.layout_explorer(q)     bits, order, number -> which lane loads which word and unpacks which plane into which register
    live.mask_explorer(W, H, x_max)     mask, metric, salient share -> what the mask costs, error, overlap between metrics
    live.outlier_explorer(W, H)     threshold -> which weights leave SpQR's grid, their bits, the error
    live.packing_explorer(...)  bits, row length, layout -> which bit of which word holds a column
    live.ranking_explorer(rows)     level, judge, cost -> a table that sorts, the same entries as points, what nothing beats
    live.roofline_explorer(points)      shape, bits, batch, kernel, machine -> floor, instruction bound, what was measured
    live.rounding_player(...)   round, layer -> when each weight's rounding is decided, and what deciding costs
    live.salience_explorer(W, H)    criterion, exponent, channels kept -> which inputs matter, scales, error
    live.sign_explorer(W)       row, code -> what one bit holds of a row, where the second goes, angle, error, bits
    live.smoothing_explorer(X, W)   exponent or logarithm, bits -> channel maxima before and after, massive tokens, error
    live.window_explorer(errors)    blocks, window, overlap, step -> which blocks are soft, warm, hard; error against depth

Each also carries a few stored pictures and a sentence with the numbers, for readers who have not run the cell.
"""

from __future__ import annotations

from lowbit_nb.live.base import Explorer, Frame
from lowbit_nb.live.codebooks import CodebookExplorer, codebook_explorer
from lowbit_nb.live.composers import Composer, composer
from lowbit_nb.live.grids import GridExplorer, grid_explorer
from lowbit_nb.live.hessians import HessianExplorer, hessian_explorer
from lowbit_nb.live.layouts import LayoutExplorer, layout_explorer
from lowbit_nb.live.masks import MaskExplorer, mask_explorer
from lowbit_nb.live.outliers import OutlierExplorer, outlier_explorer
from lowbit_nb.live.packings import PackingExplorer, packing_explorer
from lowbit_nb.live.pairs import MetricPair
from lowbit_nb.live.rankings import RankingExplorer, ranking_explorer
from lowbit_nb.live.rooflines import RooflineExplorer, roofline_explorer
from lowbit_nb.live.roundings import RoundingPlayer, rounding_player
from lowbit_nb.live.saliences import SalienceExplorer, salience_explorer
from lowbit_nb.live.signs import SignExplorer, sign_explorer
from lowbit_nb.live.smoothings import SmoothingExplorer, smoothing_explorer
from lowbit_nb.live.windows import WindowExplorer, window_explorer

__all__ = [
    "CodebookExplorer",
    "Composer",
    "Explorer",
    "Frame",
    "GridExplorer",
    "HessianExplorer",
    "LayoutExplorer",
    "MaskExplorer",
    "MetricPair",
    "OutlierExplorer",
    "PackingExplorer",
    "RankingExplorer",
    "RooflineExplorer",
    "RoundingPlayer",
    "SalienceExplorer",
    "SignExplorer",
    "SmoothingExplorer",
    "WindowExplorer",
    "codebook_explorer",
    "composer",
    "grid_explorer",
    "hessian_explorer",
    "layout_explorer",
    "mask_explorer",
    "outlier_explorer",
    "packing_explorer",
    "ranking_explorer",
    "roofline_explorer",
    "rounding_player",
    "salience_explorer",
    "sign_explorer",
    "smoothing_explorer",
    "window_explorer",
]
