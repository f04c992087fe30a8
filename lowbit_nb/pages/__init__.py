"""The notebooks as pages that are read, and explored, where nothing is installed.

    python -m lowbit_nb.pages                 runs copies of the notebooks and writes html/ (this is `make html`)
    python -m lowbit_nb.pages --stored        runs nothing: stored outputs, with pictures in place of explorers

`run` executes copies and keeps what they gave, `site` knows which pages there are and where links lead, `render` makes one
page (nbconvert with `page.html.j2`), `formulas` turns TeX into MathML, `explorers` hands widgets to `page.js`, which brings
them to life without a kernel. The folder that is written needs no network and no server.
"""
