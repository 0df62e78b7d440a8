"""Faults that are made on purpose, with real processes: ``python -m faults`` says what was lost.

Reading order: `found` has what a fault comes to; `server` and `client` are the two ends, `network`
has namespaces with a path between them that is as bad as asked for, and `bed` all of it; then a
file for each fault, and `catalogue`, which lists them.
"""
