//! The last orders on disk, so that an edge that starts while the agent is away
//! has routes. Written whole or not at all; anything odd is ignored, not guessed at.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dify_common::wire::edge::Orders;
use serde::{Deserialize, Serialize};

/// Meaning of the file's fields; another number is not read.
const SCHEMA: u32 = 1;
const NAME: &str = "orders.json";

/// The file: orders as text, so that the checksum is over exact bytes.
#[derive(Serialize, Deserialize)]
struct Record {
    schema: u32,
    checksum: String,
    orders: String,
}

/// Why orders could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged or of another version; it is written anew with the next orders")]
    Damaged { path: PathBuf },
}

/// Replaces the file: temporary file, fsync, rename, fsync of the directory.
/// The instances share one file; each has its own temporary.
pub(crate) fn save(directory: &Path, instance: &str, orders: &Orders) -> Result<(), StoreError> {
    let orders = serde_json::to_string(orders).expect("orders always serialise");
    let record = Record { schema: SCHEMA, checksum: checksum(&orders), orders };
    let text = serde_json::to_string(&record).expect("texts always serialise");
    replace(directory, NAME, instance, text.as_bytes())
}

/// Writes `name` in `directory` whole or not at all.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    instance: &str,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.{instance}"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| StoreError::Write { path: path.clone(), source })
}

/// The last orders, if there are any.
pub(crate) fn load(directory: &Path) -> Result<Option<Orders>, StoreError> {
    let path = directory.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::Damaged { path });
        }
        Err(source) => return Err(StoreError::Read { path, source }),
    };
    let read = || {
        let record: Record = serde_json::from_str(&text).ok()?;
        let whole = record.schema == SCHEMA && record.checksum == checksum(&record.orders);
        serde_json::from_str(whole.then_some(&record.orders)?).ok()
    };
    read().map(Some).ok_or(StoreError::Damaged { path })
}

/// FNV-1a, 64 bits: finds damage, which is all it is for.
fn checksum(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::dify;

    #[test]
    fn orders_come_back_as_they_were() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(matches!(load(directory.path()), Ok(None)));
        save(directory.path(), "a", &dify()).expect("saved");
        assert_eq!(load(directory.path()).expect("read"), Some(dify()));
        let names: Vec<_> = fs::read_dir(directory.path()).expect("listed").collect();
        assert_eq!(names.len(), 1, "a temporary file was left: {names:?}");
    }

    #[test]
    fn damage_of_any_kind_is_seen() {
        let directory = tempfile::tempdir().expect("a directory");
        save(directory.path(), "a", &dify()).expect("saved");
        let path = directory.path().join(NAME);
        let good = fs::read_to_string(&path).expect("read");
        for bad in [
            good.replace("1080", "1081").replace("5001", "5009"),
            good.replace("\"schema\":1", "\"schema\":2"),
            good[..good.len() / 2].to_owned(),
            String::new(),
            "{}".to_owned(),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, &bad).expect("written");
            let found = load(directory.path());
            assert!(matches!(found, Err(StoreError::Damaged { .. })), "{found:?}");
        }
        fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(matches!(load(directory.path()), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_so() {
        let error = save(Path::new("/nonexistent/dify"), "a", &dify()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/dify/orders.json"), "{error}");
    }
}
