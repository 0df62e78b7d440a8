"""Was each answer the right one, and how does a person get to see that.

Decisions and text only: nothing here starts a process or opens a connection.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.before import Before
from demo.client import Answer, Failure
from demo.doctor import Finding
from demo.processes import Caddy, Snimux


@dataclass(frozen=True, slots=True)
class Row:
    """One question, whose answer it should be (None: nobody's), and what came."""

    name: str
    protocol: str
    caddy: Caddy | None
    result: Answer | Failure

    def problem(self) -> str | None:
        """What is wrong with the result, if anything."""
        match self.result:
            case Failure(reason):
                if self.caddy is None and reason.endswith("UNRECOGNIZED_NAME"):
                    return None
                wanted = "an answer" if self.caddy else "the alert unrecognized_name"
                return f"{reason} instead of {wanted}"
            case Answer() if self.caddy is None:
                return f"an answer, {self.result.body!r}, instead of the alert unrecognized_name"
            case Answer(protocol, body, names):
                # That the issuer is this Caddy's own CA, the client has checked against its root.
                right = f"{self.name}: {self.caddy.program.title}, port {self.caddy.port}"
                pairs = ((protocol, self.protocol), (body, right), (names, (self.name,)))
                wrong = [f"{got!r} instead of {wanted!r}" for got, wanted in pairs if got != wanted]
                return "; ".join(wrong) or None

    def cells(self) -> tuple[Text, ...]:
        """The row as it is shown."""
        match self.result:
            case Failure(reason):
                found = (self.protocol, "nobody", reason)
            case Answer(protocol, body, names, issuer):
                who = body.removeprefix(f"{self.name}: ")
                found = (protocol, who, f"{', '.join(names)} by {issuer}")
        time = f"{self.result.seconds * 1000:.1f}"
        wrong = self.problem() is not None
        verdict = Text("WRONG" if wrong else "ok", style="bold red" if wrong else "bold green")
        # As Text, because strings would have their square brackets taken for markup.
        return (*map(Text, (self.name, *found, time)), verdict)


def show_before(console: Console, before: Before) -> None:
    """Show how it is without snimux."""
    console.rule("Before: two Caddys, each with a Caddyfile that knows of no other")
    well = before.asked - before.failed
    console.print(
        f"Both started without a word, on the same port {before.port}. Of {before.asked} requests"
        f" [bold red]{before.failed} failed[/], {well} got through.",
        highlight=False,
    )
    console.print("`snimux doctor` says, with the lines that mend it; here without:")
    _show_findings(console, [x for x in before.findings if x.colour == "red"])
    console.print()


def _show_findings(console: Console, findings: Sequence[Finding]) -> None:
    marks = {"red": "BAD ", "yellow": "warn", "green": "ok  "}
    for finding in findings:
        # The Caddyfiles are those of this directory.
        title = finding.title.replace(f"{Path.cwd()}/", "")
        line = Text(f"  {marks[finding.colour]} {title}")
        line.stylize(f"bold {finding.colour}", 2, 6)
        console.print(line)


def show_introduction(console: Console, caddys: Sequence[Caddy], snimux: Snimux) -> None:
    """Show what runs where."""
    console.rule("After: snimux in front of both")
    parts = [
        f"the {caddy.program.title} has {' and '.join(caddy.names)} on port {caddy.port}"
        for caddy in caddys
    ]
    console.print(
        f"Two Caddys run on this host: {', '.join(parts)}. Each has a Caddyfile and a CA of its own"
        " and knows nothing of the other. In front of both, snimux listens on"
        f" 127.0.0.1:{snimux.port}. It has no key and no certificate: TLS is between the client and"
        " the Caddy that has the name.\n",
        highlight=False,
    )


def show(console: Console, rows: Sequence[Row], snimux: Snimux, findings: Sequence[Finding]) -> int:
    """Show all rows, what is wrong with them, and how to do the same; return the exit status."""
    console.print(_table(rows), "")
    console.print("`snimux doctor` says:")
    _show_findings(console, findings)
    console.print()
    problems = {row: problem for row in rows if (problem := row.problem())}
    for row, problem in problems.items():
        console.print(f"WRONG: {row.name}, {row.protocol}: {problem}", style="red", markup=False)
    if problems:
        # Those who had a part in it, each once.
        programs = [snimux.program, *(row.caddy.program for row in problems if row.caddy)]
        for program in dict.fromkeys(programs):
            console.out(program.tail(), highlight=False)
    console.print("The same on port 443, by hand:")
    flags = [f"--route {shlex.quote(route)}" for route in snimux.routes]
    console.out("snimux " + " \\\n       ".join(flags), highlight=False)
    return 1 if problems or any(x.colour != "green" for x in findings) else 0


def show_lines_to_try(console: Console, caddys: Sequence[Caddy], snimux: Snimux) -> None:
    """Show a page to watch, a shell command for every name, and one for a name nobody has."""
    console.print("\nAll of it keeps running until Ctrl-C. To watch, in a browser:")
    console.out(f"http://127.0.0.1:{snimux.status_port}/", highlight=False)
    console.print("To try:")
    at = f"127.0.0.1:{snimux.port}"
    for caddy in caddys:
        curl = f"curl --cacert {shlex.quote(str(caddy.root))} --connect-to ::{at}"
        for name in caddy.names:
            console.out(f"{curl} https://{name}/", highlight=False)
    openssl = f"openssl s_client -connect {at} -servername unknown.ciso.com </dev/null"
    console.out(openssl, highlight=False)


def _table(rows: Sequence[Row]) -> Table:
    # No edges: 80 columns are just enough without them.
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    for title in ("name", "protocol"):
        table.add_column(title, no_wrap=True)
    for title in ("answered by", "certificate, or alert"):
        table.add_column(title, overflow="fold")
    table.add_column("ms", justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(*row.cells())
    return table
