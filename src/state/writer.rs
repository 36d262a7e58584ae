//! Writes files on a thread of its own: a slow disk holds nobody up.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::Duration,
};

use super::Directory;

/// Files that wait to be written.
const QUEUE: usize = 4;

/// What makes a payload; run on the writing thread.
type Make = Box<dyn FnOnce() -> Vec<u8> + Send>;

enum Task {
    Write(&'static str, Make),
    /// Everything before it has been written when this is dropped.
    Flush(SyncSender<()>),
}

/// The thread that writes. Ends when this is dropped, after what is in the queue.
#[derive(Clone, Debug)]
pub struct Writer(SyncSender<Task>);

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Writer {
    /// Starts the thread. `report` gets the result of each write.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        directory: Directory,
        report: impl FnMut(&str, io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, tasks) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || write_all(&directory, &tasks, report))?;
        Ok(Self(sender))
    }

    /// Has a file written. False if the disk is so slow that others wait still: try again
    /// later.
    #[must_use]
    pub fn write(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> bool {
        let task = Task::Write(name, Box::new(make));
        !matches!(self.0.try_send(task), Err(TrySendError::Full(_)))
    }

    /// Waits until everything has been written, at most for `time`. Blocks.
    pub fn flush(&self, time: Duration) {
        let (done, waiting) = sync_channel(1);
        if self.0.try_send(Task::Flush(done)).is_ok() {
            let _ = waiting.recv_timeout(time);
        }
    }
}

fn write_all(
    directory: &Directory,
    tasks: &Receiver<Task>,
    mut report: impl FnMut(&str, io::Result<()>),
) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Write(name, make) => report(name, directory.write(name, &make())),
            Task::Flush(done) => drop(done.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::{QUEUE, Writer};
    use crate::state::Directory;

    #[test]
    fn files_are_written_in_order_and_a_full_queue_is_told() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let (tell, told) = channel();
        let writer = Writer::start(directory.clone(), move |name, result| {
            tell.send((name.to_owned(), result.is_ok())).unwrap();
        })
        .unwrap();
        let (go, gate) = channel::<()>();
        assert!(writer.write("config", move || {
            gate.recv().unwrap();
            b"first".to_vec()
        }));
        let mut taken = 0;
        while taken <= QUEUE + 1 && writer.write("config", || b"last".to_vec()) {
            taken += 1;
        }
        assert!(taken <= QUEUE + 1, "the queue has an end");
        go.send(()).unwrap();
        let patience = Duration::from_secs(10);
        for _ in 0..=taken {
            let result = told.recv_timeout(patience).unwrap();
            assert_eq!(result, ("config".to_owned(), true));
        }
        assert!(writer.write("config", || b"flushed".to_vec()));
        writer.flush(patience);
        assert_eq!(directory.read("config").unwrap().unwrap(), b"flushed");
    }
}
