//! Bodies on their way through: never collected, one frame at a time, each with
//! the things that must live exactly as long as it does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::access::Exchange;
use crate::upstream::Upstream;
use crate::upstream::connect::Link;
use crate::worker::Worker;

/// Why a body on its way to the client broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("read the upstream's body")]
    Upstream(#[source] hyper::Error),
    #[error("upstream silent for {0:?} within its body")]
    Silent(Duration),
}

/// A response body: our own, or relayed.
#[derive(Debug)]
pub(crate) struct EdgeBody {
    source: Source,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Relay(Box<Relay>),
}

/// An upstream's body with the connection it comes on.
#[derive(Debug)]
pub(crate) struct Relay {
    incoming: Incoming,
    link: Option<Link>,
    upstream: Arc<Upstream>,
    worker: Arc<Worker>,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl EdgeBody {
    pub(crate) fn own(bytes: Bytes, exchange: Option<Exchange>) -> Self {
        Self { source: Source::Own(Some(bytes).filter(|bytes| !bytes.is_empty())), exchange }
    }

    pub(crate) fn relay(relay: Relay, exchange: Exchange) -> Self {
        Self { source: Source::Relay(Box::new(relay)), exchange: Some(exchange) }
    }
}

impl Relay {
    pub(crate) fn new(
        incoming: Incoming,
        link: Link,
        upstream: Arc<Upstream>,
        worker: Arc<Worker>,
    ) -> Self {
        Self { incoming, link: Some(link), upstream, worker, last: Instant::now(), timer: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            if self.timer.is_some() {
                self.last = Instant::now();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Upstream)));
        }
        let idle = self.worker.shared.settings.timeouts.idle;
        // Armed at the first silence and then let run: each time it fires it
        // looks how long ago the last frame was.
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.last.elapsed() >= idle {
                return Poll::Ready(Some(Err(BodyError::Silent(idle))));
            }
            timer.as_mut().reset(self.last + idle);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Read to its end: the connection may serve again. Otherwise the link
        // falls, and the upstream sees the client leave.
        if let Some(link) = self.link.take()
            && self.upstream.spec.pooled
            && self.incoming.is_end_stream()
        {
            self.worker.pool.put(self.upstream.spec.address, link);
        }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Relay(relay) => ready!(relay.poll(cx)),
        };
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.sent(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(error)) => exchange.broke(error),
                None => exchange.complete(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Relay(relay) => relay.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Source::Relay(relay) => relay.incoming.size_hint(),
        }
    }
}

impl Drop for EdgeBody {
    fn drop(&mut self) {
        if let Some(exchange) = &mut self.exchange
            && match &self.source {
                Source::Own(bytes) => bytes.is_none(),
                Source::Relay(relay) => relay.incoming.is_end_stream(),
            }
        {
            exchange.complete();
        }
    }
}

/// A request body on its way to an upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// The client's.
    Client(Incoming, Upload),
}

/// How the client's side of an upload fares; shared with whoever waits for the
/// answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upload(Arc<AtomicBool>);

impl Upload {
    /// The client broke off or sent garbage.
    pub(crate) fn failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Client(incoming, upload) = &mut *self else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if matches!(frame, Some(Err(_))) {
            upload.0.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(incoming, _) => incoming.size_hint(),
        }
    }
}
