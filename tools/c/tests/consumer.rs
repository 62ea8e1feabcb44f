// SPDX-License-Identifier: MIT
//! The consumer of `kevq.h`, called as the one of the library's `consumer.rs`.
//!
//! What the C code maps and asks of the kernel comes from a [`Backend`], so the tests of
//! that file run with it, unchanged.  A pointer to the backend is where the C code has
//! the header of the ring, which it does not look at itself here.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_uint};
use std::io;
use std::mem::{offset_of, size_of};
use std::ptr;
use std::slice;
use std::time::Duration;

use kevent::{Event, RingStats};

use crate::abi::{Slot, Ukevent};
pub(crate) use crate::rust_consumer::{Backend, Slots};

/// `struct kevq`
#[repr(C)]
#[derive(Debug)]
struct Kevq {
    fd: c_int,
    owns_fd: c_int,
    header: *const c_int,
    slots: *const u8,
    slot_size: usize,
    count: u32,
    shift: u32,
    cursor: u64,
}

/// `struct kevq_event`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct KevqEvent {
    user_data: u64,
    ident: u64,
    source: u16,
    flags: u16,
    tag: u32,
    value: u32,
    resv: u32,
}

extern "C-unwind" {
    fn kevq_shim_size() -> usize;
    fn kevq_shim_begin(q: *mut Kevq, count: u32) -> c_int;
    fn kevq_shim_claim(q: *mut Kevq, events: *mut KevqEvent, max: c_uint) -> c_uint;
    fn kevq_shim_poll(q: *mut Kevq, events: *mut KevqEvent, max: c_uint, timeout: i64) -> c_int;
    fn kevq_shim_wait(q: *const Kevq, min: c_uint, timeout: i64) -> c_int;
}

/// A backend, with what the C code has mapped of it.
trait Host {
    fn flags(&self) -> u32;
    fn incompat(&self) -> u32;
    fn rings(&self) -> u32;
    /// The place and the size of the slots of a set, of which there is one at a time.
    fn map(&self, count: u32) -> Option<(*const u8, usize)>;
    fn getevents(&self, events: &mut [Ukevent], min: usize) -> io::Result<usize>;
}

struct Hosted<B: Backend> {
    backend: B,
    mapped: RefCell<Option<B::Slots>>,
    stats: Cell<RingStats>,
}

impl<B: Backend> Host for Hosted<B> {
    fn flags(&self) -> u32 {
        self.backend.flags()
    }

    fn incompat(&self) -> u32 {
        self.backend.incompat()
    }

    fn rings(&self) -> u32 {
        self.backend.rings()
    }

    fn map(&self, count: u32) -> Option<(*const u8, usize)> {
        // To begin with there is nothing mapped, and no smaller set has events.
        let slots = match &*self.mapped.borrow() {
            None => self.backend.oldest(),
            Some(_) => self.backend.set(count)?,
        };
        assert_eq!(slots.count(), count);
        let at = |index| ptr::from_ref(slots.slot(index)).cast::<u8>();
        let stride = match count {
            1 => size_of::<Slot>(),
            _ => at(1) as usize - at(0) as usize,
        };
        assert_eq!(
            at(count - 1) as usize,
            at(0) as usize + (count as usize - 1) * stride
        );
        let place = at(0);
        *self.mapped.borrow_mut() = Some(slots);
        Some((place, stride))
    }

    fn getevents(&self, events: &mut [Ukevent], min: usize) -> io::Result<usize> {
        let mut stats = self.stats.get();
        let result = self.backend.getevents(events, min, None);
        if events.is_empty() {
            stats.waits += 1;
        } else {
            stats.collects += 1;
            stats.collected += *result.as_ref().unwrap_or(&0) as u64;
        }
        self.stats.set(stats);
        result
    }
}

/// The backend behind a queue.
///
/// # Safety
///
/// `q` must be the queue of a [`Consumer`].
unsafe fn host<'a>(q: *const Kevq) -> &'a dyn Host {
    // SAFETY: Consumer::new() has put a pointer to a Box there, which lives as long as
    // the queue.
    unsafe { &**(*q).header.cast::<Box<dyn Host>>() }
}

#[no_mangle]
extern "C-unwind" fn kevq_flags_(q: *const Kevq) -> u32 {
    // SAFETY: the C code passes on what it was given.
    unsafe { host(q) }.flags()
}

#[no_mangle]
extern "C-unwind" fn kevq_incompat_(q: *const Kevq) -> u32 {
    // SAFETY: as above.
    unsafe { host(q) }.incompat()
}

#[no_mangle]
extern "C-unwind" fn kevq_rings_(q: *const Kevq) -> u32 {
    // SAFETY: as above.
    unsafe { host(q) }.rings()
}

#[no_mangle]
extern "C-unwind" fn kevq_map_(q: *mut Kevq, count: u32) -> c_int {
    // SAFETY: as above.
    let Some((slots, slot_size)) = unsafe { host(q) }.map(count) else {
        return -22;
    };
    // SAFETY: this thread alone uses the queue.
    let q = unsafe { &mut *q };
    (q.slots, q.slot_size, q.count) = (slots, slot_size, count);
    0
}

#[no_mangle]
extern "C-unwind" fn kevq_getevents_(
    q: *const Kevq,
    events: *mut Ukevent,
    min: c_uint,
    max: c_uint,
    _timeout: i64,
) -> c_int {
    let events = match max {
        0 => &mut [],
        // SAFETY: the C code has so many on its stack; the kernel takes them as they are,
        // and zeroes are as good as any.
        _ => unsafe {
            ptr::write_bytes(events, 0, max as usize);
            slice::from_raw_parts_mut(events, max as usize)
        },
    };
    // SAFETY: as above.
    match unsafe { host(q) }.getevents(events, min as usize) {
        Ok(count) => count as c_int,
        Err(error) => -error.raw_os_error().unwrap(),
    }
}

/// One consumer of a ring.
pub(crate) struct Consumer<B: Backend> {
    q: Box<Kevq>,
    /// What the queue has for a header: a pointer to a pointer to `hosted`.
    _header: Box<Box<dyn Host>>,
    hosted: *const Hosted<B>,
    pub(crate) cursor: u64,
    pub(crate) stats: RingStats,
    raw: Vec<KevqEvent>,
    events: Vec<Event>,
}

impl<B: Backend + 'static> Consumer<B> {
    pub(crate) fn new(backend: B, limit: usize) -> Self {
        // SAFETY: this only tells a number.
        let sizes = unsafe { kevq_shim_size() };
        assert_eq!(sizes, size_of::<Kevq>() << 8 | size_of::<KevqEvent>());
        assert_eq!(offset_of!(KevqEvent, value), 24);

        let first = backend.oldest().count();
        let hosted = Box::new(Hosted {
            backend,
            mapped: RefCell::new(None),
            stats: Cell::default(),
        });
        let at = ptr::from_ref(&*hosted);
        let header: Box<Box<dyn Host>> = Box::new(hosted);
        let mut q = Box::new(Kevq {
            fd: -1,
            owns_fd: 0,
            header: ptr::from_ref(&*header).cast(),
            slots: ptr::null(),
            slot_size: 0,
            count: 0,
            shift: 0,
            cursor: 0,
        });
        // SAFETY: the queue is as kevq_attach() has it at that place.
        assert_eq!(unsafe { kevq_shim_begin(&mut *q, first) }, 0);
        Self {
            cursor: q.cursor,
            q,
            _header: header,
            hosted: at,
            stats: RingStats::default(),
            raw: vec![KevqEvent::default(); limit.max(1)],
            events: Vec::new(),
        }
    }

    /// The events of the last batch.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Has the C code do something, and takes what it has put into the buffer.
    fn call(&mut self, f: impl FnOnce(*mut Kevq, &mut [KevqEvent]) -> c_int) -> io::Result<usize> {
        self.q.cursor = self.cursor;
        let before = self.stats;
        self.events.clear();
        let result = f(&mut *self.q, &mut self.raw);
        self.cursor = self.q.cursor;
        // SAFETY: it lives as long as self.
        let asked = unsafe { &*self.hosted }.stats.get();
        let count = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        self.events.extend(self.raw[..count].iter().map(|it| Event {
            user_data: it.user_data,
            ident: it.ident,
            value: it.value,
            source: it.source,
            tag: it.tag,
        }));
        let collected = asked.collected - before.collected;
        let claimed = count as u64 - collected;
        self.stats = RingStats {
            batches: before.batches + u64::from(claimed > 0),
            claimed: before.claimed + claimed,
            ..asked
        };
        Ok(count)
    }

    /// Whether there are `min` events.
    fn wait(&mut self, min: u32) -> c_int {
        // SAFETY: the queue is that of a consumer.
        unsafe { kevq_shim_wait(&*self.q, min, -1) }
    }

    pub(crate) fn claim(&mut self) -> usize {
        // SAFETY: the buffer has room for as many.
        self.call(|q, raw| unsafe { kevq_shim_claim(q, raw.as_mut_ptr(), raw.len() as u32) as _ })
            .unwrap()
    }

    pub(crate) fn poll(&mut self, _timeout: Option<Duration>) -> io::Result<usize> {
        // SAFETY: the buffer has room for as many.
        self.call(|q, raw| unsafe { kevq_shim_poll(q, raw.as_mut_ptr(), raw.len() as u32, -1) })
    }
}

#[test]
fn waiting_counts_and_collects_nothing() {
    let kernel = crate::kernel::Kernel::new(4);
    let mut consumer = kernel.consumer(8);
    let id = kernel.add(7).unwrap();
    assert_eq!(consumer.wait(1), 0);
    kernel.post(id, 1);
    assert_eq!((consumer.wait(1), consumer.wait(9)), (1, 1));
    assert_eq!(consumer.claim(), 1);
}
