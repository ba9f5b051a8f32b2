//! One test for each way a Dify deployment is known to go wrong.

mod connections;
mod life;
mod reach;
mod secrets;

use dify_common::secret::Secret;

use super::fixture::{plain, wired};
use crate::config::settings::SecretName;

/// Services of the api image that stay up.
const PYTHON: [&str; 4] = ["api", "api_websocket", "worker", "worker_beat"];

fn problems_with(name: SecretName, text: &str) -> String {
    let mut settings = plain();
    settings.features.agent = true;
    let mut secrets = super::fixture::secrets();
    secrets.insert(name, Secret::from(text));
    wired(&settings, &secrets, "1.17.1").map_or_else(|error| error.to_string(), |_| String::new())
}
