"""The report as one HTML file that needs nothing else: ``firetrace report --html FILE``."""
