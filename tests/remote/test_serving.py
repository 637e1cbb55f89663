"""Real servers: nginx with the configuration of the document, and a store of S3."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

import tqcodec

Arrays = dict[str, Any]
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    types {{ text/html html; text/javascript js; }}
    gzip on;
    gzip_types *;
    gzip_min_length 0;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        {location}
    }}
}}
"""


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    out: Arrays = {f"w{i}": rng.normal(size=(64, 64, 3, 3)).astype(np.float32) for i in range(8)}
    return out | {"b": rng.normal(size=64).astype(np.float32)}


@pytest.fixture(scope="module")
def data(arrays: Arrays) -> bytes:
    return tqcodec.encode(arrays, tqcodec.Settings(snr=15, effort=1))


@pytest.fixture(scope="module")
def decoded(data: bytes) -> Arrays:
    return tqcodec.decode(data)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def assert_reads(url: str, decoded: Arrays, remote: tqcodec.Remote | None = None) -> None:
    for found in (tqcodec.load(url, remote=remote), dict(tqcodec.stream(url, remote=remote))):
        assert {k: v.tobytes() for k, v in found.items()} == {
            k: v.tobytes() for k, v in decoded.items()
        }
    tqcodec.verify(url, remote=remote)
    with tqcodec.open(url, remote=remote) as file:
        assert list(file) == list(decoded)
        assert file["w5"].tobytes() == decoded["w5"].tobytes()


class Nginx:
    """A running nginx; its folder holds `files` and `access.log`."""

    def __init__(self, folder: Path, location: str) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "files").mkdir()
        text = CONFIGURATION.format(folder=folder, port=self.port, location=location)
        (folder / "nginx.conf").write_text(text)
        self.url = f"http://127.0.0.1:{self.port}"
        assert NGINX is not None
        self.process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"])
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.02)

    def put(self, name: str, data: bytes) -> None:
        """Put a file in place by a rename."""
        (self.folder / "new").write_bytes(data)
        (self.folder / "new").rename(self.folder / "files" / name)

    def answers(self) -> list[str]:
        """Status and bytes of the answers so far."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [match[1] for line in lines if (match := re.search(r'" (\d+ \d+) "', line))]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def nginx(tmp_path: Path, data: bytes) -> Iterator[Nginx]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    (location,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    server = Nginx(tmp_path, location)
    server.put("m.tqc", data)
    yield server
    server.close()


def test_nginx_is_read(nginx: Nginx, decoded: Arrays, data: bytes, tmp_path: Path) -> None:
    with tqcodec.open(f"{nginx.url}/m.tqc") as file:
        file["w7"]
    time.sleep(0.1)
    assert nginx.answers()[0] == f"206 {1 << 16}"
    assert len(nginx.answers()) == 2
    assert_reads(f"{nginx.url}/m.tqc", decoded)
    tqcodec.fetch(f"{nginx.url}/m.tqc", tmp_path / "copy.tqc")
    assert (tmp_path / "copy.tqc").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        tqcodec.open(f"{nginx.url}/n.tqc")


def test_nginx_says_what_clients_want(nginx: Nginx, data: bytes) -> None:
    (nginx.folder / "files" / "page.html").write_bytes(b"<p>" * 1000)
    headers = {"Accept-Encoding": "gzip", "Range": "bytes=10-19"}
    with urllib3.PoolManager() as pool:
        page = pool.request("GET", f"{nginx.url}/page.html", headers={"Accept-Encoding": "gzip"})
        assert page.headers["Content-Encoding"] == "gzip", "the configuration does not compress"
        whole = pool.request("GET", f"{nginx.url}/m.tqc", headers={"Accept-Encoding": "gzip"})
        part = pool.request("GET", f"{nginx.url}/m.tqc", headers=headers)
        several = pool.request(
            "GET", f"{nginx.url}/m.tqc", headers=headers | {"Range": "bytes=0-1,5-6"}
        )
    assert (whole.status, whole.data) == (200, data)
    assert (part.status, part.data) == (206, data[10:20])
    assert (several.status, several.data) == (200, data)
    for answer in (whole, part):
        assert "Content-Encoding" not in answer.headers
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "immutable" in answer.headers["Cache-Control"]
        assert "no-transform" in answer.headers["Cache-Control"]
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert not answer.headers["ETag"].startswith("W/")


def test_a_file_that_is_replaced_in_nginx(nginx: Nginx, data: bytes, arrays: Arrays) -> None:
    with tqcodec.open(f"{nginx.url}/m.tqc") as file:
        nginx.put("m.tqc", tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1)))
        with pytest.raises(OSError, match="has changed since it was opened"):
            file["w7"]


def test_nginx_that_goes_and_comes_back(nginx: Nginx, decoded: Arrays) -> None:
    quick = tqcodec.Remote(attempts=2)
    with tqcodec.open(f"{nginx.url}/m.tqc", remote=quick) as file:
        nginx.close()
        with pytest.raises(OSError, match="Connection refused, after 2 attempts"):
            file["w7"]
        assert NGINX is not None
        configuration = nginx.folder / "nginx.conf"
        nginx.process = subprocess.Popen([NGINX, "-p", nginx.folder, "-c", configuration])
        patient = tqcodec.Remote(attempts=9)
        assert tqcodec.load(file._path, remote=patient)["w7"].tobytes() == decoded["w7"].tobytes()  # type: ignore[arg-type]
        assert file["w7"].tobytes() == decoded["w7"].tobytes()


# A store of S3


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, Any]]:
    """Options of s3fs for a store that runs here."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    server.stop()


@pytest.fixture
def remote(store: dict[str, Any], data: bytes) -> tqcodec.Remote:
    import s3fs

    system = s3fs.S3FileSystem(**store)
    system.mkdirs("bucket", exist_ok=True)
    system.pipe_file("bucket/folder/m.tqc", data)
    return tqcodec.Remote(storage=store)


S3 = "s3://bucket/folder/m.tqc"


def test_a_store_is_read(
    remote: tqcodec.Remote, decoded: Arrays, data: bytes, tmp_path: Path
) -> None:
    assert_reads(S3, decoded, remote)
    tqcodec.fetch(S3, tmp_path / "m.tqc", remote=remote)
    assert (tmp_path / "m.tqc").read_bytes() == data
    tqcodec.fetch(S3, tmp_path / "some.tqc", only="w3", remote=remote)
    assert tqcodec.load(tmp_path / "some.tqc")["w3"].tobytes() == decoded["w3"].tobytes()


def test_a_public_object_by_https(
    remote: tqcodec.Remote, store: dict[str, Any], decoded: Arrays
) -> None:
    import s3fs

    url = s3fs.S3FileSystem(**store).sign("bucket/folder/m.tqc")
    assert "Signature" in url
    assert_reads(url, decoded)


def test_what_a_store_has_not(remote: tqcodec.Remote, store: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        tqcodec.open("s3://bucket/folder/n.tqc", remote=remote)
    assert caught.value.filename == "s3://bucket/folder/n.tqc"
    with pytest.raises(OSError, match="s3://nowhere/"):
        tqcodec.open("s3://nowhere/m.tqc", remote=remote)


def test_an_object_that_changes(
    remote: tqcodec.Remote, store: dict[str, Any], arrays: Arrays
) -> None:
    import s3fs

    with tqcodec.open(S3, remote=remote) as file:
        other = tqcodec.encode(arrays, tqcodec.Settings(snr=10, effort=1))
        s3fs.S3FileSystem(**store).pipe_file("bucket/folder/m.tqc", other)
        with pytest.raises(OSError, match="has changed since it was opened"):
            file["w7"]
