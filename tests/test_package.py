"""Wheel and sdist: what is in them, that they are the same each time, and that an installation of the wheel works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from sentinel import __version__

ROOT = Path(__file__).parent.parent
SOURCES = ("sentinel", "tests", "config", "deploy", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
WHEEL, SDIST = f"sentinel-{__version__}-py3-none-any.whl", f"sentinel-{__version__}.tar.gz"


def succeeds(*command: str | Path, cwd: Path) -> str:
    """Run a program outside of this checkout's reach; its output is the failure's message."""
    foreign = ("SENTINEL_", "PYTHONPATH", "COV_CORE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment | {"SOURCE_DATE_EPOCH": "1700000000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def checkout(folder: Path) -> Path:
    """A fresh copy of the sources, with times and modes of its own."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
            )
        else:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
    return folder


def build(folder: Path) -> tuple[bytes, bytes]:
    succeeds(sys.executable, "-m", "hatchling", "build", cwd=folder)
    return (folder / "dist" / WHEEL).read_bytes(), (folder / "dist" / SDIST).read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkout(tmp_path_factory.mktemp("build") / "one")
    build(folder)
    return folder / "dist"


def test_another_checkout_at_another_time_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    other = checkout(tmp_path / "two")
    for path in other.rglob("*"):
        os.utime(path, (1.8e9, 1.8e9))
        if path.is_file():
            path.chmod(0o600)
    assert build(other) == ((built / WHEEL).read_bytes(), (built / SDIST).read_bytes())


def test_the_wheel_holds_the_package_and_all_its_data_and_nothing_else(built: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sentinel").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built / WHEEL) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if ".dist-info/" not in name} == package
    assert f"sentinel-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_sdist_builds_the_same_wheel_and_holds_tests_and_what_is_deployed(built: Path, tmp_path: Path) -> None:
    with tarfile.open(built / SDIST) as sdist:
        sdist.extractall(tmp_path, filter="data")
    unpacked = tmp_path / SDIST.removesuffix(".tar.gz")
    assert build(unpacked)[0] == (built / WHEEL).read_bytes()
    for name in ("tests/test_package.py", "deploy/systemd/sentinel.service", "config/sentinel.toml"):
        assert (unpacked / name).is_file()


def test_it_works_in_a_bare_environment(built: Path, tmp_path: Path) -> None:
    """What it depends on is lent by this environment, as installing torch again would take minutes."""
    succeeds(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(succeeds(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    succeeds(*install, built / WHEEL, cwd=tmp_path)
    program = tmp_path / "venv" / "bin" / "sentinel"
    where = succeeds(python, "-c", "import sentinel; print(sentinel.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    assert succeeds(program, "--version", cwd=tmp_path) == f"sentinel {__version__}\n"
    shutil.copy(ROOT / "config" / "minimal.toml", tmp_path)
    assert "[profiles.pump]" in succeeds(program, "check-config", "--config", "minimal.toml", cwd=tmp_path)
