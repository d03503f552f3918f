"""Exporters for other programs: plain span exporters of OpenTelemetry's SDK."""
