"""Disks that are full, failing, read-only, gone; and journals that change under their readers."""
