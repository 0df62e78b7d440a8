"""The life of the processes: serve, reload, run workers, upgrade, answer systemd.

``server`` is one process that serves; ``supervisor`` has several as ``worker`` s; ``lifecycle``
has signals and the stages of an end; ``upgrade`` and ``handover`` pass sockets to a successor.

Refuses to know: bytes of connections, and flags. Begin with ``run``, and then ``server``.
"""
