"""The command line as a whole: serve, or run one of the commands.

0: stopped as asked, or the check found nothing wrong. 1: could not start, or the check could not
ask a Caddy. 2: the flags or the configuration file are wrong; every problem has its line.

Each command is a module of its own, imported when it is run: workers need none of them.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import click

from snimux import __version__
from snimux.cli.options import configured, fail, options, read_file, sockets
from snimux.cli.usage import Group
from snimux.config.load import load
from snimux.runtime.filewatch import State, look
from snimux.service.handover import Handed, handed_to_worker
from snimux.service.reload import File
from snimux.service.run import StartError, handed_over, hold_signals, run, run_worker

_EPILOG = """\b
EXAMPLES
  Two Caddys on one host, each on a private port:
    snimux --route secure.ciso.com=127.0.0.1:8443 \\
           --route dao.ciso.com,traefik.ciso.com=127.0.0.1:8444
  Every name below ciso.com, and all else to a third:
    snimux --route '**.ciso.com=unix//run/caddy.sock' --default 127.0.0.1:8445
  A second address for when the first does not answer:
    snimux --route secure.ciso.com=10.0.0.1:443,10.0.0.2:443
  ACME's TLS-ALPN-01 challenges apart from the site's traffic:
    snimux --route secure.ciso.com/acme-tls/1=127.0.0.1:8449 \\
           --route secure.ciso.com=127.0.0.1:8443
  Whatever two Caddys serve, as they change:
    snimux --caddy localhost:2019 --caddy unix//run/caddy-dao/admin.sock
  From a file, on another port, after a look at what it says:
    snimux check --config /etc/snimux.toml
    snimux --config /etc/snimux.toml --listen :4443
  What is wrong with the Caddys of this host; and a file for snimux with them:
    snimux doctor
    snimux init --output /etc/snimux.toml

\b
ADDR
  host:port, [v6]:port or unix//path; to listen also :port and fd/N; for --caddy also file/path,
  the path of its autosave.json

\b
HOST
  name     this name            *.name   one more label, as in certificates
  **.name  one or more labels   *        every hello, what --default takes
  HOST/ALPN matches only hellos that offer the protocol, such as HOST/h2, and beats HOST.
  Exact beats longest suffix beats default.

\b
PORT 80
  Requests by plain HTTP go where a [[route]] of the file has http, or where a Caddy serves them;
  else they are redirected to https, but for those that validate certificates
  (/.well-known/acme-challenge/ and /.well-known/pki-validation/), which get 404.
  One connection goes to one server, that of its first request.

\b
SYSTEMD
  Listening sockets that are handed over (LISTEN_FDS) are instead of the default addresses, and of
  given ones that they cover: those named tls and http for that; of others those on port 80 for
  plain HTTP, and all else for TLS. NOTIFY_SOCKET is told READY, RELOADING, STATUS, STOPPING and
  WATCHDOG.

\b
SIGNALS
  TERM, INT  stop accepting, and drain; a second one closes what is still open; a
             third one kills workers that are stuck
  HUP        read the --config FILE again, and ask the Caddys: what is good is in effect
             at once for new connections, what is wrong changes nothing. A FILE that has
             changed is read again without it, but with --watch off
  USR2       start what is installed now, hand it the sockets, and drain without a limit
             as soon as it serves; if it does not, go on

\b
EXIT STATUS
  0 stopped as asked    1 could not start    2 wrong flags or configuration
"""


_COMMANDS = ("check", "doctor", "explain", "init", "top")


class _Commands(Group):
    """The commands, each in the module of its name, which is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"snimux.cli.{cmd_name}").command
        return command


@click.group(
    "snimux",
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar=f"[{'|'.join(_COMMANDS)}]",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@options
@click.version_option(__version__, message="snimux %(version)s")
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """One port 443, many servers behind it, no keys handed over.

    Reads the server name (and ALPN) of each TLS ClientHello and passes the connection, bytes
    untouched, to the server that has the name. Never decrypts anything.
    """
    context.obj = flags
    if context.invoked_subcommand is None:
        try:
            _serve(flags)
        except StartError as error:
            fail(1, str(error))


def _serve(flags: Mapping[str, Any]) -> None:
    """Serve as flags and file say, alone, by workers or as one of these, until told to stop."""
    hold_signals()
    inherited, manager = handed_over()
    worker = handed_to_worker(inherited.activated)
    handed = sockets(worker.activated() if worker else inherited.activated)
    name = flags["config"]
    state = _state(name) if name else None  # before it is read: a later change is another
    text = _handed_text(worker) if worker else read_file(name)
    config = configured(flags, text, handed)
    has_workers = config.workers != 1
    parse = partial(load, flags, name, activated=handed, has_workers=has_workers)
    file = None if text is None else File(name, text, parse, state)
    if worker:
        run_worker(config, file, worker)
    else:
        run(config, file, manager, inherited)


def _handed_text(worker: Handed) -> str | None:
    """Return the text of the configuration that a supervisor handed over, if any; or exit."""
    try:
        return worker.config_text()
    except (OSError, UnicodeError) as error:
        fail(1, f"LISTEN_FDNAMES: config: {getattr(error, 'strerror', None) or error}")


def _state(name: str) -> State | None:
    """Return how a file is; None if it cannot be looked at."""
    with contextlib.suppress(OSError):
        return look(name)
    return None
