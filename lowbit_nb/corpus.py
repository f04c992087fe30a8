"""Which Python files are held out, and what is too close to them: one rule for training and calibration.

The bundled model was trained on the source that a Python installation carries, less the modules in
data/subject/held_out.json and less the files that copy from them. Calibration obeys the same rules and a
stricter one on top: no 64 bytes in a row of held-out text (a byte-level token is at least one byte, so no
64 tokens in a row either). data/subject/train.py loads this file alone: it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT = Path(__file__).resolve().parent.parent / "data" / "subject" / "held_out.json"
RUN = 64  # bytes in a row that calibration may not share with held-out text; a power of two
LONG_LINE = 25  # a stripped line with more characters than this says something about where it came from
NEAR_COPY = 0.15  # share of a file's long lines found in held-out modules that makes the file a near-copy
SKIP = frozenset("""__pycache__ site-packages dist-packages test tests idle_test idlelib lib2to3 turtledemo
    encodings pydoc_data ensurepip distutils""".split())  # no library code, tables, or gone in 3.12


@dataclass(frozen=True)
class HeldOut:
    """The held-out modules that this interpreter has, and what is needed to recognise their text elsewhere.

    Shapes:  runs [n_runs] int64, sorted hashes of every 64 bytes in a row.
    Source:  this project; the rules are told in data/subject/README.md.
    Differs: no difference.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    lines: frozenset[str]
    runs: Tensor

    @classmethod
    def read(cls, root: Path | None = None) -> HeldOut:
        """The held-out modules below a standard library; read once a process."""
        return _read(root or library())

    def is_near_copy(self, text: str) -> bool:
        """Whether at least 15 % of the long lines of a text stand in held-out modules too."""
        lines = _long_lines(text)
        return sum(line in self.lines for line in lines) >= NEAR_COPY * max(1, len(lines))

    def shares_run(self, text: str) -> bool:
        """Whether a text holds 64 bytes in a row that a held-out module holds too."""
        hashes = _run_hashes(text)
        at = torch.searchsorted(self.runs, hashes).clamp_(max=len(self.runs) - 1)
        return bool((self.runs[at] == hashes).any())


def library() -> Path:
    """The folder of this interpreter's standard library.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return Path(sysconfig.get_path("stdlib"))


def held_out_names() -> tuple[str, ...]:
    """The fixed list of held-out modules, as paths below the standard library, in its order.

    Shapes:  54 names.
    Units:   none.
    Raises:  FileNotFoundError if data/ does not lie beside the package.
    Source:  data/subject/held_out.json.
    Differs: no difference.
    """
    return tuple(json.loads(HELD_OUT.read_text(encoding="utf-8"))["modules"])


@lru_cache(maxsize=2)
def _read(root: Path) -> HeldOut:
    names = tuple(name for name in held_out_names() if (root / name).is_file())
    texts = tuple(decode((root / name).read_bytes()) for name in names)
    if not texts:
        raise FileNotFoundError(f"no held-out module is in {root}: this Python "
                                "ships no source; use source='wikitext2', 'selfgenerated' or a text file")
    runs = torch.cat([_run_hashes(text) for text in texts]).sort().values
    return HeldOut(names, texts, frozenset(line for text in texts for line in _long_lines(text)), runs)


def calibration_modules(root: Path | None = None) -> list[tuple[str, int]]:
    """The modules that calibration may draw from, as far as names can tell, in a fixed order.

    Shapes:  pairs of name and size.
    Units:   sizes in bytes.
    Raises:  FileNotFoundError if there is none.
    Source:  this project: not held out, none of the folders in SKIP.
    Differs: no difference.
    """
    root, found, held = root or library(), [], set(held_out_names())
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in SKIP and not name.startswith("config-")]
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        found += [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
    if not found:
        raise FileNotFoundError(f"no module in {root}: this Python ships no source; use a text file")
    return sorted(item for item in found if item[0] not in held)


def decode(raw: bytes) -> str:
    """UTF-8 text with plain line ends, so that every system sees the same characters.

    Shapes:  none.
    Units:   bytes in, characters out.
    Raises:  UnicodeDecodeError (a ValueError) if the bytes are not UTF-8.
    Source:  this project.
    Differs: no difference.
    """
    return raw.decode("utf-8").replace("\r\n", "\n")


def readable(raw: bytes) -> str | None:
    """The text of a source file, or None if it is tiny, huge, not UTF-8, or has over 1 % bytes beyond ASCII.

    Shapes:  none.
    Units:   200 and 300,000 are bytes.
    Raises:  nothing.
    Source:  this project: the selection rule of the bundled model's corpus.
    Differs: no difference.
    """
    beyond = len(raw) - len(raw.translate(None, bytes(range(127, 256))))
    if not 200 < len(raw) < 300_000 or beyond > 0.01 * len(raw):
        return None
    try:
        return decode(raw)
    except UnicodeDecodeError:
        return None


def sha256(parts: Iterable[str]) -> str:
    """One hash over some texts; their lengths go in, so that moving a character from one to the next shows.

    Shapes:  64 hexadecimal digits.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(f"{len(raw)}:".encode() + raw)
    return digest.hexdigest()


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) > LONG_LINE]


def _run_hashes(text: str) -> Tensor:
    """One 64-bit hash for each run of 64 bytes, so that shared runs are found by a search in a sorted list.

    hash_2k[i] = hash_k[i] base^k + hash_k[i + k] modulo 2^64, k = 1, 2, 4, ... 32
    """
    raw = text.encode()
    hashes = (torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)).long() + 1
    power, k = 0x1E3779B97F4A7C15, 1  # an odd constant: multiplying by it loses nothing modulo 2^64
    while k < RUN:
        hashes = hashes[: max(0, len(hashes) - k)] * power + hashes[k:]  # int64 wraps: the modulus
        power = (power * power + 2**63) % 2**64 - 2**63  # the same wrap for a Python integer
        k *= 2
    return hashes
