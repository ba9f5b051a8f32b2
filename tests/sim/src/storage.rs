//! Cloud Storage: buckets and objects, without versioning (an overwritten object is gone).

mod access;
mod list;
mod media;
mod object;
mod rest;
mod upload;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    Clock, Project,
    iam::Iam,
    locked,
    wire::{Call, Reply},
};
use access::Access;
use object::Object;
use upload::Upload;

/// Cloud Storage's content.
#[derive(Clone, Debug)]
pub struct Storage {
    project: Project,
    clock: Clock,
    anonymous: bool,
    state: Arc<Mutex<State>>,
}

/// An object as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Its bytes.
    pub data: Bytes,
    /// Its media type.
    pub content_type: String,
    /// Its generation; grows with every write in the project.
    pub generation: u64,
    /// Metadata a client has set.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, Bucket>,
    uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
    last_generation: u64,
}

#[derive(Debug)]
struct Bucket {
    location: String,
    storage_class: String,
    created: Duration,
    objects: BTreeMap<String, Object>,
}

impl Storage {
    pub(crate) fn new(project: Project, clock: Clock, anonymous: bool) -> Self {
        Self { project, clock, anonymous, state: Arc::default() }
    }

    /// Creates a bucket; one that is there stays as it is.
    pub fn create_bucket(&self, bucket: &str) {
        let created = self.clock.now();
        locked(&self.state)
            .buckets
            .entry(bucket.to_owned())
            .or_insert_with(|| Bucket::new(created));
    }

    /// Deletes a bucket with everything in it.
    pub fn delete_bucket(&self, bucket: &str) {
        locked(&self.state).buckets.remove(bucket);
    }

    /// Names of a bucket's objects, sorted; none when there is no such bucket.
    pub fn list(&self, bucket: &str) -> Vec<String> {
        locked(&self.state)
            .buckets
            .get(bucket)
            .map(|bucket| bucket.objects.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// An object, if it is there.
    pub fn get(&self, bucket: &str, object: &str) -> Option<StoredObject> {
        let state = locked(&self.state);
        let object = state.buckets.get(bucket)?.objects.get(object)?;
        Some(StoredObject {
            data: object.data.clone(),
            content_type: object.content_type().to_owned(),
            generation: object.generation,
            metadata: object.metadata(),
        })
    }

    /// Writes an object past every permission, creating the bucket when it is missing. Returns the generation.
    pub fn put(&self, bucket: &str, object: &str, data: impl Into<Bytes>) -> u64 {
        self.create_bucket(bucket);
        let now = self.clock.now();
        let mut state = locked(&self.state);
        let generation = state.next_generation(now);
        let stored = Object::new(data.into(), serde_json::Map::new(), generation, now);
        state
            .buckets
            .get_mut(bucket)
            .expect("created above")
            .objects
            .insert(object.to_owned(), stored);
        generation
    }

    /// Deletes an object past every permission; false when it was not there.
    pub fn delete(&self, bucket: &str, object: &str) -> bool {
        locked(&self.state)
            .buckets
            .get_mut(bucket)
            .is_some_and(|bucket| bucket.objects.remove(object).is_some())
    }

    pub(crate) fn answer(&self, call: &Call, iam: &Iam) -> Reply {
        let access = Access::new(iam, call, self.anonymous);
        rest::answer(self, call, &access).unwrap_or_else(|reply| *reply)
    }
}

impl State {
    fn bucket(&mut self, name: &str) -> Result<&mut Bucket, Box<Reply>> {
        self.buckets.get_mut(name).ok_or_else(access::no_bucket)
    }

    /// Microseconds since the epoch, as Google's generations look, but never the same twice.
    fn next_generation(&mut self, now: Duration) -> u64 {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.last_generation = micros.max(self.last_generation + 1);
        self.last_generation
    }
}

impl Bucket {
    fn new(created: Duration) -> Self {
        Self {
            location: "EUROPE-WEST4".into(),
            storage_class: "STANDARD".into(),
            created,
            objects: BTreeMap::new(),
        }
    }
}
