"""What the composer knows: the menus and rules of `compose` as plain text, and rows of benchmarks as points."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from lowbit_nb import compose

CHOICES = compose.CHOICES | {"activations": {"none": "activations stay in 16 bits", "8": "rounded to 8 bits, one ruler a token",
                                             "4": "rounded to 4 bits, one ruler a token"}}
ACTIVATIONS = re.compile(r", W\d+A(\d+)$")
SETTING = ("method", "name", "bits", "group", "calibration", "budget", "note")


def said(value: object) -> str:
    """A value of a recipe as the menus write it."""
    return "none" if value is None else str(value)


def _plain(wanted: Mapping[str, tuple]) -> dict[str, list[str]]:
    return {kind: [*map(said, options)] for kind, options in wanted.items()}


RULES = [{"when": _plain(rule.when), "allow": _plain(rule.allow), "why": rule.why} for rule in compose.RULES]


def broken(picked: Mapping[str, str]) -> list[dict]:
    """The rules that a combination breaks: it is in `when`, and not in `allow`."""
    return [rule for rule in RULES if _in(picked, rule["when"]) and not _in(picked, rule["allow"])]


def _in(picked: Mapping[str, str], wanted: Mapping[str, list[str]]) -> bool:
    return all(picked[kind] in options for kind, options in wanted.items())


def blocked(picked: Mapping[str, str], kind: str, option: str) -> list[str]:
    """Why this option cannot stand beside the other choices: what it would break of the rules that concern it."""
    return [rule["why"] for rule in broken({**picked, kind: option}) if kind in rule["when"] | rule["allow"]]


def combinations() -> list[dict[str, str]]:
    return [dict(zip(CHOICES, options, strict=True)) for options in product(*CHOICES.values())]


def key(picked: Mapping[str, Any]) -> str:
    return "|".join(said(picked[kind]) for kind in CHOICES)


def of_key(text: str) -> dict[str, str]:
    return dict(zip(CHOICES, text.split("|"), strict=True))


def told(picked: Mapping[str, str]) -> str:
    return ", ".join(f"{kind} {picked[kind]}" for kind in CHOICES)


def with_picks(recipe: compose.Recipe, picked: Mapping[str, str]) -> compose.Recipe:
    """A recipe with the options of the menus in place of its own."""
    acts = picked["activations"]
    return replace(recipe, **{**picked, "activations": None if acts == "none" else int(acts)})


def points(rows: Iterable[Mapping[str, Any]], kind: str | None = None) -> list[dict]:
    """Rows of a benchmark as points: seeds of one setting become one point with its spread.

    A row names a `method`, or has the fields of a recipe; and `bits_per_weight`, `kl`.
    """
    same: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if missing := [k for k in ("bits_per_weight", "kl") if not _positive(row.get(k))]:
            raise ValueError(f"the row {dict(row)} needs {', '.join(missing)}, finite and above 0")
        if "method" not in row and (lacking := [k for k in compose.CHOICES if k not in row]):
            raise ValueError(f"the row {dict(row)} names no method, and of a recipe it lacks {', '.join(lacking)}")
        same.setdefault((*(str(row.get(k)) for k in SETTING), _key_of(row)), []).append(row)
    return [_point(setting, kind) for setting in same.values()]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _key_of(row: Mapping[str, Any]) -> str:
    return "" if "method" in row else key({"activations": None, **row})


def _point(rows: list[Mapping[str, Any]], kind: str | None) -> dict:
    first, kls, of = rows[0], [float(row["kl"]) for row in rows], _key_of(rows[0])
    published = compose.known(with_picks(compose.Recipe(), of_key(of))) if of else None
    name = str(first.get("method") or (published and kind is None and f"{published}, as a recipe") or first.get("name")
               or of.replace("|", " · "))
    found = ACTIVATIONS.search(name)
    made = "method" if published or not of else "combination"
    return {"name": name, "kind": kind or made, "key": of, "family": name.split(",")[0],
            "bits": sum(float(row["bits_per_weight"]) for row in rows) / len(rows), "kl": sum(kls) / len(kls), "low": min(kls),
            "high": max(kls), "seeds": len(rows), "note": first.get("note") or _setting(first),
            "nominal": [float(first.get("bits") or 0), str(first.get("group"))],
            "activations": of.split("|")[-1] if of else found[1] if found else "none"}


def _setting(row: Mapping[str, Any]) -> str:
    told = {"bits": "W{:g}", "group": "g{}", "budget": "budget {}", "calibration": "{} windows"}
    return ", ".join(words.format(row[k]) for k, words in told.items() if row.get(k))


def front(points: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other beats in KL at no more bits, by bits; to a thousandth, for files are rounded."""
    kept: list[Mapping[str, Any]] = []
    for p in sorted(points, key=lambda p: (round(p["bits"], 3), p["kl"])):
        if not kept or p["kl"] < kept[-1]["kl"]:
            kept.append(p)
    return kept
