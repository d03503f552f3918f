"""The sample configuration of an OpenTelemetry Collector is whole, and fits what firetrace sends.

The Collector itself has no package on PyPI or in Debian, so it is not run here. Its own word on the
file is ``otelcol-contrib validate``.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from firetrace.exporters.batches import BATCH_BYTES
from firetrace.exporters.otlp.sender import GRPC, HTTP, connect
from tests.conftest import SAMPLES

CONFIGURATION = SAMPLES / "collector.yaml"
KINDS = ("receivers", "processors", "exporters")
#: What a gRPC server takes in one request, unless told otherwise: backends and the Collector.
GRPC_BYTES = 4 * 2**20
VARIABLE = re.compile(r"\$\{env:(\w+)(?::-([^}]*))?\}")


def parse(text: str) -> dict[str, Any]:
    """The YAML that the sample needs, and no more: mappings, plain scalars, lists in one line.

    Raises:
        AssertionError: there is something else in it, or a key twice.
    """
    root: dict[str, Any] = {}
    open_ones: list[tuple[int, dict[str, Any]]] = [(-1, root)]  # by indentation
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"( *)([\w/]+):(?: +([^\s#].*))?", line)
        assert found, f"line {number} is not understood: {line}"
        indent, key, value = len(found[1]), found[2], found[3]
        while open_ones[-1][0] >= indent:
            open_ones.pop()
        parent = open_ones[-1][1]
        assert key not in parent, f"line {number}: {key} a second time"
        if value is None:
            parent[key] = {}
            open_ones.append((indent, parent[key]))
        else:
            parent[key] = scalar(value)
    return root


def scalar(text: str) -> Any:
    if text.startswith("["):
        assert text.endswith("]")
        return [each.strip() for each in text[1:-1].split(",")]
    assert not re.search(r"^[\"'&*!|>%@`{-]|: | #", text), f"no plain scalar: {text}"
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def expanded(value: Any, environment: dict[str, str]) -> Any:
    """A configuration as the Collector has it, with the variables that it takes from outside."""
    if isinstance(value, dict):
        return {key: expanded(each, environment) for key, each in value.items()}
    if isinstance(value, str):
        return VARIABLE.sub(lambda name: environment.get(name[1], name[2] or ""), value)
    return value


def configuration(**environment: str) -> dict[str, Any]:
    read: dict[str, Any] = expanded(parse(CONFIGURATION.read_text("utf-8")), environment)
    return read


def test_every_component_that_is_named_is_defined() -> None:
    """In the pipelines, among the extensions, and where the queue lies."""
    config = configuration()
    service = config["service"]
    assert set(config) == {*KINDS, "extensions", "service"}
    assert set(service["extensions"]) == set(config["extensions"])
    assert service["pipelines"]
    for pipeline in service["pipelines"].values():
        assert set(pipeline) == set(KINDS)
        for kind in KINDS:
            assert pipeline[kind]
            assert set(pipeline[kind]) <= set(config[kind])
    for exporter in config["exporters"].values():
        storage = exporter.get("sending_queue", {}).get("storage")
        assert storage is None or storage in service["extensions"]


@pytest.mark.parametrize(("protocol", "own"), [(GRPC, "grpc"), (HTTP, "http")])
def test_it_listens_where_firetrace_sends_by_default(protocol: str, own: str) -> None:
    """On this machine only, unless told an address; then on the same port of that."""
    transport = connect(protocol)
    sends_to = str(transport.exporter._endpoint)  # type: ignore[attr-defined]
    transport.close()
    address = sends_to.partition("://")[2].partition("/")[0] or sends_to
    protocols = configuration()["receivers"]["otlp"]["protocols"]
    assert protocols[own]["endpoint"] == address
    host, port = address.split(":")
    assert host == "localhost"
    protocols = configuration(COLLECTOR_HOST="10.0.0.5")["receivers"]["otlp"]["protocols"]
    assert protocols[own]["endpoint"] == f"10.0.0.5:{port}"


def test_what_comes_and_what_goes_is_of_a_size_that_is_taken() -> None:
    """Firetrace's batches by the Collector, the Collector's by a backend with the usual limit."""
    config = configuration()
    receiver = config["receivers"]["otlp"]["protocols"]["grpc"]
    assert receiver["max_recv_msg_size_mib"] * 2**20 > BATCH_BYTES
    queue = config["exporters"]["otlp"]["sending_queue"]
    batch = queue["batch"]
    assert queue["sizer"] == batch["sizer"] == "bytes"
    assert BATCH_BYTES < batch["max_size"] < GRPC_BYTES
    assert batch["min_size"] <= batch["max_size"] <= queue["queue_size"]


def test_what_is_acknowledged_is_not_thrown_away() -> None:
    """The queue is on disk, nothing stands in front of it that keeps spans, and it never gives up.

    A ``batch`` processor would acknowledge what it has in memory only, and drops it when the queue
    is full (opentelemetry-collector issue 12443).
    """
    config = configuration()
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"] == ["memory_limiter"]
        for name in pipeline["exporters"]:
            exporter = config["exporters"][name]
            assert exporter["sending_queue"]["storage"] == "file_storage"
            assert exporter["retry_on_failure"]["max_elapsed_time"] == 0


def test_what_comes_from_the_environment_is_explained() -> None:
    """Each variable at the head of the file; the backend's address is the only one to be set."""
    text = CONFIGURATION.read_text("utf-8")
    head, _, body = text.partition("\nreceivers:")
    body = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("#"))
    used = {found[1]: found[2] for found in VARIABLE.finditer(body)}
    assert set(re.findall(r"^#   (\w+)  ", head, re.MULTILINE)) == set(used)
    assert [name for name, default in used.items() if default is None] == ["BACKEND_ENDPOINT"]


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "a:\n  - b", "\ta: 1", "a: 'b'", "a: b # c", "a: {b: c}", "a: &b c", "a b"],
)
def test_other_yaml_is_not_guessed_at(text: str) -> None:
    """The reader of these tests says so where it does not understand."""
    with pytest.raises(AssertionError):
        parse(text)
