"""What is installed is what is named: bounds, pins and environment agree, the wheel holds the package, workflows call what exists."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]]
LINES = [Requirement(line) for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()]
LOCK = {canonicalize_name(line.name): line for line in LINES}
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
PLATFORMS = {
    "linux": LINUX,
    "linux-arm": LINUX | {"platform_machine": "aarch64"},
    "mac": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def read(name: str):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def applies(requirement: Requirement, environment: dict, extras=()) -> bool:
    """Does its marker hold on that platform, for one of the extras that were asked for?"""
    return requirement.marker is None or any(requirement.marker.evaluate(environment | {"extra": extra}) for extra in ("", *extras))


def closure(environment: dict) -> list[Requirement]:
    """All that pyproject.toml's names need there, as the installed packages say; what is not installed here ends the walk."""
    found, todo, seen = [], list(NAMED), set()
    while todo:
        requirement = todo.pop()
        found.append(requirement)
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            needs = map(Requirement, metadata.requires(requirement.name) or ())
        except metadata.PackageNotFoundError:
            continue
        todo += [need for need in needs if applies(need, environment, requirement.extras)]
    return found


# ---- bounds, pins, environment ------------------------------------------------------------------------------------


def test_each_line_of_the_lock_is_one_exact_version():
    assert len(LOCK) == len(LINES)
    assert not [str(line) for line in LINES if [part.operator for part in line.specifier] != ["=="]]


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_lock_holds_all_that_the_project_needs(platform, python):
    """pyproject.toml's own names and whatever these need, each within every bound that is set for it."""
    environment = PLATFORMS[platform] | {"python_version": python, "python_full_version": f"{python}.0"}
    wrong = []
    for need in closure(environment):
        pin = LOCK.get(canonicalize_name(need.name))
        if pin is None or not applies(pin, environment):
            wrong.append(f"{need.name} is missing")
        elif not need.specifier.contains(next(iter(pin.specifier)).version, prereleases=True):
            wrong.append(f"{pin} is outside {need.specifier}")
    assert not wrong, f"requirements.lock: {sorted(set(wrong))}"


def test_conda_installs_the_lock_on_a_supported_python():
    *packages, pip = read("environment.yml")["dependencies"]
    python = next(text.partition("=")[2] for text in packages if text.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert "pip" in packages and pip["pip"] == ["-r requirements.lock", "-e ."]


# ---- the wheel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the present files, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(folder.glob("dist/*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = [file for file in (ROOT / "lib").rglob("*") if file.is_file() and file.suffix in (".py", ".pyi", ".typed")]
    expected = {file.relative_to(ROOT / "lib").as_posix() for file in files}
    assert "icthp/py.typed" in expected
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_imports_from_any_folder(wheel, tmp_path):
    """icthp and each of its subpackages, unpacked elsewhere."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    packages = [path.parent.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("__init__.py")]
    names = sorted(".".join(package.parts) for package in packages)
    code = f"import sys; sys.path.insert(0, 'site'); import {', '.join(names)}; print(icthp.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith((str(tmp_path / "site"), "site"))


def test_one_version_everywhere(wheel):
    version = PROJECT["version"]
    assert wheel.name.startswith(f"icthp-{version}-")
    assert read("CITATION.cff")["version"] == version
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert Version(newest[1]) == Version(version)


# ---- workflows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tests", "site"])
def test_workflows_are_bounded_and_call_targets_that_exist(name):
    workflow = read(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"} and "concurrency" in workflow
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        called = [step["run"].removeprefix("make ") for step in job["steps"] if "run" in step]
        assert set(called) <= targets
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_tests_run_on_pythons_that_the_project_supports():
    rows = read(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(supported.contains(f"{row['python']}.0") for row in rows)
    assert {row["python"] for row in rows} == {"3.11", "3.13"} and {row["os"].partition("-")[0] for row in rows} == {"ubuntu", "macos"}
