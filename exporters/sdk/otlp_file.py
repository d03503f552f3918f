"""OTLP JSON Lines of any program's spans.

``FIRETRACE_OTLP_FILE=trace.jsonl OTEL_TRACES_EXPORTER=firetrace_otlp_file`` makes any program that
OpenTelemetry instruments write them.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan

from firetrace.exporters.otlp.encoding import otlp_json_line
from firetrace.exporters.sdk.span_file import FileSpanExporter

#: A Collector's file receiver breaks lines over 1 MiB.
LINE_BYTES = 900_000


class OtlpFileExporter(FileSpanExporter):
    """Writes spans as JSON lines, one ``TracesData`` for each batch.

    Without ``path`` the file is that of ``FIRETRACE_OTLP_FILE``, else
    ``trace-<service or script>-<pid>.jsonl``; see ``FileSpanExporter``.
    """

    VARIABLE, SUFFIX = "FIRETRACE_OTLP_FILE", ".jsonl"

    def _lines(self, spans: Sequence[ReadableSpan]) -> list[bytes]:
        if not spans:
            return []
        try:
            line = otlp_json_line(spans)
            if len(line) > LINE_BYTES and len(spans) > 1:
                middle = len(spans) // 2
                return self._lines(spans[:middle]) + self._lines(spans[middle:])
            return [line]
        except Exception as error:  # a name that is no UTF-8, say: it costs its own span only
            lines = []
            for span in spans:
                try:
                    lines.append(otlp_json_line([span]))
                except Exception:
                    self._warn(error)
            return lines
