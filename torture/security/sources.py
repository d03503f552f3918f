"""Reads firetrace's sources for what must not be there: code of data, a shell, an open port."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from torture.result import Result

ROOT = Path(__file__).parents[2]
ROOMS = ("tracer", "exporters", "tui", "root")
#: What makes code of a text.
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
#: What makes objects of data that can run code, or talks to machines by itself.
MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml",
    "jsonpickle", "code", "codeop", "runpy", "ftplib", "smtplib", "telnetlib", "xmlrpc", "pdb",
}  # fmt: skip
METHODS = {
    "os": {"system", "popen", "spawnl", "spawnle", "spawnlp", "spawnv", "spawnve", "spawnvp"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell", "start_server", "start_unix_server"},
    "pty": {"spawn"}, "np": {"load", "fromfile"}, "numpy": {"load"}, "torch": {"load"},
    "tempfile": {"mktemp"},
}  # fmt: skip
#: Who may start or become a program, from a list of words and never through a shell: the relay, a
#: browser, and the program that ``firetrace run`` is asked for.
STARTS = {"Popen", "run", "call", "check_call", "check_output", "execv", "execve", "execvp",
          "execvpe", "posix_spawn", "posix_spawnp"}  # fmt: skip
STARTERS = {
    "tracer/relay.py": {"Popen"}, "exporters/perfetto.py": {"Popen"}, "tui/launch.py": {"execve"},
    "tui/child.py": {"Popen", "execve"},
}  # fmt: skip
#: Runs the ``sitecustomize`` that ours hides; ``site`` expects just that import's error.
IMPORTERS = {"tracer/startup/sitecustomize.py": "sitecustomize"}
#: Who may talk to a network: the exporter, where the user says.
CLIENTS = {"requests", "urllib3", "grpc", "http.client", "urllib.request", "aiohttp", "httpx"}
TALKERS = {"exporters/otlp/transport.py"}
#: Who may be asked from other hosts: the clock, 24 bytes for 32, by those who know its token.
ANSWERS = {"tracer/clock.py"}
LOOPBACK = ("127.0.0.1", "::1")
#: Each must be found fault with, or the check is blind.
BAD = (
    "eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "import pickle",
    "from marshal import loads", "import os; os.system(x)", "from os import popen",
    "import subprocess; subprocess.run(x)", "from subprocess import Popen\nPopen('ls', shell=True)",
    "import yaml; yaml.load(x)", "import numpy as np; np.load(x, allow_pickle=True)",
    "s.bind(('', 80))", "s.bind(('0.0.0.0', 80))", "s.bind((host, 80))", "HTTPServer(('', 1), H)",
    "class S(socketserver.TCPServer):\n def f(self):\n  super().__init__(('', 1), H)",
    "import requests", "from urllib import request", "import importlib; importlib.import_module(x)",
    "socket.create_server(('', 1))",
)  # fmt: skip


class Reader(ast.NodeVisitor):
    """What is wrong with one file."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.tree = name, tree
        self.calls = self.listeners = 0
        self.found: list[str] = []
        self.constants: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                self._learn(node.targets[0], node.value)
        self.visit(tree)

    def _learn(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each, of in zip(target.elts, value.elts, strict=False):
                self._learn(each, of)
        elif isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            self.constants[target.id] = str(value.value)

    def complain(self, node: ast.AST, what: str) -> None:
        """Take down what is wrong, and where."""
        self.found.append(f"{self.name}:{getattr(node, 'lineno', 0)}: {what}")

    def visit_Import(self, node: ast.Import) -> None:
        """``import a.b``."""
        for each in node.names:
            self._imported(node, each.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """``from a import b``."""
        module = node.module or ""
        self._imported(node, module)
        for each in node.names:
            if each.name in METHODS.get(module, ()):
                self.complain(node, f"{module}.{each.name}")
            self._imported(node, f"{module}.{each.name}")

    def _imported(self, node: ast.AST, module: str) -> None:
        if module.partition(".")[0] in MODULES:
            self.complain(node, f"import of {module}")
        parts = {module, module.partition(".")[0]}
        if parts & CLIENTS and self.name not in TALKERS:
            self.complain(node, f"import of {module}")

    def visit_Call(self, node: ast.Call) -> None:
        """A call of anything."""
        self.calls += 1
        self.generic_visit(node)
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        first = node.args[0] if node.args else None
        text = first.value if isinstance(first, ast.Constant) else None
        if not owner and name in CALLS and (
            name != "__import__" or text is None or IMPORTERS.get(self.name) != text
        ):  # fmt: skip
            self.complain(node, name)
        if name in METHODS.get(owner, ()):
            self.complain(node, f"{owner}.{name}")
        if name == "import_module" and not isinstance(text, str):
            self.complain(node, "import of a name that is no constant")
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle"):
                self.complain(node, f"{keyword.arg}=")
        if name in STARTS and owner in ("os", "subprocess", ""):
            if name not in STARTERS.get(self.name, ()) and (owner or name == "Popen"):
                self.complain(node, f"{name} in a file that is not known to start anything")
            if isinstance(first, (ast.JoinedStr, ast.Constant)):
                self.complain(node, f"{name} of a text")
        if (
            name in ("bind", "create_server")
            or name.endswith("Server")
            or (name == "__init__" and owner == "super()" and self._is_server(node))
        ):
            self._listens(node, first)

    def _is_server(self, call: ast.Call) -> bool:
        """Whether the call is in a class that is a server."""
        return any(
            call in ast.walk(each) and any("Server" in ast.unparse(base) for base in each.bases)
            for each in ast.walk(self.tree) if isinstance(each, ast.ClassDef)
        )  # fmt: skip

    def _listens(self, node: ast.Call, address: ast.expr | None) -> None:
        self.listeners += 1
        host = address.elts[0] if isinstance(address, ast.Tuple) and address.elts else None
        if isinstance(host, ast.Name):
            said = self.constants.get(host.id, "")
        else:
            said = str(host.value) if isinstance(host, ast.Constant) else ""
        if said not in LOOPBACK and self.name not in ANSWERS:
            self.complain(node, f"listens at {ast.unparse(address) if address else 'anything'}")


def read_all() -> Iterator[Reader]:
    """Every file of firetrace."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield Reader(str(path.relative_to(ROOT)), ast.parse(path.read_bytes()))


def hurt_sources() -> Iterator[Result]:
    """See the module."""
    result = Result("security", "calls in the sources")
    files = listeners = 0
    for reader in read_all():
        files += 1
        result.tried += reader.calls
        listeners += reader.listeners
        result.failures += reader.found
    for text in BAD:
        if not Reader("bad.py", ast.parse(text)).found:
            result.failures.append(f"the check is blind: {text!r}")
    if not listeners:
        result.failures.append("the check is blind: the page listens, and was not seen to")
    result.figures = f"{files} files; {listeners} listen, on loopback but for the clock"
    yield result
