"""Runs in MLflow's own environment: prints the spans of some traces, as its client reads them.

The tracking server is MLFLOW_TRACKING_URI, the traces' ids are the arguments; one JSON object a
span.
"""

from __future__ import annotations

import json
import sys

import mlflow  # type: ignore[import-not-found]  # not in the environment that is checked


def main() -> None:
    """Print the spans of each trace."""
    for trace_id in sys.argv[1:]:
        trace = mlflow.get_trace("tr-" + trace_id)
        for span in trace.data.spans if trace else ():
            read = {
                "trace": trace_id,
                "id": span.span_id,
                "parent": span.parent_id,
                "name": span.name,
                "start": span.start_time_ns,
                "end": span.end_time_ns,
                "status": span.status.status_code.value,
                "message": span.status.description,
                "attributes": span.attributes,
                "events": [
                    {"name": event.name, "time": event.timestamp, "attributes": event.attributes}
                    for event in span.events
                ],
                "links": [
                    [link.trace_id.removeprefix("tr-"), link.span_id, link.attributes]
                    for link in span.links
                ],
                "tags": trace.info.tags,
            }
            sys.stdout.write(json.dumps(read) + "\n")


if __name__ == "__main__":
    main()
