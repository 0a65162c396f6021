// A Node.js HTTP application behind serverless-http: each line of stdin is an event, each line of
// stdout its answer. It tells what it saw as JSON; at /binary it answers bytes that are no text.
const readline = require('readline');
const serverless = require('serverless-http');

function app(request, response) {
  const pieces = [];
  request.on('data', (piece) => pieces.push(Buffer.from(piece)));
  request.on('end', () => {
    const body = Buffer.concat(pieces);
    const [path, query] = request.url.split('?');
    response.statusCode = 201;
    response.setHeader('set-cookie', ['a=1; Path=/', 'b=2; HttpOnly']);
    response.setHeader('x-adapter', 'serverless-http');
    if (path.endsWith('/binary')) {
      response.setHeader('content-type', 'image/png');
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
      response.end(Buffer.concat([bytes, body]));
    } else {
      response.setHeader('content-type', 'application/json');
      const headers = Object.entries(request.headers).map(([name, value]) => [name, String(value)]);
      const seen = { method: request.method, path, query: query || '', headers, client: [], body: body.toString('hex') };
      response.end(JSON.stringify(seen));
    }
  });
}

const handler = serverless(app, { binary: ['image/*'] });
exports.handler = handler;

if (require.main === module) {
  (async () => {
    for await (const line of readline.createInterface({ input: process.stdin })) {
      process.stdout.write(JSON.stringify(await handler(JSON.parse(line), {})) + '\n');
    }
  })();
}
