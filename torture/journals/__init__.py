"""Journals that are damaged, huge, or made by a fuzzer."""
