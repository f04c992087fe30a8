"""Tests of lowbit-nb. A package, so that `python -m pytest -p tests.nbval_plugin` finds its plugin."""
