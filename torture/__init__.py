"""Does to firetrace what may happen to it, and worse, and counts what went wrong: ``make torture``.

A subject a file; each gives ``Result`` s. What must hold is said once, in ``checks.py``.
"""
