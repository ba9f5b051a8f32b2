//! One edge instance in this process, a scripted agent on its unix socket, raw
//! sockets for clients and containers: what goes over the wire is what is tested.

mod agent;
mod bed;
mod drain;
mod health;
mod hostile;
mod process;
mod routing;
mod streaming;
mod tunnel;
