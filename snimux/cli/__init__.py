"""The command line: ``snimux`` and its commands.

``command`` has the group itself, which serves; each other command is a module, imported when it is
run. ``options`` has the flags that all share, ``usage`` the words for slips of the hand, ``ask``
what several commands ask of Caddys, backends and the host.

Refuses to know: how anything is done. Begin with ``command``.
"""


def main() -> None:
    """Run the command line: the entry point of the script ``snimux``."""
    from snimux.cli.command import main

    main()
