"""Say what is wrong on this host for several Caddys behind one port, and the lines that mend it.

``host``, ``facts`` and ``certificate`` look; ``ports``, ``caddys`` and ``backends`` judge, each a
part; ``caddyfile`` writes the lines; ``render`` shows them.

Refuses to know: the inside of a running snimux. Everything is observed from outside. Begin with
``examine``.
"""
