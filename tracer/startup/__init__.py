"""The folder that ``firetrace run`` puts in front of ``PYTHONPATH``."""
