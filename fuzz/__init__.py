"""Fuzzing: ``python -m fuzz``; ``make fuzz`` runs every target for a while.

What comes from the network and from people's files is read by a few functions; each has a target
here, which says what is true of them for all bytes whatever. A search looks for bytes for which it
is not: guided by what the bytes reach, with atheris, or by Hypothesis where atheris is not to be
had. What reached something new is kept in ``corpus``, and read again with the tests.

Reading order: ``target`` (what a target is), ``peeks`` (what is true of every peek),
``client_hello``, ``http_head``, ``proxy_header``, ``caddy``, ``config`` (the targets),
``mutation`` (how text and JSON are bent), ``targets`` (the list of them), ``guided`` and ``drawn``
(the two searches), ``minimise`` (what of their finds is worth keeping), ``__main__`` (argv and exit
status). Apart from these: ``tlsfuzzer`` (another's scripts, with and without snimux).
"""
