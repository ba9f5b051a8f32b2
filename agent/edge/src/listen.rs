//! Where clients connect: a socket handed over by systemd, or one of our own
//! per thread.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel keeps for us between two accepts, per socket.
const BACKLOG: i32 = 1024;

/// One socket per thread.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) sockets: Vec<TcpListener>,
    pub(crate) address: SocketAddr,
    /// All are one socket, which outlives this process.
    pub(crate) inherited: bool,
}

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The service manager's socket is unusable.
    #[error("take over the socket passed by LISTEN_FDS (expected one TCP listener)")]
    Inherit(#[source] io::Error),
    /// No socket of our own.
    #[error("listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Listeners {
    /// The inherited socket if there is one, else `address`, once per thread.
    pub(crate) fn open(address: SocketAddr, threads: usize) -> Result<Self, ListenError> {
        let inherited = ListenFd::from_env().take_tcp_listener(0).map_err(ListenError::Inherit)?;
        match inherited {
            Some(socket) => Self::shared(socket, threads).map_err(ListenError::Inherit),
            None => {
                Self::own(address, threads).map_err(|source| ListenError::Bind { address, source })
            }
        }
    }

    fn shared(socket: TcpListener, threads: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let mut sockets =
            (1..threads).map(|_| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
        sockets.push(socket);
        Ok(Self { sockets, address, inherited: true })
    }

    /// The kernel spreads connections over sockets that share a port.
    fn own(mut address: SocketAddr, threads: usize) -> io::Result<Self> {
        let mut sockets = Vec::with_capacity(threads);
        for _ in 0..threads {
            let socket =
                Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let socket = TcpListener::from(socket);
            // Port 0: the first took a free one, the others share it.
            address = socket.local_addr()?;
            sockets.push(socket);
        }
        Ok(Self { sockets, address, inherited: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_zero_is_one_port_for_all_threads() {
        let listeners = Listeners::own(SocketAddr::from(([127, 0, 0, 1], 0)), 3).expect("bound");
        assert_ne!(listeners.address.port(), 0);
        for socket in &listeners.sockets {
            assert_eq!(socket.local_addr().expect("bound"), listeners.address);
        }
    }
}
