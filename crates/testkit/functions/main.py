"""A function for Google's Functions Framework: says what it saw."""

import flask
import functions_framework


@functions_framework.http
def hello(request):
    if request.path.endswith("/fail"):
        return {"error": "asked to"}, 500, {"X-Function": "python"}
    saw = {
        "method": request.method,
        "path": request.path,
        "query": request.query_string.decode(),
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "body": request.get_data(as_text=True),
    }
    answer = flask.jsonify(saw)
    answer.status_code = 201
    answer.headers["X-Function"] = "python"
    answer.headers.add("Set-Cookie", "a=1")
    answer.headers.add("Set-Cookie", "b=2")
    return answer
