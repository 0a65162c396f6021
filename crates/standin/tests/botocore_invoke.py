"""Calls the Invoke API through botocore's own Lambda client and tells what came back as JSON.

Usage: botocore_invoke.py URL ACCESS_KEY SECRET_KEY TOKEN
"""
import json
import sys

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

url, access_key, secret_key, token = sys.argv[1:]
client = botocore.session.Session().create_client(
    "lambda",
    region_name="us-east-1",
    endpoint_url=url,
    aws_access_key_id=access_key,
    aws_secret_access_key=secret_key,
    aws_session_token=token,
    config=Config(retries={"max_attempts": 0}),
)


def told(answer):
    return {
        "status": answer["StatusCode"],
        "error": answer.get("FunctionError"),
        "version": answer.get("ExecutedVersion"),
        "log": answer.get("LogResult"),
        "payload": answer["Payload"].read().decode(),
    }


def streamed(name):
    answer = client.invoke_with_response_stream(FunctionName=name, Payload=b"{}")
    chunks, end = [], None
    for event in answer["EventStream"]:
        if "PayloadChunk" in event:
            chunks.append(event["PayloadChunk"]["Payload"].decode())
        if "InvokeComplete" in event:
            end = event["InvokeComplete"]
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return {
        "type": answer["ResponseStreamContentType"],
        "own_type": headers["x-amzn-remapped-content-type"],
        "chunks": chunks,
        "end": end,
    }


def refused(**call):
    try:
        client.invoke(**call)
    except ClientError as error:
        answer = error.response
        return [
            answer["ResponseMetadata"]["HTTPStatusCode"],
            answer["Error"]["Code"],
            answer.get("Reason"),
            answer.get("retryAfterSeconds"),
        ]


arn = "arn:aws:lambda:us-east-1:123456789012:function:echo"
results = {
    "echo": told(client.invoke(FunctionName="echo", Payload=b'{"a":"\xc3\xa9"}', LogType="Tail")),
    "arn": told(client.invoke(FunctionName=arn + ":live", Payload=b"1")),
    "qualified": told(client.invoke(FunctionName=arn, Qualifier="$LATEST", Payload=b"2")),
    "event": told(client.invoke(FunctionName="echo", InvocationType="Event", Payload=b"3")),
    "dry": told(client.invoke(FunctionName="crash", InvocationType="DryRun", Payload=b"4")),
    "fail": told(client.invoke(FunctionName="fail", Payload=b"5")),
    "crash": told(client.invoke(FunctionName="crash")),
    "throttled": refused(FunctionName="throttled"),
    "unknown": refused(FunctionName="unknown"),
    "not_json": refused(FunctionName="echo", Payload=b"{"),
    "contradicted": refused(FunctionName=arn + ":live", Qualifier="dev"),
    "stream": streamed("stream"),
    "stream_http": streamed("stream-http"),
    "stream_fail": streamed("stream-fail"),
}
try:
    streamed("stream-exception")
except EventStreamError as error:
    results["stream_exception"] = error.response["Error"]
json.dump(results, sys.stdout)
