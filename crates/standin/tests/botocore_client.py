"""Calls the function-URL front with requests that botocore signs, and with spoilt ones.

Usage: botocore_client.py URL ACCESS_KEY SECRET_KEY
"""
import http.client
import sys
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

url, access_key, secret_key = sys.argv[1:]


def call(method, target, body, headers, spoil):
    request = AWSRequest(method=method, url=url + target, data=body, headers=headers)
    SigV4Auth(Credentials(access_key, secret_key), "lambda", "us-east-1").add_auth(request)
    if spoil:
        text = request.headers["Authorization"]
        last = "0" if text[-1] != "0" else "1"
        request.headers.replace_header("Authorization", text[:-1] + last)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, target, body, dict(request.headers.items()))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


accepted = refused = 0
for method, target, body, headers in [
    ("GET", "/", b"", {}),
    ("GET", "/default/fn?name=APISIX", b"", {}),
    ("GET", "/a%2Fb/%C3%A9/~x/?a=1&b=%20%2B&c=", b"", {}),
    ("GET", "/a:b@c/", b"", {}),
    ("POST", "/fn", b'{"name":"x"}', {"Content-Type": "application/json"}),
    ("PUT", "/fn", bytes(range(256)) * 300, {"X-Amz-Meta": "  a   b "}),
    ("DELETE", "/fn//x/", b"", {}),
    ("POST", "/2015-03-31/functions/arn%3Aaws%3Alambda/invocations", b"{}", {}),
]:
    for spoil in (False, True):
        status, text = call(method, target, body, headers, spoil)
        accepted += status == 200
        refused += status == 403
        if status != (403 if spoil else 200):
            print(method, target, status, text)
print("accepted %d, refused %d" % (accepted, refused))
