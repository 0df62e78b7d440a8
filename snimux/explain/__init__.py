"""Say what becomes of one client, step by step, and why: ``snimux explain``.

``input`` makes a hello of a name, or of captured bytes (``capture``); ``foresee`` decides as a
connection does, and ``explain`` says why; ``compare`` holds it against a running snimux;
``render`` shows it.

Refuses to know: connections. Nothing is sent to the backend. Begin with ``explain``.
"""
