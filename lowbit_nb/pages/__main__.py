"""Write the pages; see the package's docstring for the ways to call it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowbit_nb.pages import run, site

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lowbit_nb.pages", description="The notebooks as pages.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="only these (default: all of notebooks/)")
    parser.add_argument("--out", type=Path, default=ROOT / "html", help="folder to write, replaced as a whole (default: html)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds README.md and notebooks/")
    parser.add_argument("--stored", action="store_true", help="run nothing, show the outputs that the files hold")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks run at the same time (default: 2)")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    paths = [path.resolve() for path in options.notebooks] or sorted((root / "notebooks").glob("*.ipynb"))
    try:
        site.refuse_foreign(options.out)
        books = run.stored(paths) if options.stored else run.executed(paths, root / "build" / "pages", options.jobs)
        pages = site.write(root, options.out, books)
    except (run.RunError, ValueError) as error:
        print(f"ERROR {error}\nNothing was written to {options.out}.", file=sys.stderr)
        return 1
    print(f"{len(pages)} pages: open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
