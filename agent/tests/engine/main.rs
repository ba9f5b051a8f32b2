//! The engine module against a real Docker engine (and a real registry where
//! images are concerned). Needs `/var/run/docker.sock` (or `DOCKER_HOST` with a
//! unix socket), `docker-registry` and root; fails, and does not skip, without.
//!
//! The image these tests run is `FROM scratch` with this very executable in it:
//! it is linked statically, and inside a container it runs [`guest`].

mod bed;
mod containers;
mod firewall;
mod guest;
mod images;
mod one_shots;
