//! Cloud Storage's JSON API (`storage/v1`), and of its XML API the reading of objects.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    Bucket, Storage,
    access::{self, Access, Conditions},
    list, media,
    object::Object,
    upload,
};
use crate::{
    clock::rfc3339,
    locked,
    wire::{self, Call, Reply},
};

type Outcome = Result<Reply, Box<Reply>>;

pub(super) fn answer(storage: &Storage, call: &Call, access: &Access<'_>) -> Outcome {
    let parts = call.parts();
    match (call.method.as_str(), parts.as_slice()) {
        ("GET", ["storage", "v1", "b"]) => list_buckets(storage, call, access),
        ("POST", ["storage", "v1", "b"]) => insert_bucket(storage, call, access),
        ("GET", ["storage", "v1", "b", bucket]) => {
            access.require("storage.buckets.get")?;
            let mut state = locked(&storage.state);
            ok(&state.bucket(bucket)?.resource(storage, &call.origin(), bucket))
        }
        ("DELETE", ["storage", "v1", "b", bucket]) => delete_bucket(storage, access, bucket),
        ("GET", ["storage", "v1", "b", bucket, "iam", "testPermissions"]) => {
            test_permissions(storage, call, access, bucket)
        }
        ("GET", ["storage", "v1", "b", bucket, "o"]) => {
            access.require("storage.objects.list")?;
            let mut state = locked(&storage.state);
            ok(&list::objects(call, bucket, state.bucket(bucket)?)?)
        }
        ("GET", ["storage", "v1", "b", bucket, "o", object]) => {
            read(storage, call, access, bucket, object, call.query("alt") == Some("media"))
        }
        ("GET", ["download", "storage", "v1", "b", bucket, "o", object]) => {
            read(storage, call, access, bucket, object, true)
        }
        ("PATCH", ["storage", "v1", "b", bucket, "o", object]) => {
            patch_object(storage, call, access, bucket, object)
        }
        ("DELETE", ["storage", "v1", "b", bucket, "o", object]) => {
            delete_object(storage, call, access, bucket, object)
        }
        (
            "POST",
            [
                "storage",
                "v1",
                "b",
                from,
                "o",
                source,
                verb @ ("rewriteTo" | "copyTo"),
                "b",
                to,
                "o",
                target,
            ],
        ) => copy(storage, call, access, (from, source), (to, target), *verb == "rewriteTo"),
        (_, ["upload", "storage", "v1", "b", bucket, "o"]) => {
            upload::answer(storage, call, access, bucket)
        }
        (_, ["storage" | "upload" | "download" | "batch", ..]) => {
            Err(Box::new(wire::storage_error(StatusCode::NOT_FOUND, "notFound", "Not Found", None)))
        }
        ("GET" | "HEAD", [bucket, _, ..]) => Ok(read_xml(storage, call, access, bucket)),
        _ => Err(Box::new(wire::storage_error(
            StatusCode::METHOD_NOT_ALLOWED,
            "methodNotAllowed",
            "Method Not Allowed",
            None,
        ))),
    }
}

fn list_buckets(storage: &Storage, call: &Call, access: &Access<'_>) -> Outcome {
    access.require("storage.buckets.list")?;
    let state = locked(&storage.state);
    let items: Vec<_> = state
        .buckets
        .iter()
        .map(|(name, bucket)| bucket.resource(storage, &call.origin(), name))
        .collect();
    let mut answer = json!({ "kind": "storage#buckets" });
    if !items.is_empty() {
        answer["items"] = items.into();
    }
    ok(&answer)
}

fn insert_bucket(storage: &Storage, call: &Call, access: &Access<'_>) -> Outcome {
    access.require("storage.buckets.create")?;
    let body = call.json().ok_or_else(|| access::invalid("Parse Error"))?;
    let Some(name) = body["name"].as_str().filter(|name| !name.is_empty()) else {
        let text = "Required parameter: name";
        return Err(Box::new(wire::storage_error(StatusCode::BAD_REQUEST, "required", text, None)));
    };
    let mut state = locked(&storage.state);
    if state.buckets.contains_key(name) {
        let text =
            "Your previous request to create the named bucket succeeded and you already own it.";
        return Err(Box::new(wire::storage_error(StatusCode::CONFLICT, "conflict", text, None)));
    }
    let mut bucket = Bucket::new(storage.clock.now());
    if let Some(location) = body["location"].as_str() {
        bucket.location = location.to_ascii_uppercase();
    }
    if let Some(class) = body["storageClass"].as_str() {
        class.clone_into(&mut bucket.storage_class);
    }
    let resource = bucket.resource(storage, &call.origin(), name);
    state.buckets.insert(name.to_owned(), bucket);
    ok(&resource)
}

fn delete_bucket(storage: &Storage, access: &Access<'_>, name: &str) -> Outcome {
    access.require("storage.buckets.delete")?;
    let mut state = locked(&storage.state);
    if !state.bucket(name)?.objects.is_empty() {
        let text = "The bucket you tried to delete is not empty.";
        return Err(Box::new(wire::storage_error(StatusCode::CONFLICT, "conflict", text, None)));
    }
    state.buckets.remove(name);
    Ok(wire::no_content())
}

fn test_permissions(storage: &Storage, call: &Call, access: &Access<'_>, bucket: &str) -> Outcome {
    locked(&storage.state).bucket(bucket)?;
    let held: Vec<_> =
        call.all("permissions").filter(|permission| access.may(permission)).collect();
    let mut answer = json!({ "kind": "storage#testIamPermissionsResponse" });
    if !held.is_empty() {
        answer["permissions"] = json!(held);
    }
    ok(&answer)
}

fn read(
    storage: &Storage,
    call: &Call,
    access: &Access<'_>,
    bucket: &str,
    name: &str,
    as_media: bool,
) -> Outcome {
    access.require("storage.objects.get")?;
    let mut state = locked(&storage.state);
    let object = live(state.bucket(bucket)?, call, access, bucket, name)?;
    Conditions::of(call).check_read(object)?;
    if as_media {
        Ok(media::reply(call, object))
    } else {
        ok(&object.resource(&call.origin(), bucket, name))
    }
}

fn patch_object(
    storage: &Storage,
    call: &Call,
    access: &Access<'_>,
    bucket: &str,
    name: &str,
) -> Outcome {
    access.require("storage.objects.update")?;
    let patch = body_fields(call)?;
    let mut state = locked(&storage.state);
    let object = live(state.bucket(bucket)?, call, access, bucket, name)?;
    Conditions::of(call).check(Some(object))?;
    object.patch(&patch, storage.clock.now());
    ok(&object.resource(&call.origin(), bucket, name))
}

fn delete_object(
    storage: &Storage,
    call: &Call,
    access: &Access<'_>,
    bucket: &str,
    name: &str,
) -> Outcome {
    access.require("storage.objects.delete")?;
    let mut state = locked(&storage.state);
    let bucket_state = state.bucket(bucket)?;
    let object = live(bucket_state, call, access, bucket, name)?;
    Conditions::of(call).check(Some(object))?;
    bucket_state.objects.remove(name);
    Ok(wire::no_content())
}

fn copy(
    storage: &Storage,
    call: &Call,
    access: &Access<'_>,
    from: (&str, &str),
    to: (&str, &str),
    rewrite: bool,
) -> Outcome {
    access.require("storage.objects.get")?;
    access.require("storage.objects.create")?;
    let changes = body_fields(call)?;
    let mut state = locked(&storage.state);
    let source = live(state.bucket(from.0)?, call, access, from.0, from.1)?;
    Conditions::of_source(call).check(Some(source))?;
    let (data, mut fields) = (source.data.clone(), source.fields().clone());
    fields.extend(changes);
    let size = data.len().to_string();
    let resource = put(
        &mut state,
        storage,
        access,
        &Conditions::of(call),
        to,
        (data, fields),
        &call.origin(),
    )?;
    if !rewrite {
        return ok(&resource);
    }
    ok(
        &json!({ "kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": true, "resource": resource }),
    )
}

/// Writes an object. Overwriting needs the permission to delete, too.
pub(super) fn put(
    state: &mut super::State,
    storage: &Storage,
    access: &Access<'_>,
    conditions: &Conditions,
    (bucket, name): (&str, &str),
    (data, fields): (bytes::Bytes, Map<String, Value>),
    origin: &str,
) -> Result<Value, Box<Reply>> {
    let now = storage.clock.now();
    let present = state.bucket(bucket)?.objects.get(name);
    conditions.check(present)?;
    if present.is_some() {
        access.require("storage.objects.delete")?;
    }
    let object = Object::new(data, fields, state.next_generation(now), now);
    let resource = object.resource(origin, bucket, name);
    state.bucket(bucket)?.objects.insert(name.to_owned(), object);
    Ok(resource)
}

/// The live object. Who may not list is not told whether it is there: 403 instead of 404 (as remembered of Google; not confirmed).
fn live<'a>(
    bucket: &'a mut Bucket,
    call: &Call,
    access: &Access<'_>,
    bucket_name: &str,
    name: &str,
) -> Result<&'a mut Object, Box<Reply>> {
    let wanted = call.number("generation");
    let found = bucket.objects.get_mut(name);
    if let Some(object) =
        found.filter(|object| wanted.is_none_or(|wanted| wanted == object.generation))
    {
        return Ok(object);
    }
    access.require("storage.objects.list")?;
    Err(access::no_object(bucket_name, name))
}

fn read_xml(storage: &Storage, call: &Call, access: &Access<'_>, bucket: &str) -> Reply {
    let name = call.path.trim_start_matches('/').split_once('/').map_or("", |(_, name)| name);
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    let refuse = |status: StatusCode, code: &str, text: &str| {
        let xml = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
        );
        wire::reply(status, "application/xml; charset=UTF-8", xml)
    };
    if let Err(reply) = access.require("storage.objects.get") {
        return match reply.status() {
            StatusCode::UNAUTHORIZED => refuse(
                StatusCode::UNAUTHORIZED,
                "AuthenticationRequired",
                "Authentication required.",
            ),
            _ => refuse(StatusCode::FORBIDDEN, "AccessDenied", "Access denied."),
        };
    }
    let state = locked(&storage.state);
    let Some(found) = state.buckets.get(bucket) else {
        return refuse(
            StatusCode::NOT_FOUND,
            "NoSuchBucket",
            "The specified bucket does not exist.",
        );
    };
    match found.objects.get(name.as_ref()) {
        Some(object) => media::reply(call, object),
        None if !access.may("storage.objects.list") => {
            refuse(StatusCode::FORBIDDEN, "AccessDenied", "Access denied.")
        }
        None => refuse(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist."),
    }
}

pub(super) fn body_fields(call: &Call) -> Result<Map<String, Value>, Box<Reply>> {
    match call.json() {
        Some(Value::Object(fields)) => Ok(fields),
        _ => Err(access::invalid("Parse Error")),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the last expression of functions that can refuse")]
pub(super) fn ok(value: &Value) -> Outcome {
    Ok(wire::json(StatusCode::OK, value))
}

impl Bucket {
    fn resource(&self, storage: &Storage, origin: &str, name: &str) -> Value {
        json!({
            "kind": "storage#bucket", "id": name, "name": name,
            "selfLink": format!("{origin}/storage/v1/b/{name}"),
            "projectNumber": storage.project.number.to_string(), "metageneration": "1", "etag": "CAE=",
            "location": self.location, "locationType": "region", "storageClass": self.storage_class,
            "timeCreated": rfc3339(self.created), "updated": rfc3339(self.created),
            "iamConfiguration": {
                "uniformBucketLevelAccess": { "enabled": true, "lockedTime": rfc3339(self.created) },
                "publicAccessPrevention": "enforced",
            },
        })
    }
}
