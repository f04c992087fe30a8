"""What our notebook runs change in nbval; loaded with `-p tests.nbval_plugin`.

This is a plugin and not part of conftest.py because notebooks/ lies beside tests/: hooks of a conftest.py
reach only the files below it.
"""

from __future__ import annotations

import os

import pytest

# HTML fallbacks and SVG pictures carry layout, which differs between versions of matplotlib and JupyterLab;
# their numbers are in the text/plain of the same output, and that is compared.
NOT_COMPARED = ("text/html", "image/svg+xml")

# Tests never use a network, and notebook kernels inherit this.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def be_offline() -> None:
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


be_offline()


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += tuple(kind for kind in NOT_COMPARED if kind not in collector.skip_compare)
