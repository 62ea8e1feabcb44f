// SPDX-License-Identifier: MIT
//! What the layout of a ring costs on two CPUs: the kernel's `rust/kevent/ring.rs`,
//! compiled for the host, beside rings with a head and a tail.
//!
//! ```text
//! ring-bench [ROUNDS]
//! ```
//!
//! Times are only compared within a round, in which each ring has its turn: the
//! ratios that are printed are the quartiles of the rounds' ratios to the kernel's
//! ring with slots of 32 bytes.  A turn is a fraction of a millisecond and there are
//! many rounds, so that on a machine that does something else as well most turns are
//! not disturbed.  Every event is checked for.

mod rings;

// The kernel's style is not to be judged here.
#[path = "../../../rust/kevent/ring.rs"]
#[rustfmt::skip]
#[allow(dead_code, missing_docs, clippy::all)]
mod ring;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Instant;

use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

use rings::{Consumer, Producer, Sides};

const SLOTS: u32 = 1024;
const ROUNDS: usize = 400;

/// A ring: its name, the bytes of an entry, and how it is made for some consumers.
type Design = (&'static str, usize, fn(u32, usize) -> Sides);

const DESIGNS: [Design; 10] = [
    ("owner in the entry", 16, rings::owner::<2>),
    ("owner in the entry", 32, rings::owner::<4>),
    ("owner in the entry", 64, rings::owner::<8>),
    ("head and tail in one line", 16, rings::head_tail::<2, 1>),
    ("head and tail in one line", 32, rings::head_tail::<4, 1>),
    ("head and tail in one line", 64, rings::head_tail::<8, 1>),
    ("head and tail in two lines", 16, rings::head_tail::<2, 2>),
    ("head and tail in two lines", 32, rings::head_tail::<4, 2>),
    ("as io_uring's", 16, rings::completion::<2>),
    ("as io_uring's", 32, rings::completion::<4>),
];
/// The index of what the others are compared with: the kernel's.
const OURS: usize = 1;

/// A load: its name, what it is, and how long an event takes of it, in ns.
type Load = (
    &'static str,
    &'static str,
    fn(Sides, [usize; 2]) -> f64,
    usize,
);

const LOADS: [Load; 6] = [
    (
        "busy, 1 consumer",
        "the producer posts as fast as it can, the consumer is on the other CPU",
        busy,
        1,
    ),
    (
        "busy, 2 consumers",
        "the same, two consumers share the other CPU",
        busy,
        2,
    ),
    (
        "nearly idle, 1 consumer",
        "an event is posted when the one before was taken: there and back",
        idle,
        1,
    ),
    (
        "nearly idle, 2 consumers",
        "the same, two consumers share the other CPU, and yield when there is nothing",
        idle,
        2,
    ),
    (
        "full ring, 1 consumer",
        "the consumer, on the other CPU, empties a ring that was filled before",
        drain,
        1,
    ),
    (
        "full ring, 2 consumers",
        "the same, a consumer on each CPU, at the same time",
        drain,
        2,
    ),
];

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("this CPU is ours");
}

/// Lets threads go at the same time.
struct Gate {
    waiting: AtomicUsize,
}

impl Gate {
    fn new(threads: usize) -> Self {
        Self {
            waiting: AtomicUsize::new(threads),
        }
    }

    fn pass(&self) {
        self.waiting.fetch_sub(1, Release);
        while self.waiting.load(Acquire) > 0 {
            std::thread::yield_now();
        }
    }
}

/// Takes events until `total` were taken by all consumers; gives the sum.
fn consume(consumer: &mut dyn Consumer, taken_by_all: &AtomicU64, total: u64, yields: bool) -> u64 {
    let mut sum = 0;
    loop {
        let (taken, some) = consumer.take();
        if taken > 0 {
            sum += some;
            if taken_by_all.fetch_add(taken, Release) + taken >= total {
                return sum;
            }
        } else if taken_by_all.load(Relaxed) >= total {
            return sum;
        } else if yields {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Runs a producer on the first CPU and the consumers on the second.
fn side_by_side(
    (mut producer, consumers): Sides,
    cpus: [usize; 2],
    total: u64,
    produce: impl FnOnce(&mut dyn Producer, &AtomicU64) + Send,
) -> f64 {
    let taken = AtomicU64::new(0);
    let gate = Gate::new(consumers.len() + 1);
    let yields = consumers.len() > 1;

    let (elapsed, sum) = std::thread::scope(|scope| {
        let handles: Vec<_> = consumers
            .into_iter()
            .map(|mut consumer| {
                let (taken, gate) = (&taken, &gate);
                scope.spawn(move || {
                    pin(cpus[1]);
                    gate.pass();
                    consume(&mut *consumer, taken, total, yields)
                })
            })
            .collect();
        pin(cpus[0]);
        gate.pass();
        let start = Instant::now();
        produce(&mut *producer, &taken);
        while taken.load(Acquire) < total {
            std::hint::spin_loop();
        }
        let elapsed = start.elapsed();
        let sum: u64 = handles
            .into_iter()
            .map(|handle| handle.join().expect("no panic"))
            .sum();
        (elapsed, sum)
    });
    check(total, taken.into_inner(), sum);
    elapsed.as_nanos() as f64 / total as f64
}

/// Every event was seen, once.
fn check(total: u64, taken: u64, sum: u64) {
    assert_eq!(taken, total, "events were lost or repeated");
    assert_eq!(sum, total * (total - 1) / 2, "events were changed");
}

fn busy(sides: Sides, cpus: [usize; 2]) -> f64 {
    const TOTAL: u64 = 20_000;
    side_by_side(sides, cpus, TOTAL, |producer, _| {
        for number in 0..TOTAL {
            while !producer.post(number) {
                std::hint::spin_loop();
            }
        }
    })
}

fn idle(sides: Sides, cpus: [usize; 2]) -> f64 {
    const TOTAL: u64 = 500;
    side_by_side(sides, cpus, TOTAL, |producer, taken| {
        for number in 0..TOTAL {
            assert!(producer.post(number), "there is room");
            while taken.load(Acquire) <= number {
                std::hint::spin_loop();
            }
        }
    })
}

/// Fills the ring on the first CPU, then empties it; the consumers begin with the
/// second CPU.  Only the emptying is timed.
fn drain((mut producer, mut consumers): Sides, cpus: [usize; 2]) -> f64 {
    const TURNS: u64 = 4;
    let total = u64::from(SLOTS);
    let mut elapsed = 0.0;

    for _ in 0..TURNS {
        pin(cpus[0]);
        for number in 0..total {
            assert!(producer.post(number), "there is room");
        }
        let taken = AtomicU64::new(0);
        let gate = Gate::new(consumers.len());
        let results: Vec<_> = std::thread::scope(|scope| {
            let handles: Vec<_> = consumers
                .iter_mut()
                .rev()
                .enumerate()
                .map(|(index, consumer)| {
                    let (taken, gate) = (&taken, &gate);
                    scope.spawn(move || {
                        pin(cpus[1 - index % 2]);
                        gate.pass();
                        let start = Instant::now();
                        let sum = consume(&mut **consumer, taken, total, false);
                        (start.elapsed(), sum)
                    })
                })
                .collect();
            handles
                .into_iter()
                .map(|handle| handle.join().expect("no panic"))
                .collect()
        });
        check(
            total,
            taken.into_inner(),
            results.iter().map(|(_, sum)| sum).sum(),
        );
        let longest = results.iter().map(|(time, _)| time.as_nanos()).max();
        elapsed += longest.unwrap_or(0) as f64;
    }
    elapsed / (TURNS * total) as f64
}

/// The lower quartile, the median and the upper quartile.
fn quartiles(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    let set = sched_getaffinity(None).expect("an affinity");
    let ours: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect();
    let [first, second, ..] = ours[..] else {
        println!("ring-bench: there is only one CPU");
        return;
    };
    let cpus = [first, second];

    println!("{rounds} rounds, {SLOTS} entries, CPUs {first} and {second}");
    for (load, what, run, consumers) in LOADS {
        // times[round][design]
        let times: Vec<Vec<f64>> = (0..rounds)
            .map(|_| {
                DESIGNS
                    .iter()
                    .map(|(_, _, make)| run(make(SLOTS, consumers), cpus))
                    .collect()
            })
            .collect();

        println!("\n{load}: {what}");
        println!(
            "{:28}{:>6}  {:>26}  {:>22}",
            "", "bytes", "ns per event: least, median", "ratio: quartiles"
        );
        for (index, (name, bytes, _)) in DESIGNS.iter().enumerate() {
            let least = times.iter().map(|round| round[index]);
            let [_, median, _] = quartiles(least.clone());
            let least = least.fold(f64::INFINITY, f64::min);
            let ratio = quartiles(times.iter().map(|round| round[index] / round[OURS]));
            println!(
                "{name:28}{bytes:>6}  {least:>14.1} {median:>12.1}  {:>8.2} {:>6.2} {:>6.2}",
                ratio[0], ratio[1], ratio[2]
            );
        }
    }
}
