// SPDX-License-Identifier: MIT
//! One run of the server and its clients on one back-end.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, Context, Result};
use rustix::net::{sockopt, AddressFamily, SocketFlags, SocketType};

use crate::backend::{Epoll, KeventRing, Kind};
use crate::client::{self, Load, Moment};
use crate::server::{Job, Server, Tally};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Connections that are open at the same time.
    pub connections: usize,
    /// Threads that drive them.
    pub clients: usize,
    /// What is sent on each.
    pub load: Load,
}

impl Plan {
    /// Requests in all.
    pub fn requests(&self) -> u64 {
        (self.connections * self.load.requests) as u64
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Trial {
    /// The back-end.
    pub kind: Kind,
    /// Requests that were echoed.
    pub echoed: u64,
    /// What was lost: requests that were not echoed, bytes that were wrong, and
    /// connections whose end the server did not notice.
    pub lost: u64,
    /// What the server counted.
    pub tally: Tally,
    /// From the first request to the last reply: the time, and how long this
    /// process had a CPU in it.
    pub took: Option<(Duration, Duration)>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// A non-blocking socket that listens on a free port of the loopback interface.
fn listen() -> Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
    rustix::net::bind(&socket, &address)?;
    // The clients connect faster than a slow server accepts.
    rustix::net::listen(&socket, 4096)?;
    Ok(TcpListener::from(socket))
}

fn serve(
    kind: Kind,
    listener: &TcpListener,
    job: Job,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<Tally> {
    match kind {
        Kind::Kevent => {
            let ring = KeventRing::new(job.connections as u32 + 1)?;
            Server::new(ring, listener, job)?.run(stop, ready)
        }
        Kind::EpollEdge | Kind::EpollLevel => {
            let epoll = Epoll::new(kind == Kind::EpollLevel)?;
            Server::new(epoll, listener, job)?.run(stop, ready)
        }
    }
}

/// Runs server and clients.  What the load meets is in the result; an error is
/// something that prevented the run.
pub fn run(kind: Kind, plan: Plan) -> Result<Trial> {
    let stall = plan.load.stall;
    let listener = listen().context("cannot listen on the loopback interface")?;
    let address = listener.local_addr()?;
    let job = Job {
        connections: plan.connections,
        bytes: plan.requests() * plan.load.size as u64,
    };

    let stop = Arc::new(AtomicBool::new(false));
    let (ready_tx, ready) = mpsc::channel();
    let (result_tx, result) = mpsc::channel();
    let server_stop = Arc::clone(&stop);
    let server = thread::Builder::new().name("server".into());
    server.spawn(move || {
        let ready = move || ready_tx.send(()).unwrap_or_default();
        // If nobody is waiting any more, it has been reported.
        let _ = result_tx.send(serve(kind, &listener, job, &server_stop, ready));
    })?;

    let mut clients = Vec::new();
    for i in 0..plan.clients {
        let share = |i: usize| i * plan.connections / plan.clients;
        let numbers = share(i)..share(i + 1);
        let (go_tx, go) = mpsc::channel();
        let client = thread::Builder::new().name(format!("client{i}"));
        let load = plan.load;
        let handle = client.spawn(move || client::run(address, numbers, load, &go))?;
        clients.push((go_tx, handle));
    }

    let mut failures = Vec::new();
    let start = Moment::now();
    let start = match ready.recv_timeout(stall) {
        Ok(()) => {
            let start = Moment::now();
            for (go, _) in &clients {
                let _ = go.send(()); // One that failed tells so when it is joined.
            }
            start
        }
        Err(RecvTimeoutError::Timeout) => {
            failures.push("server: not all connections arrived".into());
            start
        }
        Err(RecvTimeoutError::Disconnected) => start,
    };

    let mut echoed = 0;
    let mut wrong = 0;
    let mut ends = Vec::new();
    for (i, (go, handle)) in clients.into_iter().enumerate() {
        drop(go);
        let outcome = handle.join().map_err(|_| anyhow!("client {i} crashed"))?;
        echoed += outcome.echoed;
        wrong += outcome.wrong;
        ends.push(outcome.end);
        failures.extend(outcome.failure.map(|why| format!("client {i}: {why}")));
    }
    stop.store(true, Ordering::Relaxed);
    let tally = match result.recv_timeout(stall) {
        Ok(Ok(tally)) => tally,
        Ok(Err(error)) => {
            failures.push(format!("server: {error:#}"));
            Tally::default()
        }
        Err(_) => {
            failures.push("server: it did not come to an end".into());
            Tally::default()
        }
    };
    if failures.is_empty() && tally.bytes != job.bytes {
        failures.push(format!(
            "server: it echoed {} bytes and not {}",
            tally.bytes, job.bytes
        ));
    }
    if tally.unclosed > 0 {
        failures.push(format!(
            "server: the end of {} connections was not noticed",
            tally.unclosed
        ));
    }

    // If all came to an end, the last of them is the end of the phase.
    let ends: Option<Vec<Moment>> = ends.into_iter().collect();
    let took = ends
        .unwrap_or_default()
        .into_iter()
        .max_by_key(|end| end.time)
        .map(|end| (end.time - start.time, end.cpu - start.cpu));
    Ok(Trial {
        kind,
        echoed,
        lost: plan.requests() - echoed + wrong + tally.unclosed,
        tally,
        took,
        failures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(connections: usize, requests: usize, size: usize) -> Plan {
        Plan {
            connections,
            clients: 2,
            load: Load {
                requests,
                size,
                ahead: 1,
                stall: Duration::from_secs(10),
            },
        }
    }

    fn must_succeed(kind: Kind, plan: Plan) -> Trial {
        let trial = run(kind, plan).unwrap();
        assert!(trial.failures.is_empty(), "{:?}", trial.failures);
        assert_eq!(trial.lost, 0);
        assert_eq!(trial.echoed, plan.requests());
        assert!(trial.tally.events > 0);
        assert!(trial.tally.collects > 0);
        assert!(trial.took.is_some());
        trial
    }

    #[test]
    fn epoll_echoes() {
        for kind in [Kind::EpollEdge, Kind::EpollLevel] {
            must_succeed(kind, plan(20, 10, 128));
        }
    }

    #[test]
    fn kevent_echoes_where_there_is_kevent() {
        if kevent::available() {
            let trial = must_succeed(Kind::Kevent, plan(20, 10, 128));
            assert_eq!(trial.tally.blind, 0);
        } else {
            let trial = run(Kind::Kevent, plan(2, 1, 1)).unwrap();
            assert_eq!(trial.lost, 2);
            assert!(trial
                .failures
                .iter()
                .any(|failure| failure.contains("this kernel has no kevent")));
        }
    }

    /// A peer that sends and does not read: the server must keep what it cannot
    /// write, and go on when there is room.
    #[test]
    fn what_cannot_be_written_is_kept() {
        use std::io::{Read, Write};

        const BYTES: usize = 32 << 20;
        let mut kinds = vec![Kind::EpollEdge, Kind::EpollLevel];
        kinds.extend(kevent::available().then_some(Kind::Kevent));
        for kind in kinds {
            let listener = listen().unwrap();
            let address = listener.local_addr().unwrap();
            let job = Job {
                connections: 1,
                bytes: BYTES as u64,
            };
            let stop = Arc::new(AtomicBool::new(false));
            let server = thread::spawn(move || serve(kind, &listener, job, &stop, || ()));

            let mut writer = std::net::TcpStream::connect(address).unwrap();
            let mut reader = writer.try_clone().unwrap();
            let sent: Vec<u8> = (0..BYTES).map(|i| (i * 7 + (i >> 12)) as u8).collect();
            let copy = sent.clone();
            let write = thread::spawn(move || {
                writer.write_all(&copy).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            thread::sleep(Duration::from_millis(300));
            assert!(!write.is_finished(), "the buffers are too large for this");
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            write.join().unwrap();
            assert!(sent == received, "{kind:?}");
            let tally = server.join().unwrap().unwrap();
            assert_eq!(tally.bytes, BYTES as u64);
            assert_eq!(tally.unclosed, 0);
        }
    }
}
