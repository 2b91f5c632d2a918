"""The directory of Triton's sockets: private, or refused, whatever its path is like."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.triton_addresses import socket_address
from serving.client import sockets

NOBODY = 65_534


def test_a_path_of_any_length_and_of_any_characters_is_reached(tmp_path: Path) -> None:
    path = tmp_path / ("ä b,c%:" * 20) / "grpc:8001"
    address = socket_address(path)
    assert not sockets.is_listening(address)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sockets.private_path(path))
        server.listen()
        assert sockets.is_listening(address)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_triton_of_another_port_in_the_same_directory_is_found(tmp_path: Path) -> None:
    own, other, another = (socket_address(tmp_path / "sockets" / name) for name in ("grpc:1", "grpc:2", "metrics:2"))
    assert sockets.neighbours(own) == []
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as metrics:
        server.bind(sockets.private_path(tmp_path / "sockets" / "grpc:2"))
        metrics.bind(sockets.private_path(tmp_path / "sockets" / "metrics:2"))
        metrics.listen()
        assert sockets.neighbours(own) == []  # nothing listens there any more
        server.listen()
        assert sockets.neighbours(own) == sockets.neighbours(other) == [other]
        assert sockets.is_listening(another)


def test_a_directory_that_was_made_anew_is_found(tmp_path: Path) -> None:
    path = tmp_path / "sockets" / "grpc:1"
    first = sockets.private_path(path)
    assert sockets.private_path(path) == first
    path.parent.rename(tmp_path / "before")
    Path(sockets.private_path(path)).write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o711])
def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(PipelineError, match=f"open to other accounts .mode {mode:o}.*another account could control"):
        sockets.grpc_target(socket_address(tmp_path / "grpc:1"))


def test_a_link_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(PipelineError, match="link, the directory of Triton's sockets, cannot be used"):
        sockets.private_path(tmp_path / "link" / "grpc:1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as another account")
def test_another_account_neither_gives_the_directory_nor_gets_into_it(tmp_path: Path) -> None:
    path = tmp_path / "sockets" / "grpc:1"
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o055)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sockets.private_path(path))
        server.listen()
        threading.Thread(target=lambda: [server.accept() for _ in range(2)], daemon=True).start()
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        refused = subprocess.run(
            ["/usr/bin/python3", "-c", connect],
            capture_output=True,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        )
        assert "PermissionError" in refused.stderr
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(PipelineError, match=f"belongs to user {NOBODY}"):
        sockets.private_path(theirs / "grpc:1")
