//! Squid: a forward proxy, and a relay to an origin server, that obeys the mounted
//! `/etc/squid/squid.conf`.

mod acl;
mod configuration;
#[cfg(test)]
mod shipped_test;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use acl::Asked;
use configuration::{Configuration, Peer, Port};

use crate::failure::Failure;
use crate::http::{Answer, header_of, listen, with_type};
use crate::{Image, log, startup, tasks};

const CONFIGURATION: &str = "/etc/squid/squid.conf";
/// In Ubuntu's image, and empty of anything that decides; an image from scratch lacks it.
const SNIPPETS: &str = "/etc/squid/conf.d/";

/// Proxies until SIGTERM.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let configuration = Arc::new(Configuration::read(CONFIGURATION, &load)?);
    tokio::select! {
        paid = startup::pay(&image.baked, startup::SQUID) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    revive(&configuration);
    let open = TaskTracker::new();
    for index in 0..configuration.ports.len() {
        let port = &configuration.ports[index];
        let listener = listen(&port.host, port.number).await?;
        let kind = if port.accel { "reverse-proxy HTTP" } else { "HTTP" };
        log::line(&format!(
            "Accepting {kind} Socket connections at local={}:{}",
            port.host, port.number
        ));
        let (configuration, open, stop) = (Arc::clone(&configuration), open.clone(), stop.clone());
        tasks::spawn(accept(listener, configuration, index, open, stop));
    }
    stop.cancelled().await;
    open.close();
    // Requests under way, tunnels too, get this long.
    let _cut = tokio::time::timeout(configuration.shutdown_lifetime, open.wait()).await;
    Ok(())
}

/// Tries every dead peer beside the caller. Squid does it at its start and at each request, which
/// it does not let wait: whoever comes first to a peer that started after Squid gets 502.
fn revive(configuration: &Arc<Configuration>) {
    for (index, _) in configuration.peers.iter().enumerate().filter(|(_, peer)| peer.is_dead()) {
        let configuration = Arc::clone(configuration);
        tasks::spawn(async move {
            let _probe = connect_peer(&configuration, &configuration.peers[index]).await;
        });
    }
}

async fn connect(configuration: &Configuration, addresses: &[SocketAddr]) -> Option<TcpStream> {
    let connecting = TcpStream::connect(addresses);
    tokio::time::timeout(configuration.connect_timeout, connecting).await.ok()?.ok()
}

async fn connect_peer(configuration: &Configuration, peer: &Peer) -> Option<TcpStream> {
    let found = tokio::net::lookup_host((peer.host.as_str(), peer.port))
        .await
        .map(Iterator::collect::<Vec<_>>);
    let upstream = connect(configuration, &found.unwrap_or_default()).await;
    if upstream.is_none() {
        log::line(&format!("TCP connection to {}/{} failed", peer.host, peer.port));
    }
    peer.connected(upstream.is_some());
    upstream
}

/// Files behind an `include`; `*` only in the last part of the path.
fn load(pattern: &str) -> Result<Vec<(String, String)>, Failure> {
    let refused = |e: std::io::Error| {
        Failure::new(format!("FATAL: Unable to find configuration file: {pattern}: {e}"))
    };
    let Some((before, after)) = pattern.split_once('*') else {
        let text = std::fs::read_to_string(pattern).map_err(refused)?;
        return Ok(vec![(pattern.to_owned(), text)]);
    };
    let folder = &before[..=before.rfind('/').unwrap_or(0)];
    let mut found = Vec::new();
    match std::fs::read_dir(folder) {
        Err(_) if folder == SNIPPETS => {}
        Err(problem) => return Err(refused(problem)),
        Ok(entries) => {
            for entry in entries.flatten() {
                let path = entry.path().to_string_lossy().into_owned();
                if path.starts_with(before) && path.ends_with(after) {
                    let text = std::fs::read_to_string(&path).map_err(refused)?;
                    found.push((path, text));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

async fn accept(
    listener: TcpListener,
    configuration: Arc<Configuration>,
    index: usize,
    open: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, peer)) = accepted else {
            continue;
        };
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let (configuration, open_here, stop) =
            (Arc::clone(&configuration), open.clone(), stop.clone());
        tasks::spawn(open.track_future(async move {
            let service = service_fn(move |request| {
                let (configuration, open) = (Arc::clone(&configuration), open_here.clone());
                async move {
                    let door = Door {
                        configuration: &configuration,
                        port: &configuration.ports[index],
                        local,
                        client: peer.ip(),
                        open: &open,
                    };
                    Ok::<_, std::convert::Infallible>(door.answer(request).await)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _client_gone = connection.as_mut() => return,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _client_gone = connection.await;
        }));
    }
}

/// One client at one `http_port`.
struct Door<'a> {
    configuration: &'a Arc<Configuration>,
    port: &'a Port,
    local: SocketAddr,
    client: IpAddr,
    open: &'a TaskTracker,
}

impl Door<'_> {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let method = request.method().clone();
        let uri = match self.url(&request) {
            Ok(uri) => uri,
            Err((status, reason)) => return refused(status, reason),
        };
        let Some(host) = uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()) else {
            return refused(400, "ERR_INVALID_URL 0");
        };
        let port = uri.port_u16().unwrap_or(if method == Method::CONNECT { 443 } else { 80 });
        let resolved = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map(Iterator::collect::<Vec<SocketAddr>>)
            .unwrap_or_default();
        let addresses: Vec<IpAddr> = resolved.iter().map(SocketAddr::ip).collect();
        let asked = Asked {
            client: self.client,
            port_name: &self.port.name,
            local: self.local,
            method: method.as_str(),
            url: &uri.to_string(),
            path: uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str),
            host: &host,
            addresses: &addresses,
            port,
        };
        let rules = self.configuration;
        let allowed = rules.http_access.allows(&rules.acls, asked, false);
        let mut ways = rules.ways(self.port, asked);
        ways.peers.retain(|peer| !peer.is_dead());
        revive(rules);
        let (verdict, way) = match (allowed, ways.peers.is_empty(), ways.direct) {
            (false, ..) => ("TCP_DENIED/403", "HIER_NONE"),
            (true, false, _) => ("TCP_MISS", "FIRSTUP_PARENT"),
            (true, true, true) => ("TCP_MISS", "HIER_DIRECT"),
            (true, true, false) => ("TCP_MISS/502", "HIER_NONE"),
        };
        let (now, client) = (log::unix_now(), self.client);
        log::line(&format!("{now:.3} {client} {verdict} {method} {host}:{port} {way}"));
        if !allowed {
            return refused(403, "ERR_ACCESS_DENIED 0");
        }
        for peer in &ways.peers {
            if let Some(upstream) = connect_peer(rules, peer).await {
                return self.pass(request, &uri, upstream, peer.origin).await;
            }
        }
        if !ways.direct {
            return if ways.peers.is_empty() {
                refused(502, "ERR_READ_ERROR 0")
            } else {
                refused(503, "ERR_CONNECT_FAIL 111")
            };
        }
        if resolved.is_empty() {
            return refused(503, "ERR_DNS_FAIL 0");
        }
        // To the addresses that were judged, not to a second look-up.
        match connect(rules, &resolved).await {
            Some(upstream) => self.pass(request, &uri, upstream, true).await,
            None => refused(503, "ERR_CONNECT_FAIL 111"),
        }
    }

    /// The absolute URL: as sent to a proxy, or made of the Host header at an `accel` port.
    fn url(&self, request: &Request<Incoming>) -> Result<Uri, (u16, &'static str)> {
        let uri = request.uri();
        if !self.port.accel {
            return Ok(uri.clone());
        }
        if request.method() == Method::CONNECT {
            return Err((405, "ERR_UNSUP_REQ 0"));
        }
        if self.port.vhost && uri.host().is_some() {
            return Ok(uri.clone());
        }
        let named = header_of(request.headers(), "host");
        let host = match &self.port.default_site {
            Some(site) if named.is_empty() || !self.port.vhost => site,
            _ => named,
        };
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        format!("http://{host}{path}").parse().map_err(|_| (400, "ERR_INVALID_URL 0"))
    }

    async fn pass(
        &self,
        request: Request<Incoming>,
        uri: &Uri,
        upstream: TcpStream,
        origin: bool,
    ) -> Answer {
        if request.method() == Method::CONNECT {
            self.tunnel(request, upstream)
        } else {
            self.forward(request, uri, upstream, origin).await
        }
    }

    fn tunnel(&self, mut request: Request<Incoming>, mut upstream: TcpStream) -> Answer {
        let upgraded = hyper::upgrade::on(&mut request);
        tasks::spawn(self.open.track_future(async move {
            if let Ok(client) = upgraded.await {
                let _closed =
                    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut upstream).await;
            }
        }));
        let mut answer = with_type(200, "text/plain", "");
        answer.headers_mut().clear();
        answer
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        uri: &Uri,
        upstream: TcpStream,
        origin: bool,
    ) -> Answer {
        let origin_form = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = if origin {
            origin_form.parse().unwrap_or_else(|_| Uri::from_static("/"))
        } else {
            uri.clone()
        };
        self.rewrite(request.headers_mut(), uri);
        let forwarded = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
            tasks::spawn(connection);
            sender.send_request(request).await
        };
        match tokio::time::timeout(self.configuration.read_timeout, forwarded).await {
            Ok(Ok(response)) => {
                let (mut head, body) = response.into_parts();
                for name in [header::TRANSFER_ENCODING, header::CONNECTION] {
                    head.headers.remove(name);
                }
                Response::from_parts(head, body.map_err(std::io::Error::other).boxed_unsync())
            }
            Ok(Err(_)) => refused(502, "ERR_READ_ERROR 0"),
            Err(_) => refused(504, "ERR_READ_TIMEOUT 0"),
        }
    }

    fn rewrite(&self, headers: &mut http::HeaderMap, uri: &Uri) {
        if let Some(host) = uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
            headers.insert(header::HOST, host);
        }
        for name in ["proxy-connection", "proxy-authorization", "connection"] {
            headers.remove(name);
        }
        if self.configuration.via {
            headers.insert(header::VIA, HeaderValue::from_static("1.1 squid (squid/6.6)"));
        }
        let so_far = header_of(headers, "x-forwarded-for").to_owned();
        let added = match self.configuration.forwarded_for.as_str() {
            "transparent" => return,
            "delete" => {
                headers.remove("x-forwarded-for");
                return;
            }
            "truncate" => self.client.to_string(),
            other => {
                let own =
                    if other == "off" { "unknown".to_owned() } else { self.client.to_string() };
                if so_far.is_empty() { own } else { format!("{so_far}, {own}") }
            }
        };
        if let Ok(value) = HeaderValue::from_str(&added) {
            headers.insert("x-forwarded-for", value);
        }
    }
}

fn refused(status: u16, reason: &'static str) -> Answer {
    let mut answer = with_type(
        status,
        "text/html;charset=utf-8",
        Bytes::from(format!(
            "<html><title>ERROR: The requested URL could not be retrieved</title><p>{reason}</p></html>"
        )),
    );
    answer.headers_mut().insert("x-squid-error", HeaderValue::from_static(reason));
    answer
}
