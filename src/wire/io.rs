//! HOT. The byte stream of one HTTP connection, with a judge between the socket and hyper.
//!
//! HTTP/1: no byte of a head is passed on before the head was judged as a whole; a bad request
//! is replaced by a marker, so that its refusal is answered, counted and logged in order, like
//! every request. HTTP/2: bytes pass as they come, their frames are counted; a peer over its
//! budget is sent a GOAWAY and cut.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
    time::Sleep,
};

use super::{
    Waiting,
    head::Refusal,
    http1::{Expected, Requests, Responses, Resume, Step},
    http2::{self, Frames},
};
use crate::{
    io::Io,
    memory::{Account, Patience},
};

/// What is read at one time to complete a head, in bytes.
const CHUNK: usize = 4096;
/// The most that is read ahead of the answer to a switch of protocols, in bytes.
const MAX_EARLY: usize = 16 * 1024;
/// How long what a refused client still sends is read away, so that the reset that the kernel
/// sends for unread bytes does not overtake the answer.
const LINGER: Duration = Duration::from_millis(500);
/// The most that is read away, in bytes.
const MAX_LINGER: usize = 1024 * 1024;

/// What of its turn on the runtime (128 operations in tokio) a task gives for the head of an
/// HTTP/2 request. h2 reads on as long as there is something, and a head is many times larger in
/// memory than on the wire: so those that have come are dealt with first, and of all connections
/// by turns.
const HEAD: u32 = 16;
const TURN: u32 = 128;
/// What the body of an HTTP/1 request fills when it does not go on, in bytes: the buffers of hyper
/// and of TLS on both sides.
const BODY: usize = 400 * 1024;
/// What is read at one time where heads come, in bytes.
const FEW: usize = 2048;

/// What the byte stream and those who use its connection tell each other. All of them run on
/// one worker; the atomics are never contended.
#[derive(Debug, Default)]
pub struct Signals {
    /// Streams that the peer has reset.
    resets: AtomicU32,
    written: AtomicU64,
    waiting: AtomicU8,
    /// What waits for the peer to take it: [`WRITING`] and [`FLUSHING`].
    blocked: AtomicU8,
    switch: AtomicU8,
    /// The number of the request that has asked for a switch, and of the last one that was
    /// answered; from 1.
    asked: AtomicU64,
    answered: AtomicU64,
    /// The number of the refused request on this connection, from 1.
    refused: Mutex<Option<(u64, Refusal)>>,
    /// Cheap to look at: whether `refused` or `cut` is set.
    spoilt: AtomicBool,
    /// The rule that the peer broke.
    cut: Mutex<Option<&'static str>>,
}

/// Bytes that nobody has taken over.
const WRITING: u8 = 1;
/// What TLS has taken over, or its goodbye.
const FLUSHING: u8 = 2;

/// How far a switch of protocols is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Switch {
    None = 0,
    /// The client has asked, and waits.
    Asked = 1,
    /// It did not wait.
    Early = 2,
    Switched = 3,
    Stays = 4,
}

impl Signals {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Streams that the peer has reset so far.
    pub fn resets(&self) -> u32 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Whether the peer has stopped to read what is written to it.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != 0
    }

    /// What the stream waits for.
    pub fn waiting(&self) -> Waiting {
        match self.waiting.load(Ordering::Relaxed) {
            1 => Waiting::Head,
            2 => Waiting::Preface,
            _ => Waiting::Nothing,
        }
    }

    /// Why the request of this number, counted from 1, was refused; `None` for a good one.
    pub fn refusal(&self, number: u64) -> Option<Refusal> {
        if !self.spoilt.load(Ordering::Relaxed) {
            return None;
        }
        let refused = self.refused.lock();
        let (at, refusal) = refused.as_ref()?;
        (*at == number).then_some(*refusal)
    }

    /// The rule for whose breach the connection was cut.
    pub fn cut(&self) -> Option<&'static str> {
        self.spoilt
            .load(Ordering::Relaxed)
            .then(|| *self.cut.lock())?
    }

    /// Whether the peer holds up `what`, as of now. The byte stream alone writes it.
    fn block(&self, what: u8, held_up: bool) {
        let others = self.blocked.load(Ordering::Relaxed) & !what;
        let now = if held_up { others | what } else { others };
        self.blocked.store(now, Ordering::Relaxed);
    }

    fn spoil(&self, rule: &'static str) -> io::Error {
        *self.cut.lock() = Some(rule);
        self.spoilt.store(true, Ordering::Relaxed);
        broken(rule)
    }

    /// The request of this number asks for a switch; `early`: bytes that may be of the other
    /// protocol are there already.
    fn asks(&self, number: u64, early: bool) {
        let switch = if self.answered.load(Ordering::Relaxed) >= number {
            // Before its body had ended: it stays with HTTP, and nobody will say so again.
            Switch::Stays
        } else if early {
            Switch::Early
        } else {
            Switch::Asked
        };
        self.asked.store(number, Ordering::Relaxed);
        self.switch.store(switch as u8, Ordering::Relaxed);
    }

    /// Says whether the protocol was switched with the answer to the request of this number,
    /// which may not have asked for it: one that has may wait behind it. False: it was not, but
    /// the client has sent bytes that may be of the other protocol already, so the connection
    /// must end with the answer.
    #[must_use]
    pub fn answered(&self, number: u64, switched: bool) -> bool {
        self.answered.store(number, Ordering::Relaxed);
        let asked = self.switch.load(Ordering::Relaxed);
        let waits = asked == Switch::Asked as u8 || asked == Switch::Early as u8;
        if !waits || self.asked.load(Ordering::Relaxed) != number {
            return true;
        }
        if switched {
            self.switch.store(Switch::Switched as u8, Ordering::Relaxed);
        } else if asked == Switch::Asked as u8 {
            self.switch.store(Switch::Stays as u8, Ordering::Relaxed);
        }
        switched || asked == Switch::Asked as u8
    }
}

/// Who judges.
#[derive(Debug)]
enum Judge {
    Requests(Box<Requests>),
    Responses(Box<Responses>),
    Frames(Box<Frames>),
}

/// A byte stream under judgement. Reading and writing are cancel safe.
#[derive(Debug)]
pub struct Guarded {
    io: Io,
    judge: Judge,
    signals: Arc<Signals>,
    /// Received and not passed on yet.
    held: Vec<u8>,
    /// How much of `held`, from its beginning, may be passed on.
    passed: usize,
    state: State,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    /// HTTP/2: heads came with what was read last.
    crowded: bool,
    room: Option<Room>,
}

/// What one client makes the process keep, as far as its byte stream shows it.
#[derive(Debug)]
struct Room {
    account: Arc<Account>,
    kept: usize,
    patience: Patience,
}

impl Room {
    fn set(&mut self, kept: usize) {
        if kept != self.kept {
            self.account.keep(kept);
            self.account.give_back(self.kept);
            self.kept = kept;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[derive(Debug)]
enum State {
    Open,
    /// Nothing is passed on until it is known whether the protocol switches.
    Held,
    /// The last request was refused, or its body has broken off; nothing follows.
    Refused,
    /// What was passed on breaks off here.
    Broken(&'static str),
    /// HTTP/2: a GOAWAY and how much of it was written.
    Leaving(Vec<u8>, usize),
    /// Bytes of another protocol.
    Opaque,
    Ended,
}

impl Guarded {
    /// The requests of an HTTP/1 client.
    pub fn requests(io: Io, requests: Requests, signals: Arc<Signals>) -> Self {
        Self::new(io, Judge::Requests(Box::new(requests)), signals)
    }

    /// The answers of an HTTP/1 server. A request on a connection that was idle for long is not
    /// written if the server has closed it meanwhile.
    pub fn responses(io: Io, responses: Responses, signals: Arc<Signals>) -> Self {
        Self::new(io, Judge::Responses(Box::new(responses)), signals)
    }

    /// The frames of an HTTP/2 peer.
    pub fn frames(io: Io, frames: Frames, signals: Arc<Signals>) -> Self {
        let waiting = frames.waiting() as u8;
        signals.waiting.store(waiting, Ordering::Relaxed);
        Self::new(io, Judge::Frames(Box::new(frames)), signals)
    }

    fn new(io: Io, judge: Judge, signals: Arc<Signals>) -> Self {
        Self {
            io,
            crowded: matches!(judge, Judge::Frames(_)),
            judge,
            signals,
            held: Vec::new(),
            passed: 0,
            state: State::Open,
            linger: None,
            room: None,
        }
    }

    /// Of a client, on whose account is what it makes the process keep.
    #[must_use]
    pub fn on(mut self, account: Arc<Account>) -> Self {
        self.room = Some(Room {
            account,
            kept: 0,
            patience: Patience::default(),
        });
        self
    }

    /// Puts on the account what the judge has seen, after `read` bytes more.
    fn count(&mut self, read: usize) {
        let Some(room) = &mut self.room else { return };
        room.set(match &self.judge {
            Judge::Requests(requests) if requests.is_within() => (room.kept + read).min(BODY),
            Judge::Requests(_) | Judge::Responses(_) => 0,
            Judge::Frames(frames) => frames.unread() as usize,
        });
    }

    /// Whoever reads waits for the peer: what it has sent of a body of HTTP/1 has gone on.
    fn keeps_nothing(&mut self) {
        if let (Some(room), Judge::Requests(_)) = (&mut self.room, &self.judge) {
            room.set(0);
        }
    }

    /// Ready when more may be read. The heads of HTTP/1 are: they are refused by themselves.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.room {
            Some(room) => room.patience.poll(&room.account, cx),
            None => Poll::Ready(()),
        }
    }

    /// Gives what may be passed on; false if there is nothing.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.passed == 0 {
            return false;
        }
        let n = self.passed.min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.drain(..n);
        self.passed -= n;
        true
    }

    /// Reads what comes next straight into the reader's buffer, judges it there, and keeps what
    /// may not be passed on yet. True: the reader has something.
    fn poll_straight(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        ready!(self.poll_room(cx));
        let start = buf.filled().len();
        let heads = self.heads();
        if self.crowded {
            // What TLS has decrypted is read without asking.
            drop(ready!(coop::poll_proceed(cx)));
            let mut few = [0; FEW];
            let mut few = ReadBuf::new(&mut few[..buf.remaining().min(FEW)]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
            buf.put_slice(few.filled());
        } else {
            let polled = Pin::new(&mut self.io).poll_read(cx, buf);
            if polled.is_pending() {
                self.keeps_nothing();
            }
            ready!(polled)?;
        }
        let n = buf.filled().len() - start;
        if n == 0 {
            return Poll::Ready(self.end().map(|()| true));
        }
        let (pass, step) = self.read(&buf.filled()[start..])?;
        if pass < n {
            self.held.extend_from_slice(&buf.filled()[start + pass..]);
            buf.set_filled(start + pass);
        }
        self.take(step, 0)?;
        self.count(n);
        let heads = self.heads().wrapping_sub(heads);
        self.crowded = heads > 0;
        for _ in 0..heads.saturating_mul(HEAD).min(TURN) {
            if let Poll::Ready(turn) = coop::poll_proceed(cx) {
                turn.made_progress();
            }
        }
        Poll::Ready(Ok(pass > 0))
    }

    /// Heads of HTTP/2 requests that were begun.
    fn heads(&self) -> u32 {
        match &self.judge {
            Judge::Frames(frames) => frames.heads(),
            Judge::Requests(_) | Judge::Responses(_) => 0,
        }
    }

    /// Reads on in what is held. True: the stream has ended.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let before = self.held.len();
        self.held.resize(before + CHUNK, 0);
        let mut buf = ReadBuf::new(&mut self.held[before..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut buf);
        let n = buf.filled().len();
        self.held.truncate(before + n);
        ready!(polled)?;
        Poll::Ready(Ok(n == 0))
    }

    /// Judges what is held.
    fn reconsider(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let read = self.read(&held);
        self.held = held;
        let (pass, step) = read?;
        self.passed = pass;
        self.count(pass);
        self.take(step, pass)
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<(usize, Step)> {
        match &mut self.judge {
            Judge::Requests(requests) => Ok(requests.read(bytes)),
            Judge::Responses(responses) => Ok(responses.read(bytes)),
            Judge::Frames(frames) => {
                let judged = frames.received(bytes, Instant::now());
                let waiting = frames.waiting() as u8;
                self.signals.waiting.store(waiting, Ordering::Relaxed);
                self.signals
                    .resets
                    .store(frames.resets(), Ordering::Relaxed);
                match judged {
                    Ok(()) => Ok((bytes.len(), Step::More)),
                    Err(glitch) => {
                        let goodbye = if frames.may_say_goodbye() {
                            http2::goaway(frames.last_stream(), glitch.error, glitch.rule)
                        } else {
                            Vec::new()
                        };
                        let _ = self.signals.spoil(glitch.rule);
                        self.state = State::Leaving(goodbye, 0);
                        // Nothing of it is passed on: hyper must not answer what we cut for.
                        Ok((0, Step::More))
                    }
                }
            }
        }
    }

    /// Acts on what a judge has said after the first `passed` bytes of what is held.
    fn take(&mut self, step: Step, passed: usize) -> io::Result<()> {
        let waiting = match step {
            Step::More => Waiting::Nothing,
            Step::Partial => Waiting::Head,
            Step::Held => {
                if let Judge::Requests(requests) = &self.judge {
                    let early = self.held.len() > passed;
                    self.signals.asks(requests.heads(), early);
                }
                self.state = State::Held;
                Waiting::Nothing
            }
            Step::Refused(refusal) => {
                let Judge::Requests(requests) = &self.judge else {
                    return Err(self.signals.spoil(refusal.rule));
                };
                self.held.truncate(passed);
                self.held.extend_from_slice(&requests.marker());
                self.passed = self.held.len();
                let refused = Some((requests.heads(), refusal));
                *self.signals.refused.lock() = refused;
                self.signals.spoilt.store(true, Ordering::Relaxed);
                self.state = State::Refused;
                Waiting::Nothing
            }
            Step::Broken(refusal) => {
                // Said once: who reads the body ends it, and then waits for the answer to end.
                self.passed = passed;
                self.state = State::Broken(refusal.rule);
                Waiting::Nothing
            }
        };
        if !matches!(self.judge, Judge::Frames(_)) {
            self.signals.waiting.store(waiting as u8, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The peer has said all that it will.
    fn end(&mut self) -> io::Result<()> {
        match (&self.judge, &self.state) {
            (Judge::Responses(responses), State::Open) => {
                responses.end().map_err(|refusal| broken_off(refusal.rule))
            }
            _ => Ok(()),
        }
    }

    /// While nobody knows whether the protocol switches: notices that the client leaves, and
    /// what it sends too early.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let switch = self.signals.switch.load(Ordering::Relaxed);
            if switch == Switch::Switched as u8 {
                self.state = State::Opaque;
                self.passed = self.held.len();
                return Poll::Ready(Ok(()));
            }
            if switch == Switch::Stays as u8 {
                if let Judge::Requests(requests) = &mut self.judge {
                    requests.resume(Resume::Http);
                }
                self.signals
                    .switch
                    .store(Switch::None as u8, Ordering::Relaxed);
                self.state = State::Open;
                return Poll::Ready(self.reconsider());
            }
            if self.held.len() >= MAX_EARLY {
                // Who knows the answer polls again.
                return Poll::Pending;
            }
            if ready!(self.poll_held(cx))? {
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            let early = Switch::Early as u8;
            self.signals.switch.store(early, Ordering::Relaxed);
        }
    }

    /// Says goodbye as far as the peer takes it, and ends.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let State::Leaving(goodbye, written) = &mut self.state else {
            return Poll::Ready(broken("ended"));
        };
        while *written < goodbye.len() {
            match Pin::new(&mut self.io).poll_write(cx, &goodbye[*written..]) {
                Poll::Ready(Ok(n)) if n > 0 => *written += n,
                // One that does not even read has no need to know.
                _ => break,
            }
        }
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        self.state = State::Ended;
        Poll::Ready(broken(self.signals.cut().unwrap_or("cut")))
    }

    /// Whether the client may still be sending what nobody will read.
    fn lingers(&self) -> bool {
        match &self.judge {
            Judge::Requests(requests) => {
                matches!(self.state, State::Refused | State::Held) || requests.is_within()
            }
            Judge::Responses(_) | Judge::Frames(_) => false,
        }
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (sleep, left) = self
            .linger
            .get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER)), MAX_LINGER));
        let mut waste = [0; CHUNK];
        loop {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && *left > 0 => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return sleep.as_mut().poll(cx),
            }
        }
    }

    /// Whether the request whose first bytes these are may be written.
    fn begins(&self, expected: &Expected, bytes: &[u8]) -> io::Result<()> {
        expected.writing(bytes);
        if expected.touch() && !self.io.is_quiet() {
            expected.untouched();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(Ok(n)) => {
                self.signals.written.fetch_add(*n as u64, Ordering::Relaxed);
                self.signals.block(WRITING, false);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.signals.block(WRITING, true),
        }
    }
}

fn broken(rule: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, rule)
}

fn broken_off(rule: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, rule)
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.give(buf) {
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Open if this.held.is_empty() => {
                    if ready!(this.poll_straight(cx, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Open => {
                    if ready!(this.poll_held(cx))? {
                        // In the middle of a head: the reader sees an end between two.
                        this.end()?;
                        return Poll::Ready(Ok(()));
                    }
                    this.reconsider()?;
                }
                State::Held => ready!(this.poll_early(cx))?,
                State::Broken(rule) => {
                    this.state = match this.judge {
                        Judge::Requests(_) => State::Refused,
                        Judge::Responses(_) | Judge::Frames(_) => State::Ended,
                    };
                    return Poll::Ready(Err(this.signals.spoil(rule)));
                }
                // The answer ends the connection.
                State::Refused => return Poll::Pending,
                State::Leaving(..) => return Poll::Ready(Err(ready!(this.poll_leave(cx)))),
                State::Opaque => {
                    return Pin::new(&mut this.io).poll_read(cx, buf);
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Judge::Responses(responses) = &this.judge {
            this.begins(responses.expected(), buf)?;
        }
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        if let (Judge::Frames(frames), Poll::Ready(Ok(n))) = (&mut this.judge, &polled) {
            frames.sent(&buf[..*n]);
        }
        this.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Judge::Responses(responses) = &this.judge {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            this.begins(responses.expected(), first.map_or(&[], |buf| buf))?;
        }
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        if let (Judge::Frames(frames), Poll::Ready(Ok(n))) = (&mut this.judge, &polled) {
            let mut left = *n;
            for buf in bufs {
                let of = left.min(buf.len());
                frames.sent(&buf[..of]);
                left -= of;
            }
        }
        this.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.signals.block(FLUSHING, polled.is_pending());
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_shutdown(cx);
        this.signals.block(FLUSHING, polled.is_pending());
        let polled = ready!(polled);
        if polled.is_ok() && this.lingers() {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(polled)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::{Guarded, Requests, Signals};
    use crate::{limits::Limits, memory::Account};

    #[tokio::test]
    async fn a_body_counts_until_it_has_gone_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let account = Arc::new(Account::default());
        let requests = Requests::new((&Limits::default()).into());
        let guarded = Guarded::requests(server.into(), requests, Arc::<Signals>::default());
        let mut guarded = guarded.on(account.clone());

        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2000\r\n\r\n";
        for (bytes, kept) in [(&head[..], true), (&[0; 1000], true), (&[0; 1000], false)] {
            client.write_all(bytes).await.unwrap();
            let mut read = vec![0; bytes.len()];
            guarded.read_exact(&mut read).await.unwrap();
            assert_eq!(read, bytes);
            let expected = if kept { bytes.len() } else { 0 };
            assert_eq!(account.bytes(), expected, "what came last");
            // Whoever asks for more has got rid of it.
            let more = AsyncReadExt::read(&mut guarded, &mut read);
            let more = timeout(Duration::from_millis(10), more);
            more.await.unwrap_err();
            assert_eq!(account.bytes(), 0);
        }
        client.write_all(&head[..10]).await.unwrap();
        drop(guarded);
        assert_eq!(account.bytes(), 0);
    }
}
