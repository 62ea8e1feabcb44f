// SPDX-License-Identifier: GPL-2.0

//! A table of entries that are found by a small number, their id, or by a hash, and that can be put
//! in lists.
//!
//! The table grows by chunks, each as large as all before it, so that nothing is ever moved and the
//! caller can allocate the next one without a lock.
//!
//! For the hashes there are buckets, never more than entries, so they are kept there.  Their number
//! grows by one with each entry that is added to them (linear hashing), so that no addition has to
//! do more than to divide one bucket.
//!
//! Plain Rust without kernel types, compiled for the host too.

use core::{
    mem,
    ops::DerefMut, //
};

/// The number of entries of the first chunk.
const FIRST_CHUNK: u32 = 16;

/// The number of chunks; together they have 2^24 entries less [`FIRST_CHUNK`].
const CHUNKS: usize = 20;

/// No entry: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// An entry, its neighbours in the list and in the bucket that it is in, and the beginning of the
/// bucket with its number.
pub(crate) struct Linked<T> {
    entry: T,
    prev: u32,
    next: u32,
    bucket: u32,
    chain: u32,
    hash: u32,
}

impl<T> Linked<T> {
    /// Makes an entry that is in no list.
    pub(crate) const fn new(entry: T) -> Self {
        Self {
            entry,
            prev: NONE,
            next: NONE,
            bucket: NONE,
            chain: NONE,
            hash: 0,
        }
    }
}

/// A list of entries.  An entry can be in one list at a time.
///
/// # Invariants
///
/// `len` entries are linked from `first` to `last`.
#[derive(Debug)]
pub(crate) struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl List {
    /// Makes an empty list.
    pub(crate) const fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            first: NONE,
            last: NONE,
            len: 0,
        }
    }

    /// Returns the id of the first entry.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether there are no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The table; `C` is what holds a chunk.
pub(crate) struct Table<C> {
    chunks: [Option<C>; CHUNKS],
    /// How many entries the chunks have together.
    size: u32,
    /// The number of buckets; at most `size`.
    buckets: u32,
    /// One less than the power of two that the number of buckets is, or will be next.
    mask: u32,
    /// The number of entries in them.
    hashed: u32,
}

/// Returns the chunk with the entry `id` and the entry's place in it.
#[inline(always)]
fn place(id: u32) -> (usize, usize) {
    // Chunk k begins with the id `FIRST_CHUNK << k` less `FIRST_CHUNK`.
    let n = id.saturating_add(FIRST_CHUNK);
    let chunk = (n / FIRST_CHUNK).checked_ilog2().unwrap_or(0);

    (chunk as usize, (n ^ FIRST_CHUNK << chunk) as usize)
}

impl<C, T> Table<C>
where
    C: DerefMut<Target = [Linked<T>]>,
{
    /// Makes a table without room.
    pub(crate) fn new() -> Self {
        Self {
            chunks: [const { None }; CHUNKS],
            size: 0,
            buckets: 0,
            mask: 0,
            hashed: 0,
        }
    }

    /// Returns the number of entries.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Returns how many entries the next chunk has to have; [`None`] if there are all.
    pub(crate) fn next_chunk(&self) -> Option<u32> {
        let (chunk, _) = place(self.size);

        (chunk < CHUNKS).then_some(self.size.saturating_add(FIRST_CHUNK))
    }

    /// Adds a chunk; gives it back if it is not of the size that is wanted.
    pub(crate) fn grow(&mut self, chunk: C) -> Result<(), C> {
        let (index, _) = place(self.size);

        match self.chunks.get_mut(index) {
            Some(room) if chunk.len() == self.size.saturating_add(FIRST_CHUNK) as usize => {
                // Less than 2^24.
                self.size = self.size.wrapping_mul(2).wrapping_add(FIRST_CHUNK);
                *room = Some(chunk);
                Ok(())
            }
            _ => Err(chunk),
        }
    }

    #[inline(always)]
    fn at(&self, id: u32) -> Option<&Linked<T>> {
        let (chunk, index) = place(id);

        self.chunks.get(chunk)?.as_ref()?.get(index)
    }

    #[inline(always)]
    fn linked(&mut self, id: u32) -> Option<&mut Linked<T>> {
        let (chunk, index) = place(id);

        self.chunks.get_mut(chunk)?.as_mut()?.get_mut(index)
    }

    /// Returns the entry `id`.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        Some(&self.at(id)?.entry)
    }

    /// Returns the entry `id`, to be changed.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        Some(&mut self.linked(id)?.entry)
    }

    /// Returns the entry `id`, to be changed, and the id of the one behind it in its list.
    #[inline]
    pub(crate) fn get_next(&mut self, id: u32) -> Option<(&mut T, Option<u32>)> {
        let Linked { entry, next, .. } = self.linked(id)?;

        Some((entry, (*next != NONE).then_some(*next)))
    }

    /// Puts what is before the entry `first` at the end of `list`, which that must be in.  If there
    /// is no `first`, that is all of it, and everything stays as it is.
    pub(crate) fn turn(&mut self, list: &mut List, first: Option<u32>) {
        let (old_first, old_last) = (list.first, list.last);
        let Some(first) = first.filter(|&first| first != old_first) else {
            return;
        };
        let Some(last) = self
            .linked(first)
            .map(|entry| mem::replace(&mut entry.prev, NONE))
        else {
            return;
        };

        if let Some(entry) = self.linked(last) {
            entry.next = NONE;
        }
        if let Some(entry) = self.linked(old_last) {
            entry.next = old_first;
        }
        if let Some(entry) = self.linked(old_first) {
            entry.prev = old_last;
        }
        // INVARIANT: The two parts are linked the other way around.
        (list.first, list.last) = (first, last);
    }

    /// Puts the entry `id`, which must be in no list, at the end of `list`.
    pub(crate) fn push(&mut self, list: &mut List, id: u32) {
        let last = list.last;

        match self.linked(id) {
            Some(entry) => (entry.prev, entry.next) = (last, NONE),
            None => return,
        }
        match self.linked(last) {
            Some(entry) => entry.next = id,
            None => list.first = id,
        }
        // INVARIANT: Linked behind what was the last.
        list.last = id;
        list.len = list.len.wrapping_add(1);
    }

    /// Puts the entry `id`, which must be in no list, at the beginning of `list`.
    pub(crate) fn push_front(&mut self, list: &mut List, id: u32) {
        let first = list.first;

        match self.linked(id) {
            Some(entry) => (entry.prev, entry.next) = (NONE, first),
            None => return,
        }
        match self.linked(first) {
            Some(entry) => entry.prev = id,
            None => list.last = id,
        }
        // INVARIANT: Linked before what was the first.
        list.first = id;
        list.len = list.len.wrapping_add(1);
    }

    /// Takes the entry `id` from `list`, which it must be in.
    pub(crate) fn unlink(&mut self, list: &mut List, id: u32) {
        let Some(entry) = self.linked(id) else {
            return;
        };
        let (prev, next) = (entry.prev, entry.next);

        match self.linked(prev) {
            Some(entry) => entry.next = next,
            None => list.first = next,
        }
        match self.linked(next) {
            Some(entry) => entry.prev = prev,
            None => list.last = prev,
        }
        // INVARIANT: Its neighbours are linked to each other.
        list.len = list.len.wrapping_sub(1);
    }

    //
    // Hashes
    //

    /// Returns the number of the bucket for `hash`.
    fn bucket_of(&self, hash: u32) -> u32 {
        let bucket = hash & self.mask;

        if bucket < self.buckets {
            bucket
        } else {
            // It is not there yet; its entries are in the one that it will be divided from.
            bucket & self.mask >> 1
        }
    }

    /// Puts the entry `id` into the bucket for its hash.
    fn chain(&mut self, id: u32) {
        let Some(hash) = self.linked(id).map(|entry| entry.hash) else {
            return;
        };
        let bucket = self.bucket_of(hash);
        let Some(first) = self
            .linked(bucket)
            .map(|entry| mem::replace(&mut entry.bucket, id))
        else {
            return;
        };

        if let Some(entry) = self.linked(id) {
            entry.chain = first;
        }
    }

    /// Adds a bucket, and divides the one whose entries belong to it.
    fn divide(&mut self) {
        let new = self.buckets;
        let old = new.checked_ilog2().map(|bit| new ^ 1 << bit);

        self.buckets = new.wrapping_add(1);
        if new > self.mask {
            self.mask = self.mask << 1 | 1;
        }

        let mut rest = old
            .and_then(|old| self.linked(old))
            .map_or(NONE, |entry| mem::replace(&mut entry.bucket, NONE));

        while let Some(next) = self.linked(rest).map(|entry| entry.chain) {
            self.chain(rest);
            rest = next;
        }
    }

    /// Makes the entry `id`, which must not be in a bucket, one that is found by `hash`.
    pub(crate) fn add(&mut self, id: u32, hash: u32) {
        if self.hashed >= self.buckets && self.buckets < self.size {
            self.divide();
        }
        if let Some(entry) = self.linked(id) {
            entry.hash = hash;
            self.chain(id);
            self.hashed = self.hashed.wrapping_add(1);
        }
    }

    /// Undoes [`Table::add`].
    pub(crate) fn forget(&mut self, id: u32) {
        let Some((hash, next)) = self.linked(id).map(|entry| (entry.hash, entry.chain)) else {
            return;
        };
        let bucket = self.bucket_of(hash);
        let Some(mut at) = self.linked(bucket).map(|entry| entry.bucket) else {
            return;
        };

        if at == id {
            if let Some(entry) = self.linked(bucket) {
                entry.bucket = next;
            }
        } else {
            loop {
                match self.linked(at) {
                    Some(entry) if entry.chain == id => {
                        entry.chain = next;
                        break;
                    }
                    Some(entry) => at = entry.chain,
                    None => return,
                }
            }
        }
        self.hashed = self.hashed.wrapping_sub(1);
    }

    /// Returns an entry that was added with `hash`, and of which `is_it` says so.
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(&T) -> bool) -> Option<u32> {
        let mut id = self.at(self.bucket_of(hash))?.bucket;

        loop {
            let linked = self.at(id)?;

            if linked.hash == hash && is_it(&linked.entry) {
                return Some(id);
            }
            id = linked.chain;
        }
    }
}
