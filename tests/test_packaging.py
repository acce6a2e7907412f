"""What is installed: the wheel, what it needs, and the core beside torch alone."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a room may import beside the core's needs: the extras of its own and of the rooms below it.
ROOMS = {
    "core": (),
    "accel": (),
    "integrations": ("integrations",),
    "deploy": ("deploy",),
    "study": ("study",),
    "analysis": ("study", "deploy"),
}


def declared(*extras):
    """The names of the packages that the project and ``extras`` name, themselves and those of named extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    requirements = [Requirement(line) for line in lines]
    nested = [extra for one in requirements if one.name == PROJECT["name"] for extra in sorted(one.extras)]
    more = declared(*nested) if nested else {}
    return more | {canonicalize_name(one.name): one for one in requirements if one.name != PROJECT["name"]}


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def imported(paths):
    """The packages that modules import anywhere in their code, without the standard library and the project."""
    trees = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in trees if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in trees if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pruning", "benchmarks"}


def python(*arguments, executable=sys.executable, **options):
    done = subprocess.run([executable, *map(str, arguments)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_extras_declare(room):
    folder = ROOT / "pruning" if room == "core" else ROOT / "pruning" / room
    paths = [path for path in folder.glob("*.py" if room == "core" else "**/*.py") if path.name != "__main__.py"]
    assert paths
    known = packages_distributions()
    used = {canonicalize_name(known.get(name, [name])[0]) for name in imported(paths)}
    assert used <= set(declared(*ROOMS[room]))


def test_tests_and_benchmarks_import_what_is_declared():
    known = packages_distributions()
    paths = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    used = imported(paths) - {path.stem for path in paths}
    assert {canonicalize_name(known.get(name, [name])[0]) for name in used} <= set(declared("all"))


def test_the_lock_holds_a_version_of_everything_declared():
    versions = locked()
    for name, requirement in declared("all").items():
        assert name in versions, f"requirements.lock does not pin {name}"
        assert requirement.specifier.contains(versions[name]), f"{requirement} is not met by {name}=={versions[name]}"


def test_pre_commit_runs_the_locked_versions():
    pins = re.findall(r"([\w-]+)==([\w.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert ("ruff", locked()["ruff"]) in pins
    assert all(locked().get(name, version) == version for name, version in pins)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a copy of the sources, so that nothing left over in the tree gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "pruning", folder / "pruning", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_asks_for_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    sources = [path.relative_to(ROOT) for path in ROOT.glob("pruning/**/*") if path.suffix in {".py", ".c", ".typed"}]
    assert names == {path.as_posix() for path in sources}
    asked = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)]
    assert {one.name for one in asked if not one.marker or one.marker.evaluate({"extra": ""})} == {"torch"}


def needed(name):
    """A package's name and those of all that it needs, as installed here."""
    asked = [Requirement(line) for line in distribution(name).requires or ()]
    here = [one.name for one in asked if not one.marker or one.marker.evaluate({"extra": ""})]
    return {canonicalize_name(name)}.union(*(needed(one) for one in here))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel, torch and what torch needs, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    files = [file for name in needed("torch") for file in distribution(name).files]
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        (site / top).symlink_to(distribution("torch").locate_file(top))
    executable = home / "bin" / "python"
    python("-m", "pip", "--python", executable, "install", "--quiet", "--no-deps", "--no-index", wheel)
    return executable


@pytest.mark.slow
def test_the_bare_wheel_prunes_a_network(bare, tmp_path):
    done = json.loads(python("-I", "-c", PRUNES, executable=bare, cwd=tmp_path))
    assert done["finished"]
    assert done["density"] < 0.5
    assert done["accuracy"] >= 0.9
    # Everything that came in with the package is torch's, the package's core or Python's own.
    assert "/site-packages/pruning/" in done["file"]
    own = {name for name in done["modules"] if name.startswith("pruning.")}
    assert own <= {f"pruning.{path.stem}" for path in ROOT.glob("pruning/*.py")}
    assert {name.partition(".")[0] for name in done["modules"]} <= set(sys.stdlib_module_names) | {"pruning", "torch"}


def test_the_bare_wheel_lists_its_verbs_and_names_the_extras_they_need(bare, tmp_path):
    assert "status" in python("-I", "-m", "pruning", "--help", executable=bare, cwd=tmp_path)
    for verb in ("status", "savings"):
        done = subprocess.run([bare, "-I", "-m", "pruning", verb], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert re.fullmatch(r"error: \w+ is not installed: pip install 'synapse-pruning\[study,deploy]'\n", done.stderr)


PRUNES = """
import json, sys, torch
import torch._dynamo  # optimizers load it with what it needs in turn
before = set(sys.modules)
import pruning
from pruning import METHODS, PruneControl, masked

torch.manual_seed(0)
images = torch.randn(512, 20)
labels = (images[:, 0] > 0).long()
model = masked(torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2)))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
control = PruneControl(model, 0.9, METHODS["iterative"], optimizer=optimizer, budget=400)
accuracy = lambda network: (network(images).argmax(1) == labels).float().mean().item()
for iteration in range(1, 2001):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    if iteration % 20 == 0 and control.update(iteration, accuracy(model)).finished:
        break
network = control.delivered()
print(json.dumps({"finished": control.finished, "density": pruning.density(network), "accuracy": accuracy(network),
                  "file": pruning.__file__, "modules": sorted(set(sys.modules) - before)}))
"""
