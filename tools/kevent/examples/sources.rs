// SPDX-License-Identifier: MIT
//! A file, a timer and an event of another thread's, until the end of standard
//! input.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use kevent::{interest, Change, Event, Name, Queue, Registration, Timer};

const INPUT: u64 = 1;
const TICK: u64 = 2;
const HELPER: u64 = 3;

fn main() -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let queue = Queue::new(4)?;
    let mut ring = queue.ring();
    let second = Timer::every(Duration::from_secs(1));
    for what in [
        // Reported as long as there is something: a part of it may be read.
        Registration::file(&input, interest::IN)
            .level()
            .user_data(INPUT),
        Registration::timer(0, second).user_data(TICK),
        Registration::counter(0).one_shot().user_data(HELPER),
    ] {
        queue.apply(Change::add(what))?;
    }
    let helper = thread::spawn({
        let queue = queue.clone();
        move || queue.apply(Change::count(Name::user(0), 42))
    });

    loop {
        let events: Vec<Event> = match ring.poll(None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            events => events?.collect(),
        };
        for event in events {
            match event.user_data {
                INPUT => match input.read(&mut [0; 16])? {
                    0 => return helper.join().expect("the helper does not panic"),
                    len => println!("{len} bytes"),
                },
                TICK => println!("{} s", event.count()),
                _ => println!("the helper says {}", event.count()),
            }
        }
    }
}
