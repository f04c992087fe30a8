"""A file of rows measured on the bundled subject: opened or begun, a row at a time kept, every row naming its run."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import lowbit_nb as lb


def this_run(note: str) -> dict:
    """What made the rows: device, versions, command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return {"device": device, "torch": torch.__version__, "python": platform.python_version(),
            "command": "python " + shlex.join(sys.argv), "note": note}


def opened(out: Path, what: str, subject: lb.Subject, held_out: lb.text.Windows, note: str) -> dict:
    """The table of an earlier run, or a new one, with this run entered; other text than before is refused."""
    table = json.loads(out.read_text()) if out.exists() else {
        "what": what, "evaluation": held_out.protocol,
        "original_perplexity": lb.evaluate.perplexity(subject, held_out), "runs": [], "rows": []}
    if table["evaluation"] != held_out.protocol:
        raise SystemExit(f"{out} was measured on other text ({table['evaluation']}); give another --out")
    table["runs"].append(this_run(note))
    return table


def keep(table: dict, row: dict, key: Callable[[dict], tuple], out: Path) -> None:
    """Enter a row, in place of one of the same key, and write the file."""
    print(row, flush=True)
    table["rows"] = [old for old in table["rows"] if key(old) != key(row)] + [row]
    out.write_text(json.dumps(table, indent=1) + "\n")
