//! A small file system of a test's own, to be filled to the brim.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::{Doing as _, Outcome, child};

/// A mounted tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one with room for `mebibytes` over the folder `path`.
    pub async fn mount(path: &Path, mebibytes: u32) -> Outcome<Self> {
        let size = format!("size={mebibytes}m,mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "dify-fleet-bed"]).arg(path);
        child::run(&mut mount).await?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes all the room there is.
    pub fn fill(&self) -> Outcome {
        let path = self.ballast();
        let mut file = std::fs::File::create(&path).doing(|| format!("make {}", path.display()))?;
        // Ends with "no space left", which is what is wanted.
        while file.write_all(&[0; 64 * 1024]).is_ok() {}
        Ok(())
    }

    /// Gives the room back.
    pub fn empty(&self) -> Outcome {
        let path = self.ballast();
        std::fs::remove_file(&path).doing(|| format!("remove {}", path.display()))
    }

    /// Makes it refuse writes, or take them again.
    pub async fn read_only(&self, yes: bool) -> Outcome {
        let how = if yes { "remount,ro" } else { "remount,rw" };
        child::run(Command::new("mount").args(["-o", how]).arg(&self.path)).await.map(drop)
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: whatever still holds a file there keeps it until it ends.
        let mut unmount = std::process::Command::new("umount");
        let _ = unmount.arg("-l").arg(&self.path).stderr(Stdio::null()).status();
    }
}
