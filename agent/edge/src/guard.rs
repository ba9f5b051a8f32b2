//! The client's byte stream as the HTTP engine sees it: never more than one
//! request at a time, each head checked before the engine reads a byte of it,
//! each phase with its own clock.
//!
//! ```text
//!  socket ──► [ Head: whole, strict? ] ──► [ Body: count, or walk the chunks ] ──► engine
//!                  │ no                          │ over: next head waits until
//!                  ▼                             │ the exchange is finished
//!         a marked request, answered 4xx ◄───────┘ bad framing: read error
//! ```
//!
//! Three clocks that one timeout could not be: an idle connection outlives the
//! load balancer's 600 s (Google's external Application Load Balancers keep
//! connections to backends for that long), a head once begun has 10 s, a body
//! has the idle bound. In the common case (one head, whole, in one read) nothing
//! is copied and no timer is set anew.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::answer::Violation;
use crate::check::{self, Framing, MAX_HEAD, Scan};
use crate::chunks::Chunks;
use crate::settings::Timeouts;

/// What the engine is fed in place of a refused head.
const MARKED: &[u8] =
    b"GET /.dify-edge/refused HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What guard and request handler of one connection share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Above the instance's bound: only health is answered.
    pub(crate) surplus: bool,
    /// A request was handed to the engine and is not finished.
    busy: AtomicBool,
    refused: Mutex<Option<Violation>>,
    waker: Mutex<Option<Waker>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, surplus: bool) -> Self {
        Self {
            address,
            surplus,
            busy: AtomicBool::new(false),
            refused: Mutex::default(),
            waker: Mutex::default(),
        }
    }

    /// Why the request now being handled was refused, if it was.
    pub(crate) fn refused(&self) -> Option<Violation> {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exchange is over: the next head may pass.
    pub(crate) fn finished(&self) {
        self.busy.store(false, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }
}

/// The guarded stream.
#[derive(Debug)]
pub(crate) struct Guard<S> {
    io: S,
    client: Arc<Client>,
    timeouts: Timeouts,
    mode: Mode,
    /// Read from the socket, not yet by the engine.
    pending: BytesMut,
    /// How much of `pending` the engine may have.
    approved: usize,
    /// How much of an unapproved head in `pending` was scanned.
    scanned: usize,
    /// First byte of a head that is not whole yet.
    head_since: Option<Instant>,
    last_read: Instant,
    /// The client has not taken bytes since.
    blocked_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Head,
    Length(u64),
    Chunked(Chunks),
    /// Refused: what still comes is thrown away.
    Refused,
}

/// What is to happen when the clock runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expiry {
    Idle,
    Head,
    Stalled,
}

impl<S> Guard<S> {
    pub(crate) fn new(io: S, client: Arc<Client>, timeouts: Timeouts) -> Self {
        Self {
            io,
            client,
            timeouts,
            mode: Mode::Head,
            pending: BytesMut::new(),
            approved: 0,
            scanned: 0,
            head_since: None,
            last_read: Instant::now(),
            blocked_since: None,
            timer: None,
        }
    }

    /// The bare stream and what was read from it ahead of time.
    pub(crate) fn into_parts(self) -> (S, Bytes) {
        (self.io, self.pending.freeze())
    }

    /// Takes new bytes in the present mode: how many of them the engine may have.
    fn admit(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            match &mut self.mode {
                Mode::Head if self.client.busy() || rest.is_empty() => return Ok(taken),
                Mode::Head => match check::scan(rest, self.scanned.min(rest.len())) {
                    Scan::Partial => {
                        self.scanned = rest.len();
                        self.head_since.get_or_insert(self.last_read);
                        return Ok(taken);
                    }
                    Scan::Head { len, framing } => {
                        taken += len;
                        self.scanned = 0;
                        self.head_since = None;
                        self.client.busy.store(true, Ordering::Release);
                        self.mode = match framing {
                            Framing::Length(0) => Mode::Head,
                            Framing::Length(length) => Mode::Length(length),
                            Framing::Chunked => Mode::Chunked(Chunks::START),
                        };
                    }
                    Scan::Refused(violation) => {
                        self.refuse(violation);
                        return Ok(taken);
                    }
                },
                Mode::Length(left) => {
                    let here = usize::try_from(*left).map_or(rest.len(), |n| n.min(rest.len()));
                    taken += here;
                    *left -= here as u64;
                    if *left > 0 {
                        return Ok(taken);
                    }
                    self.mode = Mode::Head;
                }
                Mode::Chunked(chunks) => {
                    let fed = chunks.feed(rest);
                    taken +=
                        fed.map_err(|v| io::Error::new(io::ErrorKind::InvalidData, v.kind()))?;
                    if !chunks.done() {
                        return Ok(taken);
                    }
                    self.mode = Mode::Head;
                }
                Mode::Refused => return Ok(taken),
            }
        }
    }

    /// Looks again at what waits in `pending` behind the approved part.
    fn approve(&mut self) -> io::Result<()> {
        if self.pending.len() == self.approved {
            return Ok(());
        }
        let waiting = self.pending.split_off(self.approved);
        let before = self.head_since;
        let taken = self.admit(&waiting);
        if before.is_none() && self.head_since.is_some() {
            // It waited behind another request; its clock starts now.
            self.head_since = Some(Instant::now());
        }
        if matches!(self.mode, Mode::Refused) {
            return Ok(());
        }
        self.pending.unsplit(waiting);
        self.approved += taken?;
        Ok(())
    }

    /// Puts the marked request in the place of what came.
    fn refuse(&mut self, violation: Violation) {
        *self.client.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(violation);
        self.client.busy.store(true, Ordering::Release);
        self.mode = Mode::Refused;
        self.head_since = None;
        // The answer gets as long as a head does.
        self.last_read = Instant::now();
        self.pending.clear();
        self.pending.extend_from_slice(MARKED);
        self.approved = MARKED.len();
    }

    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let now = self.approved.min(buf.remaining());
        if now == 0 {
            return false;
        }
        buf.put_slice(&self.pending[..now]);
        self.pending.advance(now);
        self.approved -= now;
        if self.pending.is_empty() {
            // Idle connections own no buffer.
            self.pending = BytesMut::new();
        }
        true
    }

    /// The next thing the clock would do, in the present state.
    fn deadline(&self) -> Option<(Instant, Expiry)> {
        let reading = match self.mode {
            Mode::Head if self.client.busy() => None,
            Mode::Head => Some(match self.head_since {
                Some(since) => (since + self.timeouts.head, Expiry::Head),
                None => (self.last_read + self.timeouts.keep_alive, Expiry::Idle),
            }),
            Mode::Length(_) | Mode::Chunked(_) => {
                Some((self.last_read + self.timeouts.idle, Expiry::Stalled))
            }
            Mode::Refused => Some((self.last_read + self.timeouts.head, Expiry::Stalled)),
        };
        let writing = self.blocked_since.map(|since| (since + self.timeouts.idle, Expiry::Stalled));
        [reading, writing].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Waits on the clock; ready when something has run out.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Expiry> {
        loop {
            let Some((at, expiry)) = self.deadline() else {
                return Poll::Pending;
            };
            if at <= Instant::now() {
                return Poll::Ready(expiry);
            }
            match &mut self.timer {
                // Set for an earlier moment: it will look again then. Deadlines
                // move away all the time, the timer seldom.
                Some(timer) if timer.deadline() <= at && !timer.is_elapsed() => {}
                Some(timer) => timer.as_mut().reset(at),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
            }
            let timer = self.timer.as_mut().expect("set above");
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.approve()?;
            if this.hand_over(buf) {
                return Poll::Ready(Ok(()));
            }
            let waits = matches!(this.mode, Mode::Head) && this.client.busy();
            if waits {
                let mut waker = this.client.waker.lock().unwrap_or_else(PoisonError::into_inner);
                *waker = Some(cx.waker().clone());
            }
            let start = buf.filled().len();
            // A client that pipelines gets no more than one head's worth buffered.
            let full = waits && this.pending.len() >= MAX_HEAD;
            let read = if full { Poll::Pending } else { Pin::new(&mut this.io).poll_read(cx, buf) };
            match read {
                Poll::Ready(result) => result?,
                Poll::Pending => match this.poll_clock(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Expiry::Idle) => return Poll::Ready(Ok(())),
                    Poll::Ready(Expiry::Head) => {
                        this.refuse(Violation::HeadTimeout);
                        continue;
                    }
                    Poll::Ready(Expiry::Stalled) => {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                },
            }
            let end = buf.filled().len();
            if end == start {
                return Poll::Ready(Ok(()));
            }
            this.last_read = Instant::now();
            if this.pending.is_empty() {
                let taken = this.admit(&buf.filled()[start..end])?;
                if !matches!(this.mode, Mode::Refused) {
                    this.pending.extend_from_slice(&buf.filled()[start + taken..end]);
                }
                buf.set_filled(start + taken);
                if taken > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                // Mode::Refused keeps the marked request only.
                if !matches!(this.mode, Mode::Refused) {
                    this.pending.extend_from_slice(&buf.filled()[start..end]);
                }
                buf.set_filled(start);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    fn wrote<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.blocked_since = None;
            return poll;
        }
        self.blocked_since.get_or_insert_with(Instant::now);
        match self.poll_clock(cx) {
            Poll::Ready(Expiry::Stalled) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            // The reading side will see to it.
            Poll::Ready(Expiry::Idle | Expiry::Head) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.wrote(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
