"""Ask for a name at a port of 127.0.0.1 as a browser would, and say what came of it.

It knows nothing of snimux: httpx and OpenSSL check the certificate for the name, against one root
and no other.
"""

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx


@dataclass(frozen=True, slots=True)
class Answer:
    """A response over a connection whose certificate was right for the name."""

    protocol: str  # HTTP/1.1 or HTTP/2
    body: str
    names: tuple[str, ...]  # of the certificate: its subject alternative names
    issuer: str
    seconds: float  # from connect to the last byte


@dataclass(frozen=True, slots=True)
class Failure:
    """No response: the TLS library's own word for the reason, where it has one."""

    reason: str
    seconds: float


async def ask(name: str, port: int, root: Path, *, http2: bool) -> Answer | Failure:
    """Get ``https://name/`` from 127.0.0.1, without a look at resolvers or proxy settings.

    Args:
        name: the server name, in the ClientHello and in the request.
        port: where to connect to.
        root: the only certificate authority to trust, as PEM.
        http2: offer h2 besides HTTP/1.1.
    """
    start = time.perf_counter()
    try:
        context = ssl.create_default_context(cafile=root)
        start = time.perf_counter()
        async with (
            httpx.AsyncClient(verify=context, http2=http2, trust_env=False, timeout=5) as client,
            client.stream(
                "GET",
                f"https://127.0.0.1:{port}/",
                headers={"host": name},
                extensions={"sni_hostname": name},  # what the certificate is checked for, too
            ) as response,
        ):
            body = (await response.aread()).decode(errors="replace")
            stream = response.extensions["network_stream"]
            names, issuer = _certificate(stream.get_extra_info("ssl_object"))
            seconds = time.perf_counter() - start
            return Answer(response.http_version, body, names, issuer, seconds)
    except (httpx.RequestError, OSError) as error:
        return Failure(_reason(error), time.perf_counter() - start)


def _certificate(tls: ssl.SSLObject) -> tuple[tuple[str, ...], str]:
    """The names and the issuer's common name of the certificate that the server showed."""
    certificate = tls.getpeercert()
    assert certificate is not None
    names = cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ()))
    issuer = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate["issuer"])
    return tuple(name for _, name in names), dict(pair for part in issuer for pair in part).get(
        "commonName", "?"
    )


def _reason(error: BaseException) -> str:
    """OpenSSL's reason, which httpx buries under its own errors; else what httpx says."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason
    return str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
