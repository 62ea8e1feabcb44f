// SPDX-License-Identifier: MIT
//! The echo server: one thread, one loop, over any back-end.
//!
//! Correct for edge-triggered events: it accepts and reads until that would
//! block, keeps what could not be written, and reads on after that was written.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::SocketFlags;

use crate::backend::{Backend, Ready};

/// The token of the listening socket; connection i has token i + 1.
const LISTENER: u64 = 0;

/// After so long without an event the server looks whether it is still needed.
const IDLE: Duration = Duration::from_secs(1);

/// What the server counted, from when all connections stood to when it had sent
/// the last byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Events collected.
    pub events: u64,
    /// System calls made to collect them.
    pub collects: u64,
    /// Of these, those that were made without knowing that there was nothing to
    /// be had without.
    pub blind: u64,
    /// How often the thread went to sleep, if the system tells.  It does nothing
    /// that sleeps but collecting.
    pub sleeps: Option<u64>,
    /// Reads and writes.
    pub transfers: u64,
    /// Bytes echoed.
    pub bytes: u64,
    /// Connections whose end was not noticed.
    pub unclosed: u64,
}

/// What the server is to do.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// It waits for so many connections, and ends when they are closed.
    pub connections: usize,
    /// How many bytes are to be echoed in all.
    pub bytes: u64,
}

struct Connection {
    stream: TcpStream,
    /// There may be something to read.
    readable: bool,
    /// Read, and not written yet.
    pending: Vec<u8>,
}

enum Progress {
    Open,
    Closed,
}

/// The server.
pub struct Server<'a, B> {
    backend: B,
    listener: &'a TcpListener,
    job: Job,
    connections: Vec<Option<Connection>>,
    open: usize,
    buffer: Vec<u8>,
    transfers: u64,
    events: u64,
    bytes: u64,
}

impl<'a, B: Backend> Server<'a, B> {
    /// Watches the listening socket, which must be non-blocking.
    pub fn new(mut backend: B, listener: &'a TcpListener, job: Job) -> Result<Self> {
        backend
            .add(listener.as_fd(), LISTENER)
            .context("cannot watch the listening socket")?;
        Ok(Self {
            backend,
            listener,
            job,
            connections: Vec::with_capacity(job.connections),
            open: 0,
            buffer: vec![0; 16 * 1024],
            transfers: 0,
            events: 0,
            bytes: 0,
        })
    }

    /// Serves until all connections have come and gone.  `ready` is called when
    /// all have come; after `stop` is set, silence is the end.
    pub fn run(mut self, stop: &AtomicBool, ready: impl FnOnce()) -> Result<Tally> {
        let mut batch = Vec::new();
        while self.connections.len() < self.job.connections {
            self.turn(IDLE, &mut batch)?;
            if batch.is_empty() && stop.load(Ordering::Relaxed) {
                anyhow::bail!(
                    "only {} of {} connections arrived",
                    self.connections.len(),
                    self.job.connections
                );
            }
        }
        // What came with the connections is not part of the phase.
        loop {
            self.turn(Duration::ZERO, &mut batch)?;
            if batch.is_empty() {
                break;
            }
        }
        let start = self.tally();
        ready();

        let mut end = None;
        while self.open > 0 {
            self.turn(IDLE, &mut batch)?;
            if end.is_none() && self.bytes >= self.job.bytes {
                end = Some(self.tally());
            }
            if batch.is_empty() && stop.load(Ordering::Relaxed) {
                break;
            }
        }
        let end = end.unwrap_or_else(|| self.tally());
        Ok(Tally {
            events: end.events - start.events,
            collects: end.collects - start.collects,
            blind: end.blind - start.blind,
            sleeps: end.sleeps.zip(start.sleeps).map(|(end, start)| end - start),
            transfers: end.transfers - start.transfers,
            bytes: self.bytes,
            unclosed: self.open as u64,
        })
    }

    fn tally(&self) -> Tally {
        let calls = self.backend.calls();
        Tally {
            events: self.events,
            collects: calls.all,
            blind: calls.blind,
            sleeps: sleeps(),
            transfers: self.transfers,
            bytes: self.bytes,
            unclosed: 0,
        }
    }

    fn turn(&mut self, timeout: Duration, batch: &mut Vec<Ready>) -> Result<()> {
        match self.backend.poll(timeout, batch) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result.context("cannot collect events")?,
        }
        self.events += batch.len() as u64;
        for event in batch.iter() {
            if event.token == LISTENER {
                self.accept()?;
            } else {
                self.serve(event)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let stream = match rustix::net::accept_with(self.listener, flags) {
                Ok(fd) => TcpStream::from(fd),
                Err(error) => match io::Error::from(error).kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => return Err(error).context("cannot accept a connection"),
                },
            };
            stream.set_nodelay(true)?;
            let token = self.connections.len() as u64 + 1;
            self.backend
                .add(stream.as_fd(), token)
                .context("cannot watch a connection")?;
            self.connections.push(Some(Connection {
                stream,
                readable: false,
                pending: Vec::new(),
            }));
            self.open += 1;
        }
    }

    fn serve(&mut self, event: &Ready) -> Result<()> {
        let place = &mut self.connections[event.token as usize - 1];
        let Some(connection) = place else {
            return Ok(()); // It was closed earlier in this batch.
        };
        connection.readable |= event.readable;
        let blocked = !connection.pending.is_empty();
        if blocked && !event.writable {
            return Ok(()); // A read would have no place to go.
        }
        let progress = connection
            .echo(&mut self.buffer, &mut self.transfers, &mut self.bytes)
            .unwrap_or(Progress::Closed); // The peer is gone, which the client tells.
        match progress {
            Progress::Closed => {
                *place = None; // This ends the registration too.
                self.open -= 1;
            }
            Progress::Open => {
                let blocks = !connection.pending.is_empty();
                if blocks != blocked {
                    let fd = connection.stream.as_fd();
                    self.backend.want_write(fd, event.token, blocks)?;
                }
            }
        }
        Ok(())
    }
}

impl Connection {
    /// Echoes until reading or writing would block.
    fn echo(
        &mut self,
        buffer: &mut [u8],
        calls: &mut u64,
        bytes: &mut u64,
    ) -> io::Result<Progress> {
        loop {
            while !self.pending.is_empty() {
                *calls += 1;
                match self.stream.write(&self.pending) {
                    Ok(len) => {
                        *bytes += len as u64;
                        self.pending.drain(..len);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Ok(Progress::Open)
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if !self.readable {
                return Ok(Progress::Open);
            }

            *calls += 1;
            let len = match self.stream.read(buffer) {
                Ok(0) => return Ok(Progress::Closed),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(Progress::Open);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            *calls += 1;
            let written = match self.stream.write(&buffer[..len]) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            *bytes += written as u64;
            self.pending.extend_from_slice(&buffer[written..len]);
        }
    }
}

/// How often this thread has gone to sleep, or None without /proc.
fn sleeps() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}
