"""Real readers for what firetrace writes: Perfetto's trace processor and OTLP receivers."""
