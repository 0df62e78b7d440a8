"""Flags and a TOML file -> one frozen ``Config``, or every problem in words.

``settings`` has each key with its flag, unit and limits; ``from_flags`` and ``from_toml`` read one
source each; ``load`` puts both together and finds what contradicts itself.

Refuses to know: sockets, files, trio, and the command line's library. A new setting is a row in
``settings``, and a field in ``model``.
"""
