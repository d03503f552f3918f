"""Measures firetrace against its peers (``make bench``; ``python -m bench --help`` explains).

No test asserts a time. A time alone says little about another machine, so everything here is a
ratio to a peer that is measured beside it, in the same run.
"""
