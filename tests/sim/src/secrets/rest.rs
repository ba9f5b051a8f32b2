//! Secret Manager's REST surface (`secretmanager.googleapis.com/v1`, and its regional twin under `locations/L`).
//!
//! Texts of the 403 and of the state errors are those seen in public reports of the real service; those of 404 and of
//! bad arguments are inferred.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Secret, Secrets, Version, VersionState};
use crate::{
    clock::rfc3339,
    iam::{Caller, Iam},
    locked,
    wire::{self, Call, Reply},
};

/// Largest payload, in bytes (Google's quota page).
const MAX_PAYLOAD: usize = 65_536;

/// What a path asks for.
enum Verb {
    ListSecrets,
    CreateSecret,
    GetSecret,
    DeleteSecret,
    AddVersion,
    ListVersions,
    GetVersion(String),
    Access(String),
    SetState(String, VersionState),
}

impl Verb {
    fn permission(&self) -> &'static str {
        match self {
            Self::ListSecrets => "secretmanager.secrets.list",
            Self::CreateSecret => "secretmanager.secrets.create",
            Self::GetSecret => "secretmanager.secrets.get",
            Self::DeleteSecret => "secretmanager.secrets.delete",
            Self::AddVersion => "secretmanager.versions.add",
            Self::ListVersions => "secretmanager.versions.list",
            Self::GetVersion(_) => "secretmanager.versions.get",
            Self::Access(_) => "secretmanager.versions.access",
            Self::SetState(_, VersionState::Enabled) => "secretmanager.versions.enable",
            Self::SetState(_, VersionState::Disabled) => "secretmanager.versions.disable",
            Self::SetState(_, VersionState::Destroyed) => "secretmanager.versions.destroy",
        }
    }
}

pub(super) fn answer(secrets: &Secrets, call: &Call, iam: &Iam) -> Reply {
    let email = match iam.caller(call) {
        Caller::Account(email) => email,
        Caller::Anonymous => return unauthenticated("CREDENTIALS_MISSING"),
        Caller::Unknown => return unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        Caller::Expired => return unauthenticated("ACCESS_TOKEN_EXPIRED"),
    };
    let parts = call.parts();
    let ["v1", "projects", project, rest @ ..] = parts.as_slice() else {
        return no_method();
    };
    let (location, rest) = match rest {
        ["locations", location, rest @ ..] => (format!("locations/{location}/"), rest),
        rest => (String::new(), rest),
    };
    let Some((id, verb)) = parse(&call.method, rest) else {
        return no_method();
    };
    let ours = *project == secrets.project.id || *project == secrets.project.number.to_string();
    if !ours || !iam.may(&email, verb.permission()) {
        let resource = call.path.trim_start_matches("/v1/").split(':').next().unwrap_or_default();
        return denied(verb.permission(), resource);
    }
    let tail = format!("{location}secrets/{id}");
    let name = format!("projects/{}/{tail}", secrets.project.number);
    act(secrets, call, &verb, &tail, &name).unwrap_or_else(|reply| *reply)
}

/// The secret's id (empty for the collection) and what is asked.
fn parse(method: &Method, rest: &[&str]) -> Option<(String, Verb)> {
    let state_of = |action: &str| match action {
        "enable" => Some(VersionState::Enabled),
        "disable" => Some(VersionState::Disabled),
        "destroy" => Some(VersionState::Destroyed),
        _ => None,
    };
    let (id, verb) = match (method.as_str(), rest) {
        ("GET", ["secrets"]) => ("", Verb::ListSecrets),
        ("POST", ["secrets"]) => ("", Verb::CreateSecret),
        ("GET", ["secrets", id]) => (*id, Verb::GetSecret),
        ("DELETE", ["secrets", id]) => (*id, Verb::DeleteSecret),
        ("POST", ["secrets", id]) => (id.strip_suffix(":addVersion")?, Verb::AddVersion),
        ("GET", ["secrets", id, "versions"]) => (*id, Verb::ListVersions),
        ("GET", ["secrets", id, "versions", version]) => match version.strip_suffix(":access") {
            Some(version) => (*id, Verb::Access(version.to_owned())),
            None => (*id, Verb::GetVersion((*version).to_owned())),
        },
        ("POST", ["secrets", id, "versions", version]) => {
            let (version, action) = version.split_once(':')?;
            (*id, Verb::SetState(version.to_owned(), state_of(action)?))
        }
        _ => return None,
    };
    Some((id.to_owned(), verb))
}

fn act(
    secrets: &Secrets,
    call: &Call,
    verb: &Verb,
    tail: &str,
    name: &str,
) -> Result<Reply, Box<Reply>> {
    let now = secrets.clock.now();
    let mut state = locked(&secrets.state);
    let missing = || Box::new(not_found(&format!("Secret [{name}] not found.")));
    let ok = |value: Value| Ok(wire::json(StatusCode::OK, &value));
    match verb {
        Verb::ListSecrets => {
            let inside = state.iter().filter(|(key, _)| {
                key.rsplit_once('/').is_some_and(|(head, _)| tail == format!("{head}/"))
            });
            let project = secrets.project.number;
            let list: Vec<_> = inside
                .map(|(key, secret)| secret.resource(&format!("projects/{project}/{key}")))
                .collect();
            ok(json!({ "secrets": list, "totalSize": list.len() }))
        }
        Verb::CreateSecret => {
            let id = call.query("secretId").filter(|id| !id.is_empty());
            let id = id.ok_or_else(|| Box::new(invalid("The secret ID must be provided.")))?;
            let (key, name) = (format!("{tail}{id}"), format!("{name}{id}"));
            if state.contains_key(&key) {
                let text = format!("Secret [{name}] already exists.");
                return Err(Box::new(wire::rpc_error(
                    StatusCode::CONFLICT,
                    "ALREADY_EXISTS",
                    &text,
                    None,
                )));
            }
            let body =
                call.json().ok_or_else(|| Box::new(invalid("Invalid JSON payload received.")))?;
            let mut secret = Secret::new(now);
            let labels = body["labels"].as_object().into_iter().flatten();
            secret.labels = labels
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect();
            let resource = secret.resource(&name);
            state.insert(key, secret);
            ok(resource)
        }
        Verb::GetSecret => ok(state.get(tail).ok_or_else(missing)?.resource(name)),
        Verb::DeleteSecret => {
            state.remove(tail).ok_or_else(missing)?;
            ok(json!({}))
        }
        Verb::AddVersion => {
            let data = payload(call)?;
            let secret = state.get_mut(tail).ok_or_else(missing)?;
            let number = secret.add(data, now);
            ok(secret.versions[number - 1].resource(name, number))
        }
        Verb::ListVersions => {
            let secret = state.get(tail).ok_or_else(missing)?;
            let newest_first = secret.versions.iter().enumerate().rev();
            let list: Vec<_> =
                newest_first.map(|(index, version)| version.resource(name, index + 1)).collect();
            ok(json!({ "versions": list, "totalSize": list.len() }))
        }
        Verb::GetVersion(named) => {
            let (number, version) =
                state.get_mut(tail).ok_or_else(missing)?.version(name, named)?;
            ok(version.resource(name, number))
        }
        Verb::Access(named) => {
            let none =
                || Box::new(not_found(&format!("Secret [{name}] not found or has no versions.")));
            let (number, version) = state.get_mut(tail).ok_or_else(none)?.version(name, named)?;
            version.readable(name, number)?;
            let checksum =
                crc32c::crc32c(&version.data).wrapping_add(u32::from(call.spoil_checksum));
            ok(json!({
                "name": format!("{name}/versions/{number}"),
                "payload": { "data": STANDARD.encode(&version.data), "dataCrc32c": checksum.to_string() },
            }))
        }
        Verb::SetState(named, to) => {
            let (number, version) =
                state.get_mut(tail).ok_or_else(missing)?.version(name, named)?;
            if version.state == VersionState::Destroyed {
                version.readable(name, number)?;
            }
            version.set(*to, now);
            ok(version.resource(name, number))
        }
    }
}

/// The payload of an `:addVersion`, its checksum verified when one was sent.
fn payload(call: &Call) -> Result<Bytes, Box<Reply>> {
    let refuse = |text: &str| Box::new(invalid(text));
    let body = call.json().ok_or_else(|| refuse("Invalid JSON payload received."))?;
    let payload = &body["payload"];
    let data = payload["data"].as_str().map(|data| STANDARD.decode(data));
    let Some(Ok(data)) = data else {
        return Err(refuse("Secret Payload is required."));
    };
    if data.len() > MAX_PAYLOAD {
        return Err(refuse("The secret payload is larger than 65536 bytes."));
    }
    // int64 on the wire: a string, though a number is taken too.
    let sent = payload["dataCrc32c"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| payload["dataCrc32c"].as_u64().map(|n| n.to_string()));
    if sent.is_some_and(|sent| sent != crc32c::crc32c(&data).to_string()) {
        return Err(refuse("The checksum in the secret payload does not match its data."));
    }
    Ok(data.into())
}

impl Secret {
    fn resource(&self, name: &str) -> Value {
        let mut value = json!({ "name": name, "createTime": rfc3339(self.created), "etag": "\"16211daf5f29c5\"" });
        if !name.contains("/locations/") {
            value["replication"] = json!({ "automatic": {} });
        }
        if !self.labels.is_empty() {
            value["labels"] = json!(self.labels);
        }
        if !self.aliases.is_empty() {
            // A map of int64: its values are strings.
            let aliases = self
                .aliases
                .iter()
                .map(|(alias, version)| (alias.clone(), version.to_string().into()));
            value["versionAliases"] = Value::Object(aliases.collect());
        }
        value
    }

    fn version(&mut self, name: &str, named: &str) -> Result<(usize, &mut Version), Box<Reply>> {
        let missing =
            || Box::new(not_found(&format!("Secret Version [{name}/versions/{named}] not found.")));
        let number = self.resolve(named).ok_or_else(missing)?;
        Ok((number, &mut self.versions[number - 1]))
    }
}

impl Version {
    fn resource(&self, name: &str, number: usize) -> Value {
        let mut value = json!({
            "name": format!("{name}/versions/{number}"), "createTime": rfc3339(self.created),
            "state": self.state.name(), "etag": format!("\"16211daf5f29c{number}\""),
            "clientSpecifiedPayloadChecksum": true,
        });
        if !name.contains("/locations/") {
            value["replicationStatus"] = json!({ "automatic": {} });
        }
        if let Some(destroyed) = self.destroyed {
            value["destroyTime"] = rfc3339(destroyed).into();
        }
        value
    }

    fn readable(&self, name: &str, number: usize) -> Result<(), Box<Reply>> {
        match self.state {
            VersionState::Enabled => Ok(()),
            VersionState::Disabled | VersionState::Destroyed => {
                let text = format!(
                    "Secret Version [{name}/versions/{number}] is in {} state.",
                    self.state.name()
                );
                Err(Box::new(wire::rpc_error(
                    StatusCode::BAD_REQUEST,
                    "FAILED_PRECONDITION",
                    &text,
                    None,
                )))
            }
        }
    }
}

fn not_found(text: &str) -> Reply {
    wire::rpc_error(StatusCode::NOT_FOUND, "NOT_FOUND", text, None)
}

fn invalid(text: &str) -> Reply {
    wire::rpc_error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", text, None)
}

/// A path no method of the service has: the front end answers with HTML.
fn no_method() -> Reply {
    wire::reply(
        StatusCode::NOT_FOUND,
        "text/html; charset=UTF-8",
        "<!DOCTYPE html>\n<title>Error 404 (Not Found)!!1</title>\n",
    )
}

fn denied(permission: &str, resource: &str) -> Reply {
    let text = format!(
        "Permission '{permission}' denied for resource '{resource}' (or it may not exist)."
    );
    wire::rpc_error(StatusCode::FORBIDDEN, "PERMISSION_DENIED", &text, None)
}

fn unauthenticated(reason: &str) -> Reply {
    let rest = "Expected OAuth 2 access token, login cookie or other valid authentication credential. \
                See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let text = match reason {
        "CREDENTIALS_MISSING" => {
            format!("Request is missing required authentication credential. {rest}")
        }
        _ => format!("Request had invalid authentication credentials. {rest}"),
    };
    let metadata = json!({ "service": "secretmanager.googleapis.com" });
    let mut reply = wire::rpc_error(
        StatusCode::UNAUTHORIZED,
        "UNAUTHENTICATED",
        &text,
        Some((reason, metadata)),
    );
    wire::set(&mut reply, "www-authenticate", "Bearer realm=\"https://accounts.google.com/\"");
    reply
}
