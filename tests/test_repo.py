"""The repository as a reader finds it: its top level, no machine's paths, no large files, its commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.layers import ROOT

TOP = {
    "notebooks",
    "lowbit_nb",
    "data",
    "tests",
    "environment.yml",
    "README.md",
    "pyproject.toml",
    "requirements.lock",
    "Makefile",
    "LICENSE",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    ".ci",
    ".gitignore",
    ".gitattributes",
}
MAX_BYTES = 2_000_000
TEST_COMMAND = "make test"

# Put together from pieces, so that this file does not contain what it looks for.
FOLDERS = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"))
MACHINE_PATH = re.compile(rf"(?<![\w.$~}}/-])/(?:{FOLDERS})/[\w.-]")
REGISTRY = re.compile(
    "|".join(
        (
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            r"download\." + r"pytorch\.org",
            r"conda\." + r"anaconda\.org",
            r"registry\." + r"npmjs",
            "--(?:extra-)?" + r"index-url[= ]+http",
            r"\barti" + "factory",
            r"\bsimple/" + r"index",
        )
    ),
    re.IGNORECASE,
)
# Lines that show what these patterns look like, as examples.
EXAMPLES = {"tests/nbval_sanitize.cfg", "tests/test_nbval_tools.py", "tests/test_notebooks_guard.py"}


def tracked() -> list[Path]:
    """Files that git has or would take; without git, all files that are not made by tools."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        found = [ROOT / name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {
            ".venv",
            "__pycache__",
            ".pytest_cache",
            ".ruff_cache",
            ".hypothesis",
            ".git",
            "build",
            "dist",
            "runs",
            "html",
            "class",
        }
        found = [
            path
            for path in ROOT.rglob("*")
            if path.is_file()
            and not any(part in made or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
        ]
    return sorted(path for path in found if path.is_file())


FILES = [str(path.relative_to(ROOT)) for path in tracked()]


def text_of(file: str) -> str | None:
    """Text of a file, None for a binary one."""
    try:
        return (ROOT / file).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def test_top_level_is_what_the_readme_shows():
    found = {file.split("/")[0] for file in FILES}
    assert found == TOP, f"missing: {sorted(TOP - found)}; unexpected: {sorted(found - TOP)}"


@pytest.mark.parametrize("file", [file for file in FILES if file not in EXAMPLES])
def test_names_no_machine(file):
    text = text_of(file) or ""
    for pattern in (MACHINE_PATH, REGISTRY):
        found = pattern.search(text)
        assert not found, f"{file}:{text[: found.start()].count(chr(10)) + 1} contains {found[0]!r}"


def test_large_files_are_data():
    large = [
        file for file in FILES if not file.startswith("data/") and (ROOT / file).stat().st_size > MAX_BYTES
    ]
    assert not large, f"over {MAX_BYTES} bytes and not in data/: {large}"


def test_no_pickles():
    bad = [file for file in FILES if file.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]
    assert not bad, f"store tensors as safetensors, not as {bad}"


def test_ci_runs_the_command_of_the_readme():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    commands = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    assert TEST_COMMAND in commands, (
        f"README.md must show `{TEST_COMMAND}` on a line of its own in a code block"
    )
    assert re.search(rf"^{TEST_COMMAND}\b", ci, re.MULTILINE), f".ci/run must run `{TEST_COMMAND}`"


def test_ci_scripts_can_be_run():
    assert all((ROOT / ".ci" / name).stat().st_mode & 0o100 for name in ("run", "setup"))


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see /" + "home/ann/x", True),
        ("'/" + "root/y'", True),
        ("https://a.org/ho" + "me/x", False),
        ("../shared/" + "work/x", False),
        ("a /" + "root of unity", False),
        ("x /" + "work/a", True),
    ],
)
def test_machine_paths_are_seen(text, bad):
    assert bool(MACHINE_PATH.search(text)) == bad
