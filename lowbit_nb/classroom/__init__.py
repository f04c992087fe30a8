"""For a class: notebooks for students and for teachers, and the pages that are generated from the notebooks.

    python -m lowbit_nb.classroom             writes class/: source/ and release/ for nbgrader, and the pages
    python -m lowbit_nb.classroom --pages     brings data/class/*.md up to date with the notebooks and the glossary
    python -m lowbit_nb.classroom --check     writes nothing; status 1 if a page of data/class is out of date

`lesson` reads a notebook, `forms` makes the two forms, `glossary`, `papers`, `plan` and `graph` make the pages.
Nothing here runs a notebook or needs nbgrader; nbgrader reads what is written here.
"""
