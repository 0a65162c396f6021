"""Reads event-stream frames from stdin with botocore's parser and tells them as JSON."""
import json
import sys

from botocore.eventstream import EventStreamBuffer


def plain(value):
    return value.hex() if isinstance(value, bytes) else value


buffer = EventStreamBuffer()
data = sys.stdin.buffer.read()
told = []
for at in range(0, len(data), 1000):
    buffer.add_data(data[at:at + 1000])
    for event in buffer:
        headers = {name: plain(value) for name, value in event.headers.items()}
        told.append({"headers": headers, "payload": event.payload.hex()})
json.dump(told, sys.stdout)
