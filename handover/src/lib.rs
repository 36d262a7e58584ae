//! Listening sockets that outlive a process: passing them on, taking them from systemd, and
//! telling a supervisor how far a start has come.
