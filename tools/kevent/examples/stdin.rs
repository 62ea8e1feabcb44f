// SPDX-License-Identifier: MIT
//! The shortest event loop: tells when there is something on standard input.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;

use kevent::{interest, Queue};

fn main() -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let queue = Queue::new(1)?;
    let mut ring = queue.ring();
    queue.add(&input, interest::IN, 1)?;
    loop {
        for event in ring.poll(None)? {
            println!("source {} is ready: {:#x}", event.user_data, event.value);
            // An edge: take all there is, as no further event tells of it.  (A
            // real program makes the descriptor non-blocking and goes on until
            // it would block.)
            let ended = event.value & interest::HUP != 0;
            let mut buffer = [0; 4096];
            loop {
                match input.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(len) => println!("{len} bytes"),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
                if !ended {
                    break;
                }
            }
        }
    }
}
