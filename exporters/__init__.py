"""Hands on what was recorded: OpenTelemetry spans, OTLP, Chrome trace JSON."""
