//! Squid: a forward proxy that obeys the mounted `/etc/squid/squid.conf`.

mod rules;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use rules::{Asked, Rules};

use crate::failure::Failure;
use crate::http::{Answer, listen, with_type};
use crate::{Image, log, startup, tasks};

const CONFIGURATION: &str = "/etc/squid/squid.conf";

/// Proxies until SIGTERM.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let load = |path: &str| {
        std::fs::read_to_string(path).map_err(|e| {
            Failure::new(format!("FATAL: Unable to open configuration file: {path}: {e}"))
        })
    };
    let rules = Arc::new(Rules::parse(&load(CONFIGURATION)?, &load)?);
    tokio::select! {
        paid = startup::pay(&image.baked, startup::SQUID) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    let listener = listen("0.0.0.0", rules.port.unwrap_or(3128)).await?;
    log::line("Accepting HTTP Socket connections");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        let Ok((stream, peer)) = accepted else {
            continue;
        };
        let rules = Arc::clone(&rules);
        tasks::spawn(async move {
            let service = service_fn(move |request| {
                let rules = Arc::clone(&rules);
                async move { Ok::<_, std::convert::Infallible>(proxy(&rules, peer.ip(), request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            let _client_gone = connection.with_upgrades().await;
        });
    }
}

async fn proxy(rules: &Rules, client: IpAddr, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let uri = request.uri().clone();
    let Some(host) = uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()) else {
        return refused(400, "ERR_INVALID_URL 0");
    };
    let port = uri.port_u16().unwrap_or(if method == Method::CONNECT { 443 } else { 80 });
    let resolved = tokio::net::lookup_host((host.as_str(), port))
        .await
        .map(Iterator::collect::<Vec<SocketAddr>>)
        .unwrap_or_default();
    let addresses: Vec<IpAddr> = resolved.iter().map(SocketAddr::ip).collect();
    let allowed = rules.allow(Asked {
        client,
        method: method.as_str(),
        host: &host,
        addresses: &addresses,
        port,
    });
    let verdict = if allowed { "TCP_MISS" } else { "TCP_DENIED/403" };
    log::line(&format!("{:.3} {client} {verdict} {method} {host}:{port}", log::unix_now()));
    if !allowed {
        return refused(403, "ERR_ACCESS_DENIED 0");
    }
    if resolved.is_empty() {
        return refused(503, "ERR_DNS_FAIL 0");
    }
    // To the addresses that were judged, not to a second look-up.
    let Ok(Ok(upstream)) =
        tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(resolved.as_slice()))
            .await
    else {
        return refused(503, "ERR_CONNECT_FAIL 111");
    };
    if method == Method::CONNECT {
        tunnel(request, upstream)
    } else {
        forward(request, &uri, upstream).await
    }
}

fn tunnel(mut request: Request<Incoming>, mut upstream: TcpStream) -> Answer {
    let upgraded = hyper::upgrade::on(&mut request);
    tasks::spawn(async move {
        if let Ok(client) = upgraded.await {
            let _closed =
                tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut upstream).await;
        }
    });
    let mut answer = with_type(200, "text/plain", "");
    answer.headers_mut().clear();
    answer
}

async fn forward(mut request: Request<Incoming>, uri: &Uri, upstream: TcpStream) -> Answer {
    let origin_form = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    *request.uri_mut() = origin_form.parse().unwrap_or_else(|_| Uri::from_static("/"));
    if let Some(host) =
        uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    for name in ["proxy-connection", "proxy-authorization", "connection"] {
        request.headers_mut().remove(name);
    }
    request.headers_mut().insert(header::VIA, HeaderValue::from_static("1.1 squid (squid/6.6)"));
    let forwarded = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
        tasks::spawn(connection);
        sender.send_request(request).await
    };
    match tokio::time::timeout(Duration::from_mins(2), forwarded).await {
        Ok(Ok(response)) => {
            let (mut head, body) = response.into_parts();
            for name in [header::TRANSFER_ENCODING, header::CONNECTION] {
                head.headers.remove(name);
            }
            Response::from_parts(head, body.map_err(std::io::Error::other).boxed_unsync())
        }
        _ => refused(502, "ERR_READ_ERROR 0"),
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
