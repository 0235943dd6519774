"""An S3 server of a few lines: what s3fs asks for small files, in memory, without checking signatures."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

OLD = "2020-01-01T00:00:00.000Z"


class Bucket:
    """The objects by name, and the requests that came: address, method and path."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            url = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            key = unquote(url.path).lstrip("/").partition("/")[2]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            bucket.requests.append(f"{self.client_address[0]} {self.command} {self.path}")
            if not key and self.command == "GET":
                self._list(asked.get("prefix", ""), asked.get("delimiter", ""))
            elif not key:
                self._answer(200)
            elif self.command == "PUT":
                bucket.objects[key] = body
                self._answer(200)
            elif self.command == "DELETE":
                bucket.objects.pop(key, None)
                self._answer(204)
            elif key in bucket.objects:
                self._object(bucket.objects[key])
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        do_GET = do_HEAD = do_PUT = do_DELETE = do

        def _list(self, prefix: str, delimiter: str) -> None:
            files, folders = "", set[str]()
            for name, content in sorted(bucket.objects.items()):
                rest = name.removeprefix(prefix)
                if rest == name and prefix:
                    continue
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                else:
                    files += f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size>"
                    files += f"<LastModified>{OLD}</LastModified><ETag>x</ETag></Contents>"
            for name in sorted(folders):
                files += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            count = f"<KeyCount>{files.count('</Key>') + len(folders)}</KeyCount>"
            self._answer(200, f"<ListBucketResult>{count}{files}</ListBucketResult>".encode())

        def _object(self, content: bytes) -> None:
            given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not given:
                return self._answer(200, content)
            first, last = int(given[1]), min(int(given[2] or len(content)), len(content) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self._answer(206, content[first : last + 1], headers)

        def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            fixed = {"ETag": '"x"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT", "Content-Length": str(len(body))}
            for name, value in (fixed | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def served(host: str = "127.0.0.1") -> Iterator[tuple[Bucket, dict[str, str]]]:
    """A running server: its content, and the environment in which `s3://bucket/...` leads to it."""
    bucket = Bucket()
    server = ThreadingHTTPServer((host, 0), _handler(bucket))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "QLORA_FLOW_REMOTE": "s3://bucket/folder",
    }
    try:
        yield bucket, environment
    finally:
        server.shutdown()
        server.server_close()
