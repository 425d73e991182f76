"""Which build of torch an installation takes, with pip and with uv, from wheels of a few bytes."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from core import install
from core.install import Environment, InstallError, choose_torch, pinned
from tests.limits import ROOT, free_port

PIN = pinned("torch")
UV = str(Path(sys.executable).parent / "uv")


def wheel(folder: Path, version: str) -> Path:
    """A wheel of torch without content."""
    files = {"METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"}
    files["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = f"torch-{version}.dist-info"
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{info}/{name},sha256={digest.decode()},{len(text)}\n"
    files["RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{info}/{name}", text)
    return path


def without_torch(environment: Path) -> None:
    """Remove such a wheel, of which there is nothing else; pip takes seconds for that."""
    for folder in environment.glob("lib/*/site-packages/torch-*.dist-info"):
        shutil.rmtree(folder)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """The address of a package index with the wheels in `folder`/torch."""
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def machine(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """No NVIDIA device, no torch, no settings of pip; the package index has torch alone."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    wheel(tmp_path / "default/torch", PIN)
    without_torch(bare)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(install, "nvidia_device", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with index(tmp_path / "default") as address:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", address)
        monkeypatch.setenv("UV_NO_CONFIG", "1")
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
        yield bare, address


@pytest.fixture(params=["pip", "uv"])
def into(machine: tuple[Path, str], request: pytest.FixtureRequest) -> Environment:
    return Environment(machine[0], UV if request.param == "uv" else None)


def cpu_index(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have the CPU builds at an address; without one of its own, pip finds the uv of the tests."""
    monkeypatch.setattr(install, "CPU_INDEX", ("--default-index", address))

    @contextmanager
    def at_hand(self: Environment) -> Iterator[str]:
        yield UV

    monkeypatch.setattr(Environment, "_uv_at_hand", at_hand)


def test_without_a_device_the_index_of_cpu_builds_is_taken(
    into: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "cpu/torch", f"{PIN}+cpu")
    with index(tmp_path / "cpu") as address:
        cpu_index(monkeypatch, address)
        assert choose_torch("", into) == "there is no NVIDIA device here"
    assert into.version("torch") == f"{PIN}+cpu"
    assert choose_torch("", into) == "it was here already"
    # What is asked for replaces it, though it satisfies the pin.
    assert choose_torch("cuda", into) == "TORCH=cuda"
    assert into.version("torch") == PIN


def test_an_index_that_cannot_be_reached_is_named_and_the_default_build_taken(
    into: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/"
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    cpu_index(monkeypatch, nobody)
    reason = choose_torch("", into)
    assert reason.startswith("there is no NVIDIA device here, but the index of CPU builds is of no")
    assert nobody in reason
    assert into.version("torch") == PIN
    with pytest.raises(InstallError, match=rf"^TORCH=cpu, but the index.*{nobody}"):
        choose_torch("cpu", into)


def test_a_wheel_at_hand_goes_before_any_index(
    into: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", f"{PIN}+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    reason = choose_torch("cpu", into)
    assert reason.startswith("TORCH=cpu, and file://")
    assert into.version("torch") == f"{PIN}+cpu"
    # Where CUDA is asked for, it is not taken for it.
    choose_torch("cuda", into)
    assert into.version("torch") == PIN


def test_a_device_an_index_and_a_wheel_choose_too(
    into: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = wheel(tmp_path / "given", f"{PIN}+own")
    wheel(tmp_path / "other/torch", f"{PIN}+cu126")
    assert choose_torch(str(given), into) == f"TORCH={given}"
    assert into.version("torch") == f"{PIN}+own"
    with index(tmp_path / "other") as address:
        choose_torch(address, into)
    assert into.version("torch") == f"{PIN}+cu126"
    without_torch(into.folder)
    monkeypatch.setattr(install, "nvidia_device", lambda: "GPU 0: NVIDIA H100")
    assert choose_torch("", into) == "there is an NVIDIA device here, GPU 0: NVIDIA H100"
    assert into.version("torch") == PIN


def test_a_torch_of_another_version_than_the_pin_is_refused(
    machine: tuple[Path, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = wheel(tmp_path / "old", "1.0")
    command = ["--venv", str(machine[0]), "--torch", str(old)]
    assert install.main(command) == 2
    assert f"TORCH={old} is torch 1.0; constraints.txt wants {PIN}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("said", "found"),
    [("GPU 0: NVIDIA H200 (UUID: GPU-1)", "GPU 0: NVIDIA H200"), ("No devices were found", None)],
)
def test_devices_are_those_that_nvidias_tool_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # of /dev
    assert install.nvidia_device() == found


def test_make_installs_again_for_another_torch_and_only_then(tmp_path: Path) -> None:
    """Asked of make without running anything, on files of the same names."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    stamp = tmp_path / ".venv/.installed"
    # Not what the make that runs the tests was given.
    given = ("MAKEFLAGS", "MAKEOVERRIDES", "TORCH", "POOL", "COMPUTE")
    variables = {name: value for name, value in os.environ.items() if name not in given}

    def commands(target: str, *arguments: str) -> str:
        command = ["make", "-n", target, "UV=", *arguments]
        options = {"cwd": tmp_path, "env": variables, "capture_output": True, "text": True}
        return subprocess.run(command, **options).stdout

    assert "core/install.py --uv '' --torch ''" in commands("install")
    stamp.write_text("cpu\n", encoding="utf-8")
    assert "core/install.py" not in commands("install") + commands("install", "TORCH=cpu")
    assert "core/install.py --uv '' --torch 'cuda'" in commands("install", "TORCH=cuda")
    os.utime(stamp, (0, 0))  # the pins have changed: the choice stays
    assert "core/install.py --uv '' --torch 'cpu'" in commands("install")
    for target in ("test", "check"):
        assert "--extra 'dev'" in commands(target)
    assert "--extra" not in commands("pipeline")
    assert "--extra 'containers'" in commands("deploy", "POOL=docker")
