//! Who may do what, and the refusals of Cloud Storage's JSON API. Their texts are those of the real service as published
//! in reports; that of the checksum errors is inferred.

use http::StatusCode;

use super::object::Object;
use crate::{
    iam::{Caller, Iam},
    wire::{self, Call, Reply},
};

/// A caller before Cloud Storage.
#[derive(Debug)]
pub(super) struct Access<'a> {
    iam: &'a Iam,
    caller: Caller,
    anonymous_allowed: bool,
}

impl<'a> Access<'a> {
    pub(super) fn new(iam: &'a Iam, call: &Call, anonymous_allowed: bool) -> Self {
        Self { iam, caller: iam.caller(call), anonymous_allowed }
    }

    pub(super) fn may(&self, permission: &str) -> bool {
        match &self.caller {
            Caller::Account(email) => self.iam.may(email, permission),
            Caller::Anonymous => self.anonymous_allowed,
            Caller::Unknown | Caller::Expired => false,
        }
    }

    /// Refuses a caller who lacks `permission` (`storage.KIND.VERB`).
    pub(super) fn require(&self, permission: &str) -> Result<(), Box<Reply>> {
        if self.may(permission) {
            return Ok(());
        }
        let noun = match permission {
            "storage.buckets.create" | "storage.buckets.list" => "Google Cloud project",
            _ if permission.starts_with("storage.objects.")
                && permission != "storage.objects.list" =>
            {
                "Google Cloud Storage object"
            }
            _ => "Google Cloud Storage bucket",
        };
        let lacks = |who: &str| {
            format!(
                "{who} does not have {permission} access to the {noun}. \
                 Permission '{permission}' denied on resource (or it may not exist)."
            )
        };
        let header = Some(("header", "Authorization"));
        Err(Box::new(match &self.caller {
            Caller::Account(email) => {
                wire::storage_error(StatusCode::FORBIDDEN, "forbidden", &lacks(email), None)
            }
            Caller::Anonymous => wire::storage_error(
                StatusCode::UNAUTHORIZED,
                "required",
                &lacks("Anonymous caller"),
                header,
            ),
            Caller::Unknown | Caller::Expired => wire::storage_error(
                StatusCode::UNAUTHORIZED,
                "authError",
                "Invalid Credentials",
                header,
            ),
        }))
    }
}

/// `ifGenerationMatch` and its three sisters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions {
    generation: Option<u64>,
    not_generation: Option<u64>,
    metageneration: Option<u64>,
    not_metageneration: Option<u64>,
}

impl Conditions {
    /// Conditions on the object that is read or written.
    pub(super) fn of(call: &Call) -> Self {
        Self {
            generation: call.number("ifGenerationMatch"),
            not_generation: call.number("ifGenerationNotMatch"),
            metageneration: call.number("ifMetagenerationMatch"),
            not_metageneration: call.number("ifMetagenerationNotMatch"),
        }
    }

    /// Conditions on the object that is copied from.
    pub(super) fn of_source(call: &Call) -> Self {
        Self {
            generation: call.number("ifSourceGenerationMatch"),
            not_generation: call.number("ifSourceGenerationNotMatch"),
            metageneration: call.number("ifSourceMetagenerationMatch"),
            not_metageneration: call.number("ifSourceMetagenerationNotMatch"),
        }
    }

    /// Before a change: 412 unless all hold. Generation 0 stands for "no such object".
    pub(super) fn check(&self, live: Option<&Object>) -> Result<(), Box<Reply>> {
        if self.matches(live) && self.differs(live) { Ok(()) } else { Err(condition_not_met()) }
    }

    /// Before a read: a `NotMatch` that matches means "you have it already", 304.
    pub(super) fn check_read(&self, live: &Object) -> Result<(), Box<Reply>> {
        if !self.matches(Some(live)) {
            return Err(condition_not_met());
        }
        if self.differs(Some(live)) {
            return Ok(());
        }
        let mut reply = Reply::default();
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        Err(Box::new(reply))
    }

    fn matches(&self, live: Option<&Object>) -> bool {
        let generation = live.map_or(0, |object| object.generation);
        self.generation.is_none_or(|wanted| wanted == generation)
            && self
                .metageneration
                .is_none_or(|wanted| live.is_some_and(|object| object.metageneration == wanted))
    }

    fn differs(&self, live: Option<&Object>) -> bool {
        let generation = live.map_or(0, |object| object.generation);
        self.not_generation.is_none_or(|unwanted| unwanted != generation)
            && self
                .not_metageneration
                .is_none_or(|unwanted| live.is_none_or(|object| object.metageneration != unwanted))
    }
}

fn condition_not_met() -> Box<Reply> {
    let text = "At least one of the pre-conditions you specified did not hold.";
    Box::new(wire::storage_error(
        StatusCode::PRECONDITION_FAILED,
        "conditionNotMet",
        text,
        Some(("header", "If-Match")),
    ))
}

pub(super) fn no_bucket() -> Box<Reply> {
    Box::new(wire::storage_error(
        StatusCode::NOT_FOUND,
        "notFound",
        "The specified bucket does not exist.",
        None,
    ))
}

pub(super) fn no_object(bucket: &str, object: &str) -> Box<Reply> {
    Box::new(wire::storage_error(
        StatusCode::NOT_FOUND,
        "notFound",
        &format!("No such object: {bucket}/{object}"),
        None,
    ))
}

pub(super) fn invalid(text: &str) -> Box<Reply> {
    Box::new(wire::storage_error(StatusCode::BAD_REQUEST, "invalid", text, None))
}
