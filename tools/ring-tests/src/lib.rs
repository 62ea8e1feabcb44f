// SPDX-License-Identifier: MIT
//! Tests of the ring, with the very files of both sides: the kernel's `ring.rs`,
//! `events.rs` and `table.rs`, and the library's `consumer.rs`.
//!
//! ```text
//! cargo test -p ring-tests                                       unit and property tests
//! RUSTFLAGS="--cfg loom" cargo test --release -p ring-tests      loom models
//! ```
//!
//! The loom models go through the interleavings of a few threads, and through
//! what each load may see by the C11 memory model, up to a number of preemptions
//! that each model states; `LOOM_MAX_PREEMPTIONS` overrides it.  In loom, a load
//! never sees a store that is executed later (load buffering).  So that the
//! barriers D and B of `ring.rs` are needed is not shown here: no model fails
//! without them.

// There is nothing in here but tests.
#![cfg(test)]

/// Atomics of the standard library, or loom's.
mod sync {
    #[cfg(loom)]
    pub(crate) use loom::{
        sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64},
        sync::Mutex,
    };
    pub(crate) use std::sync::atomic::Ordering;
    #[cfg(not(loom))]
    pub(crate) use std::sync::{
        atomic::{AtomicU16, AtomicU32, AtomicU64},
        Mutex,
    };

    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::AtomicU64 as Word;

    /// The word of a slot.
    ///
    /// Loom remembers the last access to an atomic and tries it the other way
    /// around with the one that comes next, unless both are loads.  So after two
    /// loads by different threads it does not try a store of the second before
    /// the load of the first.  Here each load comes with an access that is worth
    /// a try; being relaxed, and of another variable, it orders nothing.
    #[cfg(loom)]
    #[derive(Debug, Default)]
    pub(crate) struct Word {
        word: AtomicU64,
        looks: AtomicU64,
    }

    #[cfg(loom)]
    impl Word {
        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.looks.fetch_or(0, Ordering::Relaxed);
            self.word.load(order)
        }

        pub(crate) fn store(&self, word: u64, order: Ordering) {
            self.word.store(word, order);
        }

        pub(crate) fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.word.compare_exchange(old, new, success, failure)
        }
    }

    thread_local! {
        /// Whether the consumers forget their fence.  (All threads of a loom
        /// model are one thread of the system.)
        pub(crate) static NO_FENCE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    /// The fence of the consumers.
    pub(crate) fn fence(order: Ordering) {
        if NO_FENCE.get() {
            return;
        }
        #[cfg(loom)]
        loom::sync::atomic::fence(order);
        #[cfg(not(loom))]
        std::sync::atomic::fence(order);
    }
}

/// The library's `abi.rs`, but with slots of these atomics.
mod abi {
    use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Word};
    pub(crate) use kevent::abi::*;

    // As C has it, for the consumer in C.
    #[repr(C)]
    #[derive(Debug, Default)]
    pub(crate) struct Slot {
        pub(crate) word: Word,
        pub(crate) user_data: AtomicU64,
        pub(crate) ident: AtomicU64,
        pub(crate) source: AtomicU16,
        pub(crate) tag: AtomicU32,
    }
}

mod event {
    pub(crate) use kevent::Event;
}

use kevent::RingStats;

#[cfg(not(kevq))]
#[path = "../../kevent/src/consumer.rs"]
#[allow(dead_code)]
mod consumer;

// The crate kevq-tests is this file, too, but the consumer that it tests is in C.
#[cfg(kevq)]
#[path = "../../c/tests/consumer.rs"]
mod consumer;
#[cfg(kevq)]
#[path = "../../kevent/src/consumer_tests.rs"]
mod consumer_tests;
#[cfg(kevq)]
#[path = "../../kevent/src/consumer.rs"]
#[allow(dead_code)]
mod rust_consumer;

// The kernel's style is not to be judged here.
#[path = "../../../rust/kevent/events.rs"]
#[rustfmt::skip]
#[allow(dead_code, missing_docs, clippy::all)]
mod events;
#[path = "../../../rust/kevent/ring.rs"]
#[rustfmt::skip]
#[allow(dead_code, missing_docs, clippy::all)]
mod ring;
#[path = "../../../rust/kevent/table.rs"]
#[rustfmt::skip]
#[allow(dead_code, missing_docs, clippy::all)]
mod table;

#[cfg_attr(loom, allow(dead_code))]
mod kernel;
#[cfg(loom)]
mod models;
#[cfg(not(loom))]
mod property;
#[cfg(not(loom))]
mod table_tests;
#[cfg(not(loom))]
mod unit;
