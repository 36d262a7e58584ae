//! The same kind of frames, again and again, until the other side has had enough.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::frame::PING;
use super::{Frame, Goodbye, Peer};
use crate::raw1::End;
use crate::within;

/// What the attacker reads while it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Everything, as it comes. Frames in the buffers of the kernel count as sent.
    All,
    /// Nothing, until it can write no more.
    Nothing,
    /// After so many frames it waits until they were read: a PING and its answer. So the count
    /// of frames sent is exact to so many.
    Every(u64),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flood {
    /// Frames that were written, without PINGs of [`Reading::Every`].
    pub frames: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// How it ended. [`End::Open`]: all were written and the connection is still there.
    pub goodbye: Goodbye,
    /// How long it took.
    pub took: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Writes the frames that `next` gives for 0, 1, ... until it gives none or the other side
    /// ends the connection; then listens for what it has to say. What is read meanwhile is kept
    /// and answered only with [`Reading::Every`]; what is said at the end, in any case.
    pub async fn flood(
        &mut self,
        reading: Reading,
        mut next: impl FnMut(u64) -> Option<Vec<Frame>>,
    ) -> Flood {
        const BATCH: usize = 16 << 10;
        let started = Instant::now();
        let (mut frames, mut bytes, mut step, mut since) = (0_u64, 0_u64, 0, 0);
        let mut is_open = true;
        let mut is_more = true;
        while is_open && is_more {
            let (mut batch, mut count) = (Vec::new(), 0);
            while batch.len() < BATCH && !matches!(reading, Reading::Every(n) if since + count >= n)
            {
                let Some(more) = next(step) else {
                    is_more = false;
                    break;
                };
                step += 1;
                count += more.len() as u64;
                more.iter().for_each(|frame| frame.write(&mut batch));
            }
            let written = match reading {
                Reading::All => self.write_and_read(&batch).await,
                Reading::Nothing | Reading::Every(_) => self.write(&batch).await,
            };
            is_open = written.is_ok();
            if is_open {
                frames += count;
                bytes += batch.len() as u64;
                since += count;
            }
            if let Reading::Every(n) = reading
                && since >= n
                && is_open
            {
                since = 0;
                is_open = self.ping(step).await.is_ok();
            }
        }
        let goodbye = match is_open {
            // Nothing is known to be wrong: one round trip, and it is still there.
            true if self.ping(u64::MAX).await.is_ok() => Goodbye {
                goaway: self.goaway.clone(),
                end: End::Open,
            },
            _ => self.goodbye().await,
        };
        Flood {
            frames,
            bytes,
            goodbye,
            took: started.elapsed(),
        }
    }

    /// Writes, and meanwhile reads into the buffer whatever comes. An error at the end.
    async fn write_and_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let buffer = &mut self.buffer;
        let reading = async {
            loop {
                if reader.read_buf(buffer).await? == 0 {
                    return Err::<(), io::Error>(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let writing = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        let both = async {
            tokio::select! {
                written = writing => written,
                ended = reading => ended,
            }
        };
        within(self.patience, "a write", both).await??;
        // Only the last of what is said matters: answers to PINGs would pile up.
        while let Some(frame) = Frame::take(&mut self.buffer) {
            if frame.kind != PING {
                self.note(&frame)?;
            }
        }
        Ok(())
    }
}
