"""Makes a user with a key, a role and a function at moto (the endpoint is the argument), and tells the key."""
import io
import json
import sys
import zipfile

import boto3

endpoint = sys.argv[1]


def client(service, key="none", secret="none"):
    return boto3.client(service, endpoint_url=endpoint, region_name="eu-central-1",
                        aws_access_key_id=key, aws_secret_access_key=secret)


# These four are the calls that moto takes without looking at their signature.
iam = client("iam")
iam.create_user(UserName="gateway")
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
iam.put_user_policy(UserName="gateway", PolicyName="all", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="gateway")["AccessKey"]
trust = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
role = iam.create_role(RoleName="fn", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
code = io.BytesIO()
with zipfile.ZipFile(code, "w") as archive:
    archive.writestr("main.py", "def handler(event, context): return event\n")
client("lambda", key["AccessKeyId"], key["SecretAccessKey"]).create_function(
    FunctionName="app", Runtime="python3.11", Role=role, Handler="main.handler",
    Code={"ZipFile": code.getvalue()})
print(json.dumps({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}))
