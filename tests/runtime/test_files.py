"""``runtime.files``: what a path leads to is read within a limit, or refused in words, at once."""

import os
import pty
import socket
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from snimux.runtime.files import open_regular, read, read_shared, read_stream
from tests.support.caddy import short_directory
from tests.support.sockets import open_descriptors

LIMIT = 2**20

STREAM = [
    sys.executable, "-c",
    "import sys\nfrom snimux.runtime.files import read_stream\n"
    "sys.stdout.buffer.write(read_stream(sys.argv[1], 2**20))",
]  # fmt: skip


def refusal(path: Path | str, *, patience: float | None = None) -> str | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its words are what is looked at)
        if patience is None:
            read(str(path), LIMIT)
        else:
            read_stream(str(path), LIMIT, patience=patience)
    return caught.value.strerror


def test_a_regular_file_is_read_up_to_its_limit_whatever_size_it_is_said_to_have(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * LIMIT)
    before = open_descriptors()
    assert read(str(file), LIMIT) == read_stream(str(file), LIMIT) == b"x" * LIMIT
    with file.open("ab") as more:
        more.write(b"x")
    assert refusal(file) == refusal(file, patience=9) == "is larger than 1 MiB"
    if sys.platform == "linux":
        stated = Path("/proc/self/status")
        assert stated.stat().st_size == 0
        assert read(str(stated), LIMIT).startswith(b"Name:")
    assert open_descriptors() == before


def test_of_a_sparse_file_nothing_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(2**40)
    tracemalloc.start()
    try:
        assert refusal(tmp_path / "sparse") == "is larger than 1 MiB"
        assert refusal(tmp_path / "sparse", patience=9) == "is larger than 1 MiB"
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


def test_what_is_no_regular_file_is_refused_in_words_and_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "again").symlink_to("again")
    before = open_descriptors()
    for path, words in (
        (tmp_path / "fifo", "is a FIFO and not a regular file"),
        (tmp_path / "link", "is a character device and not a regular file"),
        ("/dev/full" if sys.platform == "linux" else "/dev/zero",
         "is a character device and not a regular file"),
        ("/dev/null", "is a character device and not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "again", "Too many levels of symbolic links"),
    ):  # fmt: skip
        assert refusal(path) == words
        with pytest.raises(OSError, match=words):
            open_regular(str(path))
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        assert refusal(directory / "socket") == "is a socket and not a regular file"
        assert refusal(directory / "socket", patience=9) == "is a socket and not a regular file"
    assert open_descriptors() == before


def test_a_device_without_an_end_is_no_stream() -> None:
    for device in ("/dev/zero", "/dev/random", "/dev/urandom"):
        assert refusal(device, patience=9) == "is a character device and not a regular file"


def test_what_shells_make_of_a_pipe_is_read_once(tmp_path: Path) -> None:
    assert read_stream(os.devnull, LIMIT) == b""
    piped = subprocess.run([*STREAM, "/dev/stdin"], input=b"a" * 9**6, stdout=-1, timeout=60)
    assert piped.stdout == b"a" * 9**6
    script = '"$@" <(printf abc)'
    shell = subprocess.run(["bash", "-c", script, "-", *STREAM], stdout=-1, timeout=60)
    assert shell.stdout == b"abc"
    (tmp_path / "file").write_bytes(b"of a file")
    with (tmp_path / "file").open("rb") as file:
        own = subprocess.run([*STREAM, "/dev/stdin"], stdin=file, stdout=-1, timeout=60)
    assert own.stdout == b"of a file"


@pytest.mark.skipif(sys.platform != "linux", reason="others say the end where no writer was yet")
def test_the_writer_of_a_fifo_may_come_later(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Timer(0.2, (tmp_path / "fifo").write_bytes, [b"late"])
    writer.start()
    assert read_stream(str(tmp_path / "fifo"), LIMIT) == b"late"
    writer.join()


def test_a_pipe_that_does_not_end_is_not_waited_for_and_a_large_one_is_left() -> None:
    for written, words, patience in (
        (b"", "has not ended after 0.2 s", 0.2),
        (b"half", "has not ended after 0.2 s", 0.2),
        (b"x" * (LIMIT + 1), "is larger than 1 MiB", 60.0),
    ):
        reader, writer = os.pipe()
        with open(writer, "wb", buffering=0) as end:  # noqa: PTH123 (a descriptor)
            feeding = threading.Thread(target=end.write, args=[written])
            feeding.start()
            assert refusal(f"/dev/fd/{reader}", patience=patience) == words
            feeding.join()
        os.close(reader)


def test_what_is_typed_is_read_up_to_its_end() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*STREAM, "/dev/stdin"], stdin=theirs, stdout=-1) as typed:
        os.write(ours, b"typed\n\x04")
        assert typed.communicate(timeout=60)[0] == b"typed\n"
    os.close(ours)
    os.close(theirs)


def test_what_processes_share_is_read_from_anywhere_in_it(tmp_path: Path) -> None:
    file = tmp_path / "shared"
    file.write_bytes(b"shared")
    with file.open("r+b") as shared:
        shared.seek(3)
        assert read_shared(shared.fileno(), LIMIT) == b"shared"
        assert shared.tell() == 3
        shared.truncate(LIMIT + 1)
        with pytest.raises(OSError, match="is larger than 1 MiB"):
            read_shared(shared.fileno(), LIMIT)
    with open("/dev/zero", "rb") as zero:  # noqa: PTH123
        assert read_shared(zero.fileno(), LIMIT) == b""
