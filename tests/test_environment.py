"""environment.yml, requirements.lock and pyproject.toml name the same packages and versions.

What this proves: every line of environment.yml is valid conda syntax (py-rattler, strict), stands for a
dependency of pyproject.toml, none is missing, and the version is the pinned one, which lies in the declared
range.

What it cannot prove without a network: that conda-forge has these packages under these names, that it has
these versions built for your platform, or that its solver finds them compatible. Nobody installs
environment.yml here.
"""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from rattler import MatchSpec

from tests.layers import ROOT

# Names that differ between the package index and conda-forge. The -base packages leave out unused GUI parts.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}
IN_ENVIRONMENT = ("test",)  # extras that environment.yml includes; the others are added with pip
ONLY_CONDA = {"python", "pip"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extras: tuple[str, ...]) -> dict[str, Requirement]:
    data = project()
    lines = data["dependencies"] + [line for extra in extras for line in data["optional-dependencies"][extra]]
    return {Requirement(line).name: Requirement(line) for line in lines}


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\d+(?:\.\d+)*)", line)
            assert match, f"requirements.lock: not a plain 'name==version' line: {line!r}"
            assert match[1] not in found, f"requirements.lock names {match[1]} twice"
            found[match[1]] = match[2]
    return found


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def conda_specs() -> dict[str, str]:
    """{name: version part} of the conda lines, each parsed strictly."""
    specs = [MatchSpec(line, strict=True) for line in environment()["dependencies"] if isinstance(line, str)]
    found = {spec.name.normalized: str(spec.version or "") for spec in specs}
    assert len(found) == len(specs), "environment.yml names a package twice"
    return found


ALL_EXTRAS = tuple(project()["optional-dependencies"])


def test_every_direct_dependency_is_pinned():
    wanted = requirements(ALL_EXTRAS)
    assert {name.lower() for name in wanted} == set(pins())


@pytest.mark.parametrize("name", sorted(requirements(ALL_EXTRAS)))
def test_pin_lies_in_the_declared_range(name):
    requirement = requirements(ALL_EXTRAS)[name]
    assert requirement.specifier and not requirement.url, f"{name}: pyproject.toml must give a range"
    assert all(part.operator in (">=", "<", "!=") for part in requirement.specifier), (
        f"{name}: a range, not a pin"
    )
    assert requirement.specifier.contains(Version(pins()[name]))


def test_environment_names_the_same_packages():
    wanted = {CONDA_NAMES.get(name, name) for name in requirements(IN_ENVIRONMENT)}
    assert set(conda_specs()) - ONLY_CONDA == wanted


def test_environment_has_the_pinned_versions():
    wanted = {CONDA_NAMES.get(name, name): f"=={pins()[name]}" for name in requirements(IN_ENVIRONMENT)}
    assert {name: spec for name, spec in conda_specs().items() if name not in ONLY_CONDA} == wanted


def test_environment_has_the_same_python():
    assert conda_specs()["python"] == project()["requires-python"]


def test_environment_installs_this_package_from_conda_forge_only():
    data = environment()
    assert data["name"] == "lowbit-nb" and data["channels"] == ["conda-forge", "nodefaults"]
    assert [line["pip"] for line in data["dependencies"] if isinstance(line, dict)] == [["-e ."]]


@pytest.mark.parametrize("line", ["numpy=>2", "python=>3.11", "pytorch ==2.13.0.*.*["])
def test_bad_lines_are_refused(line):
    with pytest.raises(Exception, match="parse|invalid|version|bracket"):
        MatchSpec(line, strict=True)
