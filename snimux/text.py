"""Cut, spell out and list what others wrote, so that it may stand in a line. Pure."""

from collections.abc import Iterable


def cut(text: str, most: int, end: str = "...") -> str:
    """Return a text of at most ``most`` characters; where it was cut, it ends in ``end``."""
    return text if len(text) <= most else f"{text[: max(most - len(end), 0)]}{end}"[:most]


def brief(text: str, most: int = 120) -> str:
    """Return what somebody else wrote, so short and plain that it can stand in a line."""
    return cut(text if text and text.isprintable() else repr(text), most)


def plain(text: str, *, ascii_only: bool = False) -> str:
    """Spell out what is not printable, so that nothing in a text acts on a terminal.

    Args:
        text: what others wrote: names, paths, certificates.
        ascii_only: spell out all but ASCII, too: each character is one column wide then.
    """
    if text.isprintable() and (text.isascii() or not ascii_only):
        return text
    is_plain = str.isprintable if not ascii_only else lambda x: x.isascii() and x.isprintable()
    return "".join(x if is_plain(x) else ascii(x)[1:-1] for x in text)


def listed(words: Iterable[str], most: int = 6) -> str:
    """Return the first of some words, each once, and how many more there are."""
    words = list(dict.fromkeys(words))
    more = [f"and {len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])
