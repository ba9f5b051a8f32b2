//! TLS in front of a PostgreSQL that has none: the wheel's programs are built
//! without OpenSSL. Speaks the server's side of the request for encryption
//! (PostgreSQL documentation, "SSL Session Encryption" of the protocol chapter).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::cert::Identity;
use crate::{Broken, Doing as _, Outcome};

/// `SSLRequest`, `GSSENCRequest` and `CancelRequest` in place of a version.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// A listener that lets TLS in and plain text out.
#[derive(Debug)]
pub struct TlsFront {
    /// Port on 127.0.0.1.
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl TlsFront {
    /// Listens with `identity` before the plain server on `backend`.
    pub async fn start(identity: &Identity, backend: u16) -> Outcome<Self> {
        let acceptor = TlsAcceptor::from(server_config(identity)?);
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.doing(|| "bind the TLS front".into())?;
        let port = listener.local_addr().doing(|| "ask for the bound port".into())?.port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                while connections.try_join_next().is_some() {}
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A connection that breaks is its two ends' matter.
                    let _ = serve(client, acceptor, backend).await;
                });
            }
        });
        Ok(Self { port, _tasks: tasks })
    }
}

fn server_config(identity: &Identity) -> Outcome<Arc<ServerConfig>> {
    dify_common::gcp::install_tls_provider();
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
    let (Ok(certificate), Ok(key)) = (certificate, key) else {
        return Err(Broken::new("read our own certificate"));
    };
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map(Arc::new)
        .doing(|| "use our own certificate".into())
}

async fn serve(mut client: TcpStream, acceptor: TlsAcceptor, backend: u16) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut first = [0; 8];
    loop {
        client.read_exact(&mut first).await?;
        match u32::from_be_bytes([first[4], first[5], first[6], first[7]]) {
            SSL_REQUEST => {
                client.write_all(b"S").await?;
                break;
            }
            GSS_REQUEST => client.write_all(b"N").await?,
            CANCEL_REQUEST => {
                let mut server = TcpStream::connect(("127.0.0.1", backend)).await?;
                server.write_all(&first).await?;
                copy_bidirectional(&mut client, &mut server).await?;
                return Ok(());
            }
            _ => return refuse(&mut client).await,
        }
    }
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", backend)).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// What a server with `hostssl` entries only says to a plain connection.
async fn refuse(client: &mut TcpStream) -> std::io::Result<()> {
    let fields = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for host, no encryption\0\0";
    let length = u32::try_from(fields.len() + 4).expect("a short text");
    client.write_u8(b'E').await?;
    client.write_u32(length).await?;
    client.write_all(fields).await?;
    client.shutdown().await
}
