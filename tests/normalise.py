"""Bring notebooks into the one form in which they are stored, so that a diff shows what somebody changed.

    python tests/normalise.py notebooks/*.ipynb              rewrite the files in normal form
    python tests/normalise.py --execute notebooks/*.ipynb    first run each from top to bottom in a new kernel
    python tests/normalise.py --check notebooks/*.ipynb      write nothing; status 1 if a file would change

Normal form: an executed notebook with counts 1..N, no timing, no widget state or views (the HTML and text
fallbacks stay), of all metadata only kernel, language and cell tags, keys sorted, one newline at the end.
Cell ids are never changed. A file is replaced whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 180  # seconds, as in the Makefile's nbval run
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(Exception):
    """A notebook that has no normal form; the message names the notebook, the cell and the way out."""


def where(path: Path, number: int, cell: NotebookNode) -> str:
    line = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"{path.name}, cell {number} (id {cell.get('id', '?')}: {line.strip()[:60]!r})"


def parse(path: Path) -> NotebookNode:
    """Read a notebook, refusing what nbformat would repair silently with new random ids."""
    text = path.read_text(encoding="utf-8")
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotebookError(f"{path.name}: not JSON ({error})") from None
    if (raw.get("nbformat"), raw.get("nbformat_minor", 0)) < (4, 5):
        raise NotebookError(
            f"{path.name}: format older than 4.5 has no cell ids; save it with a current JupyterLab"
        )
    ids = [cell.get("id") for cell in raw["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        raise NotebookError(
            f"{path.name}: every cell needs an id of its own; missing or repeated among {ids}"
        )
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    return nb


def execute(path: Path) -> NotebookNode:
    """Run a notebook from the top in a new kernel whose folder is the notebook's, as JupyterLab does."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb = parse(path)
    # The stored numbers must be those that the tests compute, so the threads are those of the tests.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", LOWBIT_NB_THREADS="1")
    running = [0, nb.cells[0]]

    def remember(cell: NotebookNode, cell_index: int) -> None:
        running[:] = [cell_index, cell]

    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_start=remember,
        extra_arguments=["--log-level=ERROR"],  # else every kernel warns on stderr about its local sockets
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
        raise NotebookError(f"{where(path, *running)} failed:\n{report}") from None
    return nb


def tidy_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Outputs without widget views, neighbouring prints joined, counts set."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if "data" in output:
            output.data.pop(WIDGET_VIEW, None)
            output.metadata.pop(WIDGET_VIEW, None)
            if not output.data:
                continue
        if output.output_type == "execute_result":
            output.execution_count = count
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text  # how a kernel cuts its prints into messages depends on its timing
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = settled(output.text)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def settled(text: str) -> str:
    """What a reader sees in the end of lines that were written over, as progress bars do."""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n"))


def complain(path: Path, number: int, cell: NotebookNode, last: int) -> None:
    """Raise for a cell that has no honest normal form."""
    place = where(path, number, cell)
    if not cell.source.strip():
        raise NotebookError(f"{place}: an empty code cell; remove it")
    if cell.execution_count is None:
        raise NotebookError(f"{place}: was never run; use --execute")
    if cell.execution_count <= last:
        raise NotebookError(f"{place}: was run out of order; use --execute")
    for output in cell.outputs:
        if output.output_type == "error":
            raise NotebookError(f"{place}: stores the error {output.ename}: {output.evalue}")
        if output.output_type == "stream" and output.name == "stderr":
            raise NotebookError(
                f"{place}: wrote to stderr, which no reader should meet:\n{output.text.strip()}"
            )


def normalise(nb: NotebookNode, path: Path) -> NotebookNode:
    """The normal form of an executed notebook (changes and returns `nb`)."""
    count = last = 0
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": sorted(tags)} if tags else {})
        if cell.get("attachments"):
            raise NotebookError(
                f"{where(path, number, cell)}: holds a pasted picture; put it into data/figures"
            )
        if cell.cell_type != "code":
            continue
        complain(path, number, cell, last)
        last = cell.execution_count
        count += 1
        cell.execution_count = count
        cell.outputs = tidy_outputs(cell.outputs, count)
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat, nb.nbformat_minor = 4, 5
    nbformat.validate(nb)
    return nb


def text_of(nb: NotebookNode) -> str:
    """Sorted keys, one newline at the end."""
    return nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def normal_text(path: Path) -> str:
    return text_of(normalise(parse(path), path))


def replace(path: Path, text: str) -> None:
    """Write beside the file, then rename: an interrupted run leaves the old notebook whole."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def handle(path: Path, check: bool, run: bool) -> bool:
    """Deal with one notebook; True if it is (now) in normal form."""
    old = path.read_text(encoding="utf-8")
    start = time.perf_counter()
    new = text_of(normalise(execute(path), path)) if run else normal_text(path)
    took = f", ran in {time.perf_counter() - start:.1f} s" if run else ""
    if check:
        print(f"{path.name}: {'normal' if old == new else 'NOT in normal form'}{took}")
        return old == new
    if old != new:
        replace(path, new)
    print(f"{path.name}: {'unchanged' if old == new else 'rewritten'}{took}")
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring notebooks into the form in which they are stored.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file would change")
    parser.add_argument("--execute", action="store_true", help="run the notebook first")
    options = parser.parse_args(arguments)
    good = True
    for path in options.notebooks:
        try:
            good = handle(path, options.check, options.execute) and good
        except (NotebookError, nbformat.ValidationError, OSError) as error:
            print(f"ERROR {error}", file=sys.stderr)
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
