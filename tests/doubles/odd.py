"""Small servers for odd cases: any answer, TLS with a certificate of their own, and a proxy that knows more names."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_certificate(folder: Path, *names: str, days: int = 1) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for host names as a PEM file, and a server's context with it; it ends after `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    held: list[x509.GeneralName] = [
        x509.IPAddress(IPv4Address(each)) if each[0].isdigit() else x509.DNSName(each) for each in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(held), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@contextmanager
def in_thread(serving: Callable[[], AbstractAsyncContextManager[int]]) -> Iterator[int]:
    """Serve in a thread until the block ends; gives the port."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    ports: list[int] = []

    async def main() -> None:
        async with serving() as port:
            ports.append(port)
            started.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("the server did not start")
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@contextmanager
def answering(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on 127.0.0.1 that answers every request by a function; gives its port."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[int]:
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield runner.addresses[0][1]
        await runner.cleanup()

    with in_thread(serving) as port:
        yield port


@dataclass
class Proxy:
    """A forward proxy on loopback, which alone knows where the names in `hosts` are: ports of 127.0.0.1."""

    hosts: dict[str, int]
    password: str | None = None
    """The user and the password that it asks for, as `user:password`."""
    asked: list[str] = field(default_factory=list)
    """The first line of each request."""
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a request for an address, or a tunnel."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self.forward(reader, writer)
        writer.close()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the head of a request, and pass on what follows."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        self.asked.append(line.decode())
        method, target, version = line.decode().split()
        login = base64.b64encode((self.password or "").encode())
        if self.password is not None and b"Basic " + login not in head:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            await writer.drain()
            return
        authority = target if method == "CONNECT" else target.split("/")[2]
        path = target.removeprefix(f"http://{authority}") or "/"
        port = self.hosts.get(authority.partition(":")[0])
        if port is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:  # a connection for each request keeps this simple
            back.write(f"{method} {path} {version}\r\nConnection: close\r\n".encode() + rest)
        await asyncio.gather(pump(reader, back), pump(there, writer))


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass bytes on until there are no more."""
    with suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


@contextmanager
def proxying(proxy: Proxy) -> Iterator[Proxy]:
    """Run a proxy until the block ends."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[int]:
        server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        server.close()

    with in_thread(serving) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy
