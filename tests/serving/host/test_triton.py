"""The bundled Triton: which machines it runs on, and what its processes see of this one."""

import ctypes.util
import platform
import subprocess
import sysconfig
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.settings import Settings
from serving.host import triton


def test_this_machine_will_do() -> None:
    triton.check_platform()


@pytest.mark.parametrize(
    ("system", "machine", "libc", "told"),
    [
        ("Darwin", "arm64", ("", ""), r"Linux x86_64, not on Darwin arm64; .*SENTIMENT_TRITON_URL"),
        ("Linux", "aarch64", ("glibc", "2.36"), r"not on Linux aarch64; .*SENTIMENT_TRITON_URL"),
        ("Linux", "x86_64", ("glibc", "2.31"), r"needs glibc 2\.35 or newer .* this is glibc 2\.31; .*TRITON_URL"),
        ("Linux", "x86_64", ("", ""), r"needs glibc 2\.35 or newer .* this is another C library ?; .*TRITON_URL"),
    ],
    ids=["macOS", "ARM", "old glibc", "musl"],
)
def test_another_machine_is_told_what_to_do(
    system: str, machine: str, libc: tuple[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(PipelineError, match=told):
        triton.check_platform()


def test_missing_libpython_is_told_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    with pytest.raises(PipelineError, match=r"libpython3\.\d+\.so\.1\.0 is missing.*apt-get install libpython3\.\d+"):
        triton.check_platform()


def test_python_settings_of_the_user_do_not_reach_tritons_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shadow" / "numpy").mkdir(parents=True)
    (tmp_path / "shadow" / "numpy" / "__init__.py").write_text("__version__ = 'shadow'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    settings = Settings(state_dir=tmp_path / "state with a blank", runtime="onnxruntime")
    triton.command(settings)
    environment = triton.environment(settings)
    code = "import os, sys, numpy; print(numpy.__version__, sys.prefix, os.environ['SENTIMENT_RUNTIME'])"
    ended = subprocess.run(
        ["python3", "-c", code],
        env=environment,
        cwd=triton.working_directory(settings),
        check=True,
        capture_output=True,
        text=True,
    )
    assert ended.stdout == f"1.26.4 {environment['VIRTUAL_ENV']} onnxruntime\n"


def test_two_pipelines_share_neither_sockets_nor_shared_memory(tmp_path: Path) -> None:
    one, other = Settings(port=18_000, state_dir=tmp_path), Settings(port=18_004, state_dir=tmp_path)
    own = ("--grpc-port=", "--metrics-address=", "--backend-config=python,shm-region-prefix-name=")
    flags = [{flag for flag in triton.command(settings) if flag.startswith(own)} for settings in (one, other)]
    assert [len(given) for given in flags] == [3, 3]
    assert not flags[0] & flags[1]
    prefixes = [triton.shared_memory_prefix(settings) for settings in (one, other)]
    assert not prefixes[0].startswith(prefixes[1])
    assert not prefixes[1].startswith(prefixes[0])


def test_no_other_backend_is_there(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    [option] = [
        option for option in triton.command(settings) if option.startswith("--backend-directory=/proc/self/cwd/")
    ]
    directory = triton.working_directory(settings) / option.partition("/proc/self/cwd/")[2]
    assert {path.name for path in directory.iterdir()} == {"python", "packed_onnx"}
    libraries = {path.name for path in directory.rglob("*.so")}
    assert libraries == {"libtriton_python.so"}
