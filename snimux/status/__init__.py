"""The metrics, API and page of a running snimux, and the client that reads them.

``metrics`` counts; ``api`` has the JSON pages, ``prometheus`` those for Prometheus, ``events`` the
live page; ``web`` serves pages to this machine alone; ``client`` reads them again.

Refuses to know: how a connection is served, and which process is asked. Begin with ``api``.
"""
