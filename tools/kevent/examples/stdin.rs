// SPDX-License-Identifier: MIT
//! The shortest event loop: tells when there is something on standard input.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;

use kevent::{interest, Change, Queue, Registration};

fn main() -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let queue = Queue::new(1)?;
    let mut ring = queue.ring();
    // Level-triggered, so one read for each event does, and need not find the end.
    let what = Registration::file(&input, interest::IN).level();
    queue.apply(Change::add(what.user_data(1)))?;
    loop {
        let events = match ring.poll(None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            events => events?,
        };
        for event in events {
            println!("source {} is ready: {:#x}", event.user_data, event.value);
            match input.read(&mut [0; 4096]) {
                Ok(0) => return Ok(()),
                Ok(len) => println!("{len} bytes"),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
