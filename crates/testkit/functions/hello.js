// A function for Google's Functions Framework: says what it saw. Prints its address when it listens.
const functions = require('@google-cloud/functions-framework');
const {getTestServer} = require('@google-cloud/functions-framework/testing');

functions.http('hello', (request, response) => {
  response.set('X-Function', 'node');
  if (request.path.endsWith('/fail')) {
    response.status(500).json({error: 'asked to'});
    return;
  }
  response.append('Set-Cookie', ['a=1', 'b=2']);
  response.status(201).json({
    method: request.method,
    path: request.path,
    query: new URL(request.originalUrl, 'http://function').search.slice(1),
    headers: request.headers,
    body: request.rawBody ? request.rawBody.toString() : '',
  });
});

const server = getTestServer('hello').listen(0, '127.0.0.1', () => {
  console.log(`127.0.0.1:${server.address().port}`);
});
