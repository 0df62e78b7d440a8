"""Shake hands with a backend as a client would, to see the certificate that it shows for a name.

What it shows is read, and not judged: whether anybody trusts its issuer is the clients' affair.
Nothing is asked for over the connection.

Source: RFC 8446 (TLS 1.3); RFC 5280 section 4.2.1.6 (subject alternative names).
"""

import ssl

import trio

from snimux.doctor.facts import Certificate, Down, NoHandshake, Outcome, Unread
from snimux.extras import install
from snimux.net.dial import NotDialled, dial
from snimux.net.loop import NOWHERE, Own
from snimux.proto.proxy_header import Version, build
from snimux.routing.address import DialAddress


async def certificate(
    name: str,
    address: DialAddress,
    *,
    proxy: Version | None,
    within: float,
    own: Own = NOWHERE,
) -> Outcome:
    """Return what an address shows for a name.

    Args:
        name: the server name of the hello.
        address: where to connect to.
        proxy: the PROXY protocol header that goes first, if any; it names no client.
        within: seconds that all of it may take.
        own: what the address must not lead to.

    Returns:
        The certificate, or why there is none. Raises nothing but ``trio.Cancelled``.
    """
    dialled = None
    with trio.move_on_after(within):
        dialled = await dial(address, dial_timeout=within, own=own)
        if isinstance(dialled, NotDialled):
            return Down(dialled.detail.removeprefix(f"{address}: "))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(dialled.socket))
        try:
            return _read(
                await _shake_hands(stream, name, build(proxy, None, None) if proxy else b"")
            )
        except trio.BrokenResourceError as error:
            return NoHandshake(_reason(error))
        except ValueError:
            return NoHandshake("OpenSSL takes no such name")
        finally:
            await trio.aclose_forcefully(stream)
    return NoHandshake(f"not over in {within:g} s") if dialled else Down(f"none in {within:g} s")


async def _shake_hands(stream: trio.SocketStream, name: str, first: bytes) -> bytes:
    """The certificate in DER."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    tls = trio.SSLStream(stream, context, server_hostname=name)
    await stream.send_all(first)
    await tls.do_handshake()
    der = tls.getpeercert(binary_form=True)
    assert isinstance(der, bytes)
    return der


def _reason(error: trio.BrokenResourceError) -> str:
    """OpenSSL's word, where it has one."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return "the connection ends in the middle of it"
    return (cause.reason or str(cause)).lower().replace("_", " ")


def _read(der: bytes) -> Certificate | Unread:
    try:
        from cryptography import x509
    except ImportError:
        return Unread("no cryptography here", install("cryptography"))
    try:
        read = x509.load_der_x509_certificate(der)
        extension = read.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        return Unread(f"not a certificate by X.509: {error}")
    return Certificate(
        tuple(name.lower() for name in names),
        read.not_valid_before_utc.timestamp(),
        read.not_valid_after_utc.timestamp(),
    )
