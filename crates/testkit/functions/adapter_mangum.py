"""An ASGI application behind mangum: each line of stdin is an event, each line of stdout its answer.

It tells what it saw as JSON; at /binary it answers bytes that are no text.
"""
import json
import sys

from mangum import Mangum


async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    if scope["path"].endswith("/binary"):
        media, answer = b"image/png", bytes(range(256)) + body
    else:
        media = b"application/json"
        answer = json.dumps({
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "headers": headers,
            "client": list(scope.get("client") or []),
            "body": body.hex(),
        }).encode()
    await send({
        "type": "http.response.start",
        "status": 201,
        "headers": [
            (b"content-type", media),
            (b"set-cookie", b"a=1; Path=/"),
            (b"set-cookie", b"b=2; HttpOnly"),
            (b"x-adapter", b"mangum"),
        ],
    })
    await send({"type": "http.response.body", "body": answer})


class Context:
    """What Lambda hands a function beside its event."""

    aws_request_id = "an-id"
    function_name = "fn"

    @staticmethod
    def get_remaining_time_in_millis():
        return 3000


handler = Mangum(app, lifespan="off")
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), Context())), flush=True)
