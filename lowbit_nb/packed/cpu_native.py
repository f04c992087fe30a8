"""The CPU's fastest lane: a page of C, compiled for this processor at the first use and kept in the user's cache folder.

It needs a C compiler and nothing of torch, so it is ready in a second or two, and later at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from lowbit_nb.packed import cpu
from lowbit_nb.packed.planar import Planar

SOURCE = Path(__file__).with_suffix(".c")
# Sums may be taken in any order.  Not -ffast-math: a library linked with that rounds tiny numbers to 0 in the whole process.
OPTIONS = ("-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
           "-shared", "-fPIC")


def compiler() -> str | None:
    """The C compiler: what CC names, or the first of cc, gcc and clang that is there.

    Shapes:  returns a path, or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


def folder() -> Path:
    """Where the compiled library is kept: LOWBIT_NB_CACHE, or a folder of this kit in the user's cache.

    Shapes:  returns a path.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    named = os.environ.get("LOWBIT_NB_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowbit_nb"


def why_not() -> str | None:
    """Why the lane cannot run here, or None if it can; the first call compiles.

    Shapes:  returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return _library()[1]


def way() -> str:
    """What the compiler made of it: "AVX-512" or "plain C".

    Shapes:  returns a word.
    Units:   none.
    Raises:  RuntimeError if the lane cannot run here.
    Source:  this project.
    Differs: no difference.
    """
    library, reason = _library()
    if library is None:
        raise RuntimeError(f"the native lane cannot run here: {reason}")
    return library.way().decode()


def product(x: Tensor, planar: Planar) -> Tensor:
    """x @ W_hat.T.

    Shapes:  x [n, d_in]; returns [n, d_out] float32.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project; a register as a table of 16 numbers as in T-MAC and its relatives.
    Differs: exact in float32; no rounding of inputs.
    """
    return cpu.product(x, planar, _add)


def _add(segment: cpu.Segment, x: Tensor, y: Tensor) -> None:
    call, per_word = _library()[0].add_product, 32 // segment.width
    words, s = segment.words, segment.s
    at = x.data_ptr() + 4 * segment.first
    tail = (words.shape[1] // segment.plane, segment.plane, segment.width, min(segment.together, per_word), len(x))
    cpu.by_rows(lambda first, last: call(words.data_ptr(), words.stride(0), s.data_ptr(), s.stride(0), at, x.stride(0),
                                         y.data_ptr(), y.stride(0), first, last, *tail), len(words))


@cache
def _library() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    cc = compiler()
    if cc is None:
        return None, "there is no C compiler (install gcc or clang)"
    try:
        library = ctypes.CDLL(str(_compiled(cc)))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip() or str(error)
        return None, f"{cc} failed: {said.splitlines()[-1]}"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.add_product.argtypes = [pointer, number] * 4 + [number] * 7
    library.add_product.restype = None
    library.way.restype = ctypes.c_char_p
    return library, None


def _compiled(cc: str) -> Path:
    """The library for this source and this processor; compiled beside its place and then renamed."""
    target = _run(cc, *OPTIONS, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join((cc, *OPTIONS)).encode() + target).hexdigest()[:16]
    path = folder() / f"packed_{key}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as beside:
            made = Path(beside) / path.name
            _run(cc, *OPTIONS, str(SOURCE), "-o", str(made))
            os.replace(made, path)
    return path


def _run(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=180).stdout
