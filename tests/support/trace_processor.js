// Hosts Perfetto's trace processor under node, for perfetto.py.
//
//     node trace_processor.js <folder that holds engine_bundle.js and its wasm files>
//
// Prints the port that it listens on (loopback only) and speaks the HTTP endpoints that the PyPI
// client `perfetto` uses to load and query a trace, plus /import_error and /reset. Ends when its
// standard input does, so it never outlives the process that started it.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const vm = require('node:vm');

// From perfetto/protos/trace_processor/trace_processor.proto: the method and the fields of a
// TraceProcessorRpc that hold its arguments and its result.
const ENDPOINTS = {
  '/parse': { method: 1, argumentsField: 101, resultField: 201 },
  '/notify_eof': { method: 2, resultField: 212 },
  '/query': { method: 3, argumentsField: 103, resultField: 203 },
  '/status': { method: 10, resultField: 210 },
  '/reset': { method: 11 }, // forgets the trace; has no result
};
const RPC = { sequence: 1, request: 2, invalidRequest: 4, fatalError: 5 };
const STREAM_MESSAGE = 1; // a TraceProcessorRpcStream is nothing but repeated TraceProcessorRpc
const RESULT_ERROR = 2; // AppendTraceDataResult and QueryResult both carry their error here
const FINALIZE_ERROR = 1;

// Protobuf, as much of it as the envelope of these messages needs.

function varint(number) {
  const bytes = [];
  for (; number >= 128; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return Buffer.from([...bytes, number]);
}

const numberField = (field, number) => Buffer.concat([varint(field * 8), varint(number)]);
const bytesField = (field, bytes) =>
  Buffer.concat([varint(field * 8 + 2), varint(bytes.length), bytes]);

function* readFields(message) {
  let position = 0;
  function readVarint() {
    // Multiplied, not shifted: shifts are 32 bits wide and lengths may need more.
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = message[position++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }
  while (position < message.length) {
    const tag = readVarint();
    const field = Math.floor(tag / 8);
    if (tag % 8 === 0) {
      yield [field, readVarint()];
    } else if (tag % 8 === 2) {
      const length = readVarint();
      yield [field, message.subarray(position, (position += length))];
    } else {
      throw new Error(`field ${field} has wire type ${tag % 8}, which no envelope has`);
    }
  }
}

const fieldValues = (message, wanted) =>
  [...readFields(message)].filter(([field]) => field === wanted).map(([, value]) => value);

// The engine is a web worker's script: it is given the few things that it looks for in a worker's
// global scope, and no `process`, since it refuses to run where it recognises node.
function startEngine(folder) {
  class FileRequest {
    open(_method, url) {
      this.file = path.join(folder, path.basename(url));
    }
    send() {
      this.status = 200;
      this.response = fs.readFileSync(this.file);
    }
  }
  const scope = {
    self: { location: { href: 'http://localhost/' } }, // any URL will do: FileRequest wants its end
    process: undefined,
    console: new console.Console(process.stderr), // standard output is for the port
    importScripts() {},
    WorkerGlobalScope: class {},
    XMLHttpRequest: FileRequest,
  };
  const file = path.join(folder, 'engine_bundle.js');
  const script = vm.compileFunction(fs.readFileSync(file, 'utf8'), Object.keys(scope), {
    filename: file,
  });
  script(...Object.values(scope));

  let replies = [];
  const port = { postMessage: (bytes) => replies.push(bytes) };
  scope.self.onmessage({ data: port });
  // The engine answers within the call: its wasm runs on this thread.
  return (request) => {
    replies = [];
    port.onmessage({ data: request });
    return Buffer.concat(replies);
  };
}

function connect(engine) {
  let sequence = 0;
  return ({ method, argumentsField, resultField }, body) => {
    const request = [numberField(RPC.sequence, ++sequence), numberField(RPC.request, method)];
    if (argumentsField) request.push(bytesField(argumentsField, body));
    const messages = fieldValues(
      engine(bytesField(STREAM_MESSAGE, Buffer.concat(request))),
      STREAM_MESSAGE,
    );
    const results = [];
    for (const [field, value] of messages.flatMap((message) => [...readFields(message)])) {
      if (field === resultField) results.push(value);
      if (field === RPC.fatalError) throw new Error(value.toString());
      if (field === RPC.invalidRequest) throw new Error(`unknown method ${value}`);
    }
    if (resultField && !results.length) throw new Error(`no answer to method ${method}`);
    // Parts of a long result, one after another, are the whole message: that is protobuf's merge.
    return Buffer.concat(results);
  };
}

function serve(call) {
  let importError = '';
  function answer(url, body) {
    if (url === '/import_error') return Buffer.from(importError);
    if (url === '/reset') importError = '';
    try {
      const result = call(ENDPOINTS[url], body);
      // The client ignores this answer, yet only here does Perfetto reject a trace as a whole.
      if (url === '/notify_eof') importError = fieldValues(result, FINALIZE_ERROR).join();
      return result;
    } catch (error) {
      if (url === '/notify_eof') importError = error.stack;
      return bytesField(RESULT_ERROR, Buffer.from(error.stack));
    }
  }
  const server = http.createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const known = request.url in ENDPOINTS || request.url === '/import_error';
    response.statusCode = known ? 200 : 404;
    response.end(known ? answer(request.url, body) : '');
  });
  server.keepAliveTimeout = 0; // the client may pause for any time between two queries
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));
}

process.stdin.on('end', () => process.exit()).resume();
const call = connect(startEngine(path.resolve(process.argv[2])));
// The engine ends its start-up in promises, which have all run by the next turn of the event loop.
setImmediate(() => {
  call(ENDPOINTS['/status']);
  serve(call);
});
