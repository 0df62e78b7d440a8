"""One canonical spelling of a host name, and the patterns that match it.

The canonical spelling is lower-case ASCII (A-labels for international names) without a trailing
dot. A pattern is a string too: ``a.example`` (exactly this name), ``*.example`` (one more label,
as in certificates and as Caddy does), ``**.example`` (one or more further labels) and ``*``
(every hello, with a name or without).

Knows nothing of TLS, DNS look-ups or routes.

Source: RFC 6066 section 3 (HostName), RFC 1035 section 2.3.4 (lengths), RFC 5890 (IDNA), RFC 6125
section 6.4.3 (wildcards).
"""

import re
from collections.abc import Iterator

import idna

ANY = "*"
"""The pattern that every hello matches, also one without a server name."""

# RFC 1035 section 2.3.4, less the length octets: what can be written of 255 octets on the wire.
MAX_NAME = 253

# Underscore is no host name by RFC 952, but names with one are asked for in the wild.
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}")


class HostnameError(ValueError):
    """A host name or pattern that cannot be one; the message says why."""


def from_wire(raw: bytes) -> str:
    """Return the canonical spelling of a HostName as it stands in a hello.

    Args:
        raw: the octets of the HostName, without their length.

    Returns:
        The name in lower case, without the trailing dot.

    Raises:
        HostnameError: it is empty, too long, an IP literal, or has octets that no name has.

    Source: RFC 6066 section 3: ASCII, no trailing dot, no IPv4 or IPv6 address. One trailing dot
    is tolerated, because clients send what was typed.
    """
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise HostnameError("not ASCII") from None
    return _canonical_ascii(text)


def from_user(text: str) -> str:
    """Return the canonical spelling of a host name as a person types it.

    Args:
        text: in Unicode or punycode, of any case.

    Raises:
        HostnameError: it cannot be a host name.
    """
    # Only labels that are not ASCII go through IDNA. The others are what hellos carry, whatever its
    # rules say of them: it refuses r3---sn.example (hyphens at the third place) and underscores.
    # Mapped as browsers do it, by UTS 46 without the transition from IDNA 2003: else straße.example
    # would be made strasse.example, whose owner may be somebody else. STD 3 is left to _NAME.
    if text.isascii():
        return _canonical_ascii(text)
    try:
        mapped = idna.uts46_remap(text, std3_rules=False)
        labels = [x if x.isascii() else idna.alabel(x).decode("ascii") for x in mapped.split(".")]
    except (idna.IDNAError, UnicodeError) as error:
        raise HostnameError(f"not a name by IDNA: {error}") from None
    return _canonical_ascii(".".join(labels))


def _canonical_ascii(text: str) -> str:
    name = text.lower().removesuffix(".")
    if not name:
        raise HostnameError("an empty name")
    if len(name) > MAX_NAME:
        raise HostnameError(f"longer than {MAX_NAME} characters")
    if not _NAME.fullmatch(name):
        raise HostnameError(_why_not_a_name(name))
    if _IPV4.fullmatch(name):
        raise HostnameError("an IP address, not a name")
    return name


def _why_not_a_name(name: str) -> str:
    if re.fullmatch(r"[^:]+:[0-9]{1,5}", name):
        return "has a port; a name has none"
    if ":" in name:
        return "an IP address or a port, not a name"
    strange = re.sub(r"[a-z0-9_.-]", "", name)
    if strange:
        return f"has {strange[0]!r}; a name has letters, digits, hyphens, underscores and dots"
    return "has an empty label, or one longer than 63 characters"


def pattern_from_user(text: str) -> str:
    """Return the canonical spelling of a host pattern as a person types it.

    Args:
        text: ``name``, ``*.name``, ``**.name`` or ``*``.

    Raises:
        HostnameError: it is no pattern.
    """
    if text in ("*", "**"):
        return ANY
    if text.startswith("."):
        raise HostnameError("begins with a dot; all names below one are **.name")
    if text.startswith("~"):
        raise HostnameError("no regular expressions: *.name, **.name or *")
    prefix = next((p for p in ("**.", "*.") if text.startswith(p)), "")
    name = text.removeprefix(prefix)
    if "*" in name:
        raise HostnameError("a * stands for whole labels at the front: *.name, **.name or *")
    return prefix + from_user(name)


def patterns_matching(name: str | None) -> Iterator[str]:
    """Yield every pattern that matches a canonical name, the most specific first.

    The name itself; ``*.`` and ``**.`` before its parent; ``**.`` before each further ancestor;
    ``*``. A hello without a name matches ``*`` alone.
    """
    if name is not None:
        yield name
        _, _, parent = name.partition(".")
        if parent:
            yield f"*.{parent}"
        while parent:
            yield f"**.{parent}"
            _, _, parent = parent.partition(".")
    yield ANY


def for_people(pattern: str) -> str:
    """Return the pattern in Unicode where it is international, else as it is."""
    labels = pattern.split(".")
    try:
        return ".".join(idna.ulabel(x) if x.startswith("xn--") else x for x in labels)
    except (idna.IDNAError, UnicodeError):
        return pattern
