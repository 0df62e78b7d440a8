"""Decide who is served, by lists of networks that are allowed or denied, and who is let past them.

Whoever is in ``deny`` is refused; where there is ``allow``, whoever is not in it is, too.

Certificate authorities validate from anywhere, so validations by ACME can be exempt. Whoever is
let past a list so must not be able to ask for anything else, of any server: hence the bounds of
``is_validation``.

Source: RFC 8737 section 3 (the hello offers acme-tls/1 alone, and has a name), RFC 8555 sections
8.1 (a token is base64url) and 8.3 (HTTP-01), RFC 9112 section 9.6 (nothing behind a request that
closes).
"""

import re
from dataclasses import dataclass

from snimux.proto.verdict import Hello
from snimux.routing.networks import Networks

_ACME_TLS = (b"acme-tls/1",)
_HTTP_01 = re.compile(r"/\.well-known/acme-challenge/[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Access:
    """The lists of a listener or a route that say whom it serves."""

    allow: Networks | None = None
    """None: everybody who is not denied."""
    deny: Networks | None = None
    acme_exempt: bool = False
    """Whether validations by ACME are served whoever asks."""

    def admits(self, host: str | None) -> bool:
        """Return whether a client is served, whatever it asks for.

        Args:
            host: its IP address in text; None for a UNIX socket.
        """
        if self.deny is not None and host in self.deny:
            return False
        return self.allow is None or host in self.allow

    def admits_for(self, host: str | None, hello: Hello, behind: int = 0) -> bool:
        """Return whether a client is served what its hello asks for.

        Args:
            host: as for ``admits``.
            hello: what it asks for.
            behind: how many bytes have come behind the hello.
        """
        return self.admits(host) or (self.acme_exempt and is_validation(hello, behind))


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules of a listener: whom it lets in, and whom it believes about who the client is."""

    access: Access = Access()
    proxy_from: Networks | None = None
    """Who begins with a PROXY protocol header, each time; None: nobody."""

    def denies(self, host: str | None) -> bool:
        """Return whether a client is refused whatever its hello will be: ``host`` is its address.

        Where ACME's validations are exempt, its hello is waited for.
        """
        return not (self.access.acme_exempt or self.access.admits(host))

    def believes(self, host: str | None) -> bool:
        """Return whether a connection from a host begins with a PROXY protocol header."""
        return self.proxy_from is not None and host in self.proxy_from


def is_validation(hello: Hello, behind: int = 0) -> bool:
    """Return whether a hello can be for nothing but a validation by ACME, TLS-ALPN-01 or HTTP-01.

    A request that any server may leave the connection open after is none, nor is one with bytes
    behind it: these could be another. What comes later is not looked at, nor is it served. Neither
    is a hello with Encrypted Client Hello: what the encrypted one offers is what counts (RFC 9849
    section 7), and who validates sends none.

    Args:
        hello: by ``peek``.
        behind: how many bytes have come behind it.
    """
    request = hello.request
    if request is None:
        return hello.alpn == _ACME_TLS and hello.name is not None and not hello.ech
    is_challenge = request.method == "GET" and _HTTP_01.fullmatch(request.target)
    return request.closes and not behind and bool(is_challenge)
