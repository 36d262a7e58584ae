//! The demo's message queue: a line protocol over raw TCP in which the server speaks first, so
//! that the mesh has something to carry that it cannot detect.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::apps::{MAX_BODY_BYTES, READY};

/// Sends one message to the queue over a connection of its own.
///
/// # Errors
///
/// The queue cannot be reached, or does not speak the protocol.
pub(super) async fn publish(queue: SocketAddr, topic: &str, message: &str) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(queue).await?);
    // The server speaks first: nothing is sent before its greeting is here.
    expect(&mut stream, "HELLO").await?;
    let command = format!("PUB {topic} {}\r\n{message}", message.len());
    stream.write_all(command.as_bytes()).await?;
    expect(&mut stream, "OK").await?;
    stream.write_all(b"QUIT\r\n").await?;
    expect(&mut stream, "BYE").await
}

async fn expect(stream: &mut (impl AsyncBufRead + Unpin), word: &str) -> io::Result<()> {
    let line = read_line(stream)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    if line.split(' ').next() == Some(word) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("expected {word}, got `{line}`"),
    ))
}

/// A line of at most 1 KiB without its end; none at the end of the stream.
pub(super) async fn read_line(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<String>> {
    let mut line = String::new();
    if stream.take(MAX_LINE_BYTES).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    match line.strip_suffix('\n') {
        Some(text) => Ok(Some(text.trim_end_matches('\r').to_owned())),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a line is too long or cut off",
        )),
    }
}

/// A command of the queue's line protocol. The server greets with `HELLO weft-queue`.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    /// `PUB <topic> <length>`, then that many bytes: `OK <depth>`.
    Publish { topic: String, bytes: usize },
    /// `GET <topic>`: `MSG <length>` and the oldest message, or `NONE`.
    Next { topic: String },
    /// `QUIT`: `BYE`.
    Quit,
}

impl Command {
    fn parse(line: &str) -> Result<Self, &'static str> {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["PUB", topic, bytes] if !topic.is_empty() => {
                let bytes = bytes.parse().map_err(|_| "the length is no number")?;
                if bytes > MAX_BODY_BYTES {
                    return Err("a message is at most 64 KiB");
                }
                Ok(Self::Publish {
                    topic: topic.to_owned(),
                    bytes,
                })
            }
            ["GET", topic] if !topic.is_empty() => Ok(Self::Next {
                topic: topic.to_owned(),
            }),
            ["QUIT"] => Ok(Self::Quit),
            _ => Err("expected PUB <topic> <length>, GET <topic> or QUIT"),
        }
    }
}

type Topics = Mutex<BTreeMap<String, VecDeque<Vec<u8>>>>;

/// Serves the queue until the process ends.
///
/// # Errors
///
/// The listener fails.
pub(super) async fn serve(listener: TcpListener) -> io::Result<()> {
    println!("{READY}");
    let topics = Arc::new(Topics::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let topics = Arc::clone(&topics);
        tokio::spawn(async move {
            let _ = serve_client(BufReader::new(stream), &topics).await;
        });
    }
}

async fn serve_client(mut stream: BufReader<TcpStream>, topics: &Topics) -> io::Result<()> {
    stream.write_all(b"HELLO weft-queue\r\n").await?;
    while let Some(line) = read_line(&mut stream).await? {
        let reply = match Command::parse(&line) {
            Ok(Command::Publish { topic, bytes }) => {
                let mut message = vec![0; bytes];
                stream.read_exact(&mut message).await?;
                enqueue(topics, topic, message).into_bytes()
            }
            Ok(Command::Next { topic }) => dequeue(topics, &topic),
            Ok(Command::Quit) => {
                stream.write_all(b"BYE\r\n").await?;
                return stream.shutdown().await;
            }
            Err(reason) => format!("ERR {reason}\r\n").into_bytes(),
        };
        stream.write_all(&reply).await?;
    }
    Ok(())
}

/// Keeps the latest messages of a topic.
fn enqueue(topics: &Topics, topic: String, message: Vec<u8>) -> String {
    let mut topics = topics.lock();
    if !topics.contains_key(&topic) && topics.len() >= MAX_TOPICS {
        return "ERR too many topics\r\n".to_owned();
    }
    let queue = topics.entry(topic).or_default();
    if queue.len() == MAX_MESSAGES {
        queue.pop_front();
    }
    queue.push_back(message);
    format!("OK {}\r\n", queue.len())
}

fn dequeue(topics: &Topics, topic: &str) -> Vec<u8> {
    let message = topics.lock().get_mut(topic).and_then(VecDeque::pop_front);
    message.map_or_else(
        || b"NONE\r\n".to_vec(),
        |message| [format!("MSG {}\r\n", message.len()).as_bytes(), &message].concat(),
    )
}

const MAX_LINE_BYTES: u64 = 1 << 10;
const MAX_MESSAGES: usize = 1_000;
const MAX_TOPICS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_commands() {
        let publish = Command::Publish {
            topic: "a".to_owned(),
            bytes: 3,
        };
        for (line, expect) in [
            ("PUB a 3", Ok(publish)),
            (
                "GET a",
                Ok(Command::Next {
                    topic: "a".to_owned(),
                }),
            ),
            ("QUIT", Ok(Command::Quit)),
            ("PUB a x", Err("the length is no number")),
            ("PUB a 65537", Err("a message is at most 64 KiB")),
            (
                "PUB  3",
                Err("expected PUB <topic> <length>, GET <topic> or QUIT"),
            ),
            (
                "",
                Err("expected PUB <topic> <length>, GET <topic> or QUIT"),
            ),
        ] {
            assert_eq!(Command::parse(line), expect, "{line}");
        }
    }

    #[test]
    fn a_topic_keeps_the_latest_messages() {
        let topics = Topics::default();
        for number in 0..=MAX_MESSAGES {
            enqueue(&topics, "t".to_owned(), number.to_string().into_bytes());
        }
        assert_eq!(dequeue(&topics, "t"), b"MSG 1\r\n1");
        for number in 1..MAX_TOPICS {
            assert_eq!(enqueue(&topics, number.to_string(), vec![]), "OK 1\r\n");
        }
        assert_eq!(
            enqueue(&topics, "more".to_owned(), vec![]),
            "ERR too many topics\r\n"
        );
    }
}
