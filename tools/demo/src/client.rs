// SPDX-License-Identifier: MIT
//! The client: drives many connections at once and checks every byte.
//!
//! A thread goes around its connections; on each it sends a request and then
//! reads the reply to an earlier one, so that while it waits for a reply there
//! are requests on all the other connections for the server to work on.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::time::{clock_gettime, ClockId};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests on each connection.
    pub requests: usize,
    /// Bytes of a request.
    pub size: usize,
    /// How many requests are under way on a connection when its next one is
    /// sent.
    pub ahead: usize,
    /// So long without a byte is a failure.
    pub stall: Duration,
}

/// What a client saw.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were echoed, whatever the bytes.
    pub echoed: u64,
    /// Bytes that were not those sent, and bytes too many.
    pub wrong: u64,
    /// Why it gave up, if it did.
    pub failure: Option<String>,
    /// When it had the last byte.
    pub end: Option<Moment>,
}

/// A point of time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub time: Instant,
    /// How long this process has had a CPU until then.
    pub cpu: Duration,
}

impl Moment {
    /// This very moment.
    pub fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            time: Instant::now(),
            cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32),
        }
    }
}

/// The byte that a connection sends at an offset.
fn pattern(connection: usize, offset: usize) -> u8 {
    (offset
        .wrapping_mul(31)
        .wrapping_add(offset >> 8)
        .wrapping_add(connection.wrapping_mul(101))) as u8
}

fn fill(connection: usize, offset: usize, buffer: &mut [u8]) {
    for (i, byte) in buffer.iter_mut().enumerate() {
        *byte = pattern(connection, offset + i);
    }
}

/// How many bytes are wrong.
fn check(connection: usize, offset: usize, buffer: &[u8]) -> u64 {
    let wrong = |&(i, &byte): &(usize, &u8)| byte != pattern(connection, offset + i);
    buffer.iter().enumerate().filter(wrong).count() as u64
}

/// Connects, waits for `go`, and sends the load on connections `numbers`.
pub fn run(
    server: SocketAddr,
    numbers: std::ops::Range<usize>,
    load: Load,
    go: &Receiver<()>,
) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = drive(server, numbers, load, go, &mut outcome) {
        outcome.failure = Some(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("nothing happened for {} s", load.stall.as_secs())
            }
            _ => error.to_string(),
        });
    }
    outcome
}

fn drive(
    server: SocketAddr,
    numbers: std::ops::Range<usize>,
    load: Load,
    go: &Receiver<()>,
    outcome: &mut Outcome,
) -> io::Result<()> {
    let mut streams = Vec::with_capacity(numbers.len());
    for number in numbers {
        let stream = TcpStream::connect_timeout(&server, load.stall)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(load.stall))?;
        stream.set_write_timeout(Some(load.stall))?;
        streams.push((number, stream));
    }
    match go.recv_timeout(load.stall) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => return Err(ErrorKind::TimedOut.into()),
        Err(RecvTimeoutError::Disconnected) => {
            return Err(io::Error::other("the server never got ready"));
        }
    }

    let mut buffer = vec![0; load.size];
    for round in 0..load.requests + load.ahead {
        for (number, stream) in &mut streams {
            if round < load.requests {
                fill(*number, round * load.size, &mut buffer);
                stream.write_all(&buffer)?;
            }
            if round >= load.ahead {
                stream.read_exact(&mut buffer)?;
                let offset = (round - load.ahead) * load.size;
                outcome.wrong += check(*number, offset, &buffer);
                outcome.echoed += 1;
            }
        }
    }
    outcome.end = Some(Moment::now());

    for (_, stream) in &mut streams {
        stream.shutdown(Shutdown::Write)?;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                extra => outcome.wrong += extra as u64,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_noticed() {
        let mut buffer = [0; 1000];
        fill(3, 500, &mut buffer);
        assert_eq!(check(3, 500, &buffer), 0);
        buffer[7] ^= 1;
        assert_eq!(check(3, 500, &buffer), 1);
        // Bytes of another connection, or of another place, are wrong.
        assert!(check(4, 500, &buffer) > 900);
        assert!(check(3, 628, &buffer) > 900);
    }
}
