"""Google's own Python clients against `gcp-sim`: what they decode and believe is the judge of our answers.

Every answer of the JSON APIs that passes through googleapiclient is also held against the schemas of Google's discovery
documents, strictly: no property it does not know, no wrong type, int64 as strings.
"""

import base64
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ACCOUNT = "agent@dify-sim.iam.gserviceaccount.com"
STATE = {
    "instances": [{"name": "vm-1", "service_account": ACCOUNT, "attributes": {"dify-release": "1.17.1"}}],
    "secrets": {
        "db-password": "123456789",
        "old": [{"value": "a"}, {"value": "b", "state": "DISABLED"}],
    },
    "buckets": {"data": {"hello.txt": "hello"}},
    "anonymous_storage": True,
}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Strict:
    """Holds answers against a discovery document."""

    def __init__(self, document):
        self.schemas = document["schemas"]

    def errors(self, schema, value, at):
        if "$ref" in schema:
            return self.errors(self.schemas[schema["$ref"]], value, at)
        kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}
        kind = schema.get("type", "any")
        if kind == "any":
            return []
        if not isinstance(value, kinds[kind]):
            return [f"{at}: {value!r} is no {kind}"]
        if "enum" in schema and value not in schema["enum"]:
            return [f"{at}: {value!r} is none of {schema['enum']}"]
        if schema.get("format") in ("int64", "uint64") and not value.lstrip("-").isdigit():
            return [f"{at}: {value!r} is no {schema['format']} in a string"]
        found = []
        if kind == "array":
            for index, item in enumerate(value):
                found += self.errors(schema["items"], item, f"{at}[{index}]")
        if kind == "object":
            properties, others = schema.get("properties", {}), schema.get("additionalProperties")
            for key, item in value.items():
                if key in properties:
                    found += self.errors(properties[key], item, f"{at}.{key}")
                elif others is not None:
                    found += self.errors(others, item, f"{at}.{key}")
                else:
                    found.append(f"{at}.{key}: not in the discovery document")
        return found

    def hold(self, name, value):
        found = self.errors({"$ref": name}, value, name)
        assert not found, "\n".join(found)
        return value


def discovered(sim, name):
    """A googleapiclient service at the simulator, and the judge of its answers."""
    import googleapiclient.discovery
    import googleapiclient.discovery_cache
    from google.oauth2.credentials import Credentials

    folder = pathlib.Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    document = json.loads((folder / f"{name}.json").read_text())
    document["rootUrl"] = sim["urls"]["googleapis"] + "/"
    document["baseUrl"] = document["rootUrl"] + document.get("servicePath", "")
    document.pop("mtlsRootUrl", None)
    token = metadata(sim, "instance/service-accounts/default/token")
    credentials = Credentials(json.loads(token)["access_token"])
    service = googleapiclient.discovery.build_from_document(document, credentials=credentials)
    return service, Strict(document)


def metadata(sim, path):
    url = f"http://{sim['metadata_hosts']['vm-1']}/computeMetadata/v1/{path}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def refused(call, status):
    from googleapiclient.errors import HttpError

    try:
        call()
    except HttpError as error:
        assert error.resp.status == status, error
        return error
    raise AssertionError(f"{status} expected")


@check
def google_auth_finds_itself_on_a_vm(sim):
    """The root answers, then account, token, project and attributes."""
    from google.auth import compute_engine
    from google.auth.compute_engine import _metadata
    from google.auth.transport.requests import Request

    request = Request()
    assert _metadata.ping(request)
    assert _metadata.get_project_id(request) == "dify-sim"
    assert _metadata.get(request, "instance/attributes/dify-release") == "1.17.1"
    assert _metadata.get_universe_domain(request) == "googleapis.com"
    credentials = compute_engine.Credentials()
    credentials.refresh(request)
    assert credentials.service_account_email == ACCOUNT
    assert credentials.token and credentials.valid


@check
def google_auth_verifies_an_identity_token(sim):
    """As a server of ours would: signature by the key set, audience, expiry, address."""
    from google.auth import compute_engine, jwt
    from google.auth.transport.requests import Request
    from google.oauth2 import id_token

    request = Request()
    credentials = compute_engine.IDTokenCredentials(request, "vm-1", use_metadata_identity_endpoint=True)
    credentials.refresh(request)
    full = metadata(sim, "instance/service-accounts/default/identity?audience=vm-1&format=full")
    assert jwt.decode(full, verify=False)["email"] == ACCOUNT
    for token in (credentials.token, full):
        claims = id_token.verify_token(token, request, audience="vm-1", certs_url=sim["urls"]["certs"])
        assert claims["iss"] == "https://accounts.google.com"
    try:
        id_token.verify_token(full, request, audience="vm-2", certs_url=sim["urls"]["certs"])
    except Exception as error:
        assert "audience" in str(error).lower(), error
    else:
        raise AssertionError("a wrong audience passed")


@check
def a_service_account_key_gets_a_token(sim):
    """google-auth signs the assertion, our endpoint checks it."""
    from google.auth.transport.requests import Request
    from google.oauth2 import service_account

    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    credentials = service_account.Credentials.from_service_account_file(sim["key"], scopes=scopes)
    credentials.refresh(Request())
    assert credentials.token.startswith("ya29."), "no access token"
    audience = service_account.IDTokenCredentials.from_service_account_file(sim["key"], target_audience="vm-1")
    audience.refresh(Request())
    assert audience.valid


@check
def secret_manager_by_discovery(sim):
    """The whole life of a secret, every answer strict."""
    service, strict = discovered(sim, "secretmanager.v1")
    secrets = service.projects().secrets()
    name = "projects/dify-sim/secrets/db-password"
    read = strict.hold("AccessSecretVersionResponse", secrets.versions().access(name=f"{name}/versions/latest").execute())
    assert base64.b64decode(read["payload"]["data"]) == b"123456789"
    assert read["payload"]["dataCrc32c"] == "3808858755"
    error = refused(secrets.versions().access(name="projects/dify-sim/secrets/old/versions/latest").execute, 400)
    assert "is in DISABLED state" in str(error)
    refused(secrets.versions().access(name="projects/dify-sim/secrets/none/versions/1").execute, 404)
    refused(secrets.versions().access(name="projects/other/secrets/old/versions/1").execute, 403)

    body = {"replication": {"automatic": {}}, "labels": {"by": "check"}}
    made = strict.hold("Secret", secrets.create(parent="projects/dify-sim", secretId="new", body=body).execute())
    payload = {"payload": {"data": base64.b64encode(b"v").decode()}}
    added = strict.hold("SecretVersion", secrets.addVersion(parent=made["name"], body=payload).execute())
    for verb, state in (("disable", "DISABLED"), ("enable", "ENABLED"), ("destroy", "DESTROYED")):
        changed = getattr(secrets.versions(), verb)(name=added["name"], body={}).execute()
        assert strict.hold("SecretVersion", changed)["state"] == state
    strict.hold("ListSecretVersionsResponse", secrets.versions().list(parent=made["name"]).execute())
    assert strict.hold("ListSecretsResponse", secrets.list(parent="projects/dify-sim").execute())["totalSize"] == 3
    strict.hold("Empty", secrets.delete(name=made["name"]).execute())


@check
def secret_manager_by_its_own_client(sim):
    """google-cloud-secret-manager over its REST transport, which verifies nothing but decodes everything."""
    from google.auth import compute_engine
    from google.api_core import exceptions
    from google.cloud import secretmanager_v1
    from google.cloud.secretmanager_v1.services.secret_manager_service.transports import SecretManagerServiceRestTransport

    host = sim["urls"]["googleapis"].removeprefix("http://")
    transport = SecretManagerServiceRestTransport(host=host, url_scheme="http", credentials=compute_engine.Credentials())
    client = secretmanager_v1.SecretManagerServiceClient(transport=transport)
    read = client.access_secret_version(name="projects/dify-sim/secrets/db-password/versions/latest")
    assert (read.payload.data, read.payload.data_crc32c) == (b"123456789", 3808858755)
    for name, error in (("old/versions/2", exceptions.FailedPrecondition), ("none/versions/1", exceptions.NotFound)):
        try:
            client.access_secret_version(name=f"projects/dify-sim/secrets/{name}")
        except error:
            continue
        except exceptions.BadRequest as found:
            # 400 is FailedPrecondition or InvalidArgument: over REST the client tells them apart by nothing but the code.
            assert error is exceptions.FailedPrecondition and "DISABLED" in str(found), found
            continue
        raise AssertionError(f"{error} expected")


@check
def cloud_storage_by_discovery(sim):
    """Buckets and objects, every answer strict."""
    from googleapiclient.http import MediaIoBaseUpload

    service, strict = discovered(sim, "storage.v1")
    strict.hold("Bucket", service.buckets().get(bucket="data").execute())
    strict.hold("Bucket", service.buckets().insert(project="dify-sim", body={"name": "made"}).execute())
    strict.hold("Buckets", service.buckets().list(project="dify-sim").execute())
    media = lambda resumable: MediaIoBaseUpload(io.BytesIO(b"x" * 10), "text/plain", resumable=resumable)
    for resumable in (False, True):
        insert = service.objects().insert(bucket="made", name="a/b", body={"metadata": {"k": "v"}}, media_body=media(resumable))
        stored = strict.hold("Object", insert.execute())
        assert (stored["size"], stored["metadata"]) == ("10", {"k": "v"})
    insert = service.objects().insert(bucket="made", name="a/b", ifGenerationMatch="0", media_body=media(False))
    refused(insert.execute, 412)
    assert service.objects().get_media(bucket="made", object="a/b").execute() == b"x" * 10
    listed = strict.hold("Objects", service.objects().list(bucket="made", delimiter="/").execute())
    assert listed["prefixes"] == ["a/"]
    rewrite = service.objects().rewrite(sourceBucket="made", sourceObject="a/b", destinationBucket="made", destinationObject="c", body={})
    strict.hold("RewriteResponse", rewrite.execute())
    held = service.buckets().testIamPermissions(bucket="made", permissions=["storage.objects.get"]).execute()
    assert strict.hold("TestIamPermissionsResponse", held)["permissions"] == ["storage.objects.get"]
    for name in ("a/b", "c"):
        service.objects().delete(bucket="made", object=name).execute()
    service.buckets().delete(bucket="made").execute()
    refused(service.buckets().get(bucket="made").execute, 404)


def exercise(client):
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket = client.get_bucket("data")
    blob = bucket.blob("dir/file one.bin")
    data = bytes(range(256)) * 4096  # 1 MiB
    blob.upload_from_string(data, if_generation_match=0)
    try:
        bucket.blob("dir/file one.bin").upload_from_string(b"late", if_generation_match=0)
    except PreconditionFailed:
        pass
    else:
        raise AssertionError("the precondition did not hold us back")
    assert bucket.blob("dir/file one.bin").download_as_bytes(checksum="crc32c") == data
    assert bucket.blob("dir/file one.bin").download_as_bytes(start=5, end=9) == data[5:10]
    got = bucket.get_blob("dir/file one.bin")
    assert got.size == len(data) and got.generation == blob.generation
    # Chunks of a resumable upload, checked at the end.
    chunked = bucket.blob("dir/chunked", chunk_size=256 * 1024)
    chunked.upload_from_file(io.BytesIO(data + b"tail"), content_type="application/zip")
    assert bucket.blob("dir/chunked").download_as_bytes(checksum="md5") == data + b"tail"
    assert [blob.name for blob in client.list_blobs("data", prefix="dir/", page_size=1)] == ["dir/chunked", "dir/file one.bin"]
    copied = bucket.copy_blob(got, bucket, "copy")
    assert copied.crc32c == got.crc32c
    for name in ("dir/chunked", "dir/file one.bin", "copy"):
        bucket.delete_blob(name)
    assert bucket.get_blob("dir/chunked") is None
    try:
        bucket.delete_blob("dir/chunked")
    except NotFound:
        pass
    else:
        raise AssertionError("deleting what is not there must be 404")
    assert bucket.blob("hello.txt").download_as_text() == "hello"


@check
def cloud_storage_by_its_own_client_on_a_vm(sim):
    """google-cloud-storage with the VM's token."""
    from google.auth import compute_engine
    from google.cloud import storage

    options = {"api_endpoint": sim["urls"]["googleapis"]}
    exercise(storage.Client(project="dify-sim", credentials=compute_engine.Credentials(), client_options=options))


@check
def cloud_storage_by_its_own_client_as_an_emulator(sim):
    """google-cloud-storage by STORAGE_EMULATOR_HOST: without a bearer, as Dify's containers are pointed at us."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    os.environ["STORAGE_EMULATOR_HOST"] = sim["urls"]["googleapis"]
    try:
        exercise(storage.Client(project="dify-sim", credentials=AnonymousCredentials()))
    finally:
        del os.environ["STORAGE_EMULATOR_HOST"]


def main(program):
    with tempfile.TemporaryDirectory() as folder:
        state, key = pathlib.Path(folder, "state.json"), pathlib.Path(folder, "key.json")
        state.write_text(json.dumps(STATE))
        command = [program, "--state", state, "--listen", "127.0.0.1:0", "--key-for", ACCOUNT, "--key-file", key]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            sim = json.loads(server.stdout.readline())
            sim["key"] = str(key)
            host = sim["metadata_hosts"]["vm-1"]
            os.environ.update(GCE_METADATA_HOST=host, GCE_METADATA_IP=host, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
            failed = 0
            for function in CHECKS:
                try:
                    function(sim)
                    print(f"ok      {function.__name__}")
                except Exception as error:  # every check is tried
                    failed += 1
                    print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}")
                    if os.environ.get("TRACE"):
                        import traceback

                        traceback.print_exc()
            print(f"official clients: {len(CHECKS) - failed} of {len(CHECKS)} checks passed")
            return 1 if failed else 0
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
