"""A small true record of progressive adaptive rounding for the tests of its player: one block of a tiny decoder."""

from __future__ import annotations

import json
from functools import cache

import lowbit_nb as lb
from lowbit_nb.blocks import catch
from lowbit_nb.methods.awq import AWQ
from lowbit_nb.methods.tesseraq import TesseraQ
from lowbit_nb.reconstruct import Budget
from lowbit_nb.streams import Streams
from tests import tiny


@cache
def _text(rounds: int) -> str:
    blocks, X = catch(tiny.subject().model, tiny.windows().ids, 4)
    method = TesseraQ(AWQ(lb.Grid(2, group=16), scaling=False), budget=Budget(rounds, 6, 2))
    result = method.quantize_block(blocks[0], Streams.start(X, method.streams))
    return json.dumps({"block": blocks[0].index} | result.trace)


def trace(rounds: int = 6) -> dict:
    """The trace as it is after it was saved and loaded."""
    return json.loads(_text(rounds))
