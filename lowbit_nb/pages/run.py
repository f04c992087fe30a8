"""Run copies of notebooks, and do not run again what would give the same.

What a run gave (outputs, and the state of its explorers) is kept under a name that holds a hash of the notebook's cells,
of every source file of the package and of the data that notebooks read, and of the versions that are installed. If none of
these changed, the notebook is not run again. The committed notebooks are never written.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = ("*.py", "*.js", "*.css", "*.json", "*.c")
NOT_RUN = ("pages", "classroom")  # rooms that no notebook imports
NOT_READ = (".md", ".toml", ".svg", ".png", ".py")  # files of data/ for people, and scripts
TIMEOUT = 600  # seconds a cell; far above what any needs, for slow machines


class RunError(Exception):
    """A notebook that does not run; the message names it, the cell and the error."""


def executed(paths: list[Path], kept: Path, jobs: int = 1) -> dict[Path, NotebookNode]:
    """Each notebook with the outputs of a run from the top, taken from `kept` where one of the same content is there."""
    # One thread a kernel: results of training then do not depend on the number of cores.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", LOWBIT_NB_THREADS="1")
    kept.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_executed, path, kept) for path in paths]
        try:
            return {path: one.result() for path, one in zip(paths, waiting, strict=True)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def stored(paths: list[Path]) -> dict[Path, NotebookNode]:
    """Each notebook as its file holds it."""
    return {path: nbformat.read(path, as_version=4) for path in paths}


def _executed(path: Path, kept: Path) -> NotebookNode:
    book = nbformat.read(path, as_version=4)
    place = kept / f"{path.stem}-{_key(book, path)}.ipynb"
    if not place.is_file():
        start = time.perf_counter()
        _run(book, path)
        draft = place.with_suffix(".draft")
        nbformat.write(book, draft)
        draft.replace(place)  # whole or not at all
        for old in set(kept.glob(f"{path.stem}-*.ipynb")) - {place}:
            old.unlink(missing_ok=True)
        print(f"{path.stem}: ran in {time.perf_counter() - start:.0f} s", flush=True)
    else:
        print(f"{path.stem}: unchanged since it was last run", flush=True)
    return nbformat.read(place, as_version=4)


def _run(book: NotebookNode, path: Path) -> None:
    """Run the copy in memory, in a new kernel whose folder is the notebook's; the state of widgets is kept."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(book, timeout=TIMEOUT, kernel_name="python3", record_timing=False, store_widget_state=True,
                            resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=ERROR"])
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
        raise RunError(f"{path.name} does not run:\n{report}") from None


def _key(book: NotebookNode, path: Path) -> str:
    cells = [[cell.cell_type, cell.source] for cell in book.cells]
    return hashlib.sha256(f"{cells}{_surroundings(path.parents[1] / 'data')}".encode()).hexdigest()[:16]


@cache
def _surroundings(data: Path) -> str:
    """A hash of what notebooks use beside their own cells."""
    seen = hashlib.sha256(sys.version.encode())
    for line in sorted(importlib.metadata.requires("lowbit-nb") or []):
        if "extra ==" not in line:
            name = re.match(r"[\w.-]+", line)[0]
            seen.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    sources = [path for pattern in SOURCES for path in PACKAGE.rglob(pattern)
               if path.relative_to(PACKAGE).parts[0] not in NOT_RUN]
    read = [path for path in data.rglob("*") if path.is_file() and path.suffix not in NOT_READ]
    for path in sorted(sources) + sorted(read):
        seen.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()
