"""pyproject.toml is the one list of dependencies; the lock and environment.yml say the same."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import LESSONS, PROJECT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# conda-forge's name where it is not PyPI's.
CONDA_NAMES = {
    "lightning-fabric": "pytorch-lightning",  # it brings the module lightning_fabric
    "matplotlib": "matplotlib-base",
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
    "seaborn": "seaborn-base",
    "torch": "pytorch",
}
APART = "bench"  # the extra with an environment of its own, which asks for older versions
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
ADDRESS = re.compile(r"https?://|file:|index-url|find-links|trusted-host|@ +\S+/")


def _project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def _wanted() -> list[Requirement]:
    project = _project()
    extras = [line for name in _extras() for line in project["optional-dependencies"][name]]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def _extras() -> list[str]:
    return [name for name in _project()["optional-dependencies"] if name != APART]


def _locked() -> list[Requirement]:
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip()]


def _conda() -> dict[str, str]:
    lines = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    split = (re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in lines)
    return dict(split)


def test_conda_has_the_same_names_and_bounds():
    project = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in _wanted()}
    conda = {name: Requirement(f"x{bounds}").specifier for name, bounds in _conda().items()}
    assert conda.pop("python") == Requirement(f"x{_project()['requires-python']}").specifier
    assert conda.pop("pip") == ""
    assert conda == project


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_holds_one_version_of_each_dependency_within_its_bounds(platform, python):
    here = {**PLATFORMS[platform], "python_version": python, "python_full_version": f"{python}.0"}
    here |= {"platform_machine": "x86_64", "implementation_name": "cpython", "extra": ""}
    here |= {"platform_python_implementation": "CPython"}
    versions: dict[str, list[str]] = {}
    for pinned in _locked():
        if pinned.marker is None or pinned.marker.evaluate(here):
            (exact,) = pinned.specifier
            assert exact.operator == "=="
            versions.setdefault(canonicalize_name(pinned.name), []).append(exact.version)
    for wanted in _wanted():
        (version,) = versions[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} but the lock has {version}"
    assert all(len(found) == 1 for found in versions.values())


def test_the_lock_is_made_with_every_extra_but_the_one_apart():
    (named,) = re.findall(r"addprefix --extra ,([\w ]+)\)", (PROJECT / "Makefile").read_text())
    assert named.split() == sorted(_extras())


def test_the_extra_apart_is_not_in_the_lock():
    locked = {canonicalize_name(pinned.name) for pinned in _locked()}
    apart = [Requirement(line) for line in _project()["optional-dependencies"][APART]]
    own = {canonicalize_name(wanted.name) for wanted in apart} - {"opencv-python-headless"}
    assert own and not own & locked


def test_the_lock_is_for_three_systems_only():
    markers = [str(pinned.marker) for pinned in _locked() if pinned.marker]
    assert all("sys_platform" in marker for marker in markers)
    solaris = {"sys_platform": "sunos5", "python_full_version": "3.12.0"}
    assert not any(Marker(marker).evaluate(solaris) for marker in markers)


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "requirements.lock", "environment.yml", "Makefile", ".ci/run"]
)
def test_no_file_names_a_package_index(name):
    assert not ADDRESS.search((PROJECT / name).read_text())


def test_the_address_check_knows_an_address():
    for line in ("--index-url https://a.org/simple", "x @ git+ssh://a/b", "find-links = /wheels"):
        assert ADDRESS.search(line)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_that_are_there(name):
    links = re.findall(r"\]\(([^)#]+)\)", (PROJECT / name).read_text())
    own = [link for link in links if "://" not in link]
    assert [link for link in own if not (PROJECT / link).exists()] == []


def test_the_readme_names_every_lesson():
    text = (PROJECT / "README.md").read_text()
    assert LESSONS
    assert [path.name for path in LESSONS if f"(notebooks/{path.name})" not in text] == []


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff_has_nothing_to_say(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", "."]
    done = subprocess.run(ruff, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
