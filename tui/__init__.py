"""Shows what was recorded: the ``firetrace`` command, the report and the live app."""
