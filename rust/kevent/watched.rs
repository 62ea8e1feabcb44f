// SPDX-License-Identifier: GPL-2.0

//! Who watches which file: a table of all watches in the system, by file.
//!
//! It is how the release of a file and the closing of a descriptor find the registrations that they
//! end.
//!
//! Files that were never watched do not come here; see `FMODE_KEVENT`.

use crate::fd::Watch;
use kernel::{
    fs::UncountedFile,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        new_spinlock,
        Arc,
        SetOnce,
        SpinLock, //
    },
};

/// The watches, ordered by file, then by their own address to tell them apart.
type Tree = RBTree<(UncountedFile, usize), Arc<Watch>>;

/// A part of the table.
type Shard = SpinLock<Tree>;

/// How many parts the table has; files are spread over them by their address.
const SHARDS: usize = 64;

static TABLE: SetOnce<KVec<Pin<KBox<Shard>>>> = SetOnce::new();

/// Room for a watch in the table, allocated before it is needed.
pub(crate) struct Reservation(RBTreeNodeReservation<(UncountedFile, usize), Arc<Watch>>);

/// Makes the table, once, at boot.
pub(crate) fn setup() -> Result {
    let mut shards = KVec::with_capacity(SHARDS, GFP_KERNEL)?;

    for _ in 0..SHARDS {
        let shard = KBox::pin_init(new_spinlock!(RBTree::new(), "kevent_watched"), GFP_KERNEL)?;

        shards.push_within_capacity(shard).map_err(|_| ENOMEM)?;
    }
    if TABLE.populate(shards) {
        Ok(())
    } else {
        Err(EEXIST)
    }
}

fn shard(file: UncountedFile) -> Option<&'static Shard> {
    // Files are aligned to cache lines, so the bits below say nothing.
    const FILE_SHIFT: u32 = 6;
    let index = (file.addr() >> FILE_SHIFT) % SHARDS;

    TABLE.as_ref()?.get(index).map(|shard| &**shard)
}

fn key(watch: &Arc<Watch>) -> (UncountedFile, usize) {
    (watch.handler().file(), (&raw const **watch).addr())
}

impl Reservation {
    /// Allocates room.  May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }

    /// Puts `watch` in the table.
    pub(crate) fn insert(self, watch: Arc<Watch>) {
        let key = key(&watch);

        if let Some(shard) = shard(key.0) {
            // The key is unique, so there is nothing to replace.
            shard.lock().insert(self.0.into_node(key, watch));
        }
    }
}

/// Takes `watch` out of the table.
pub(crate) fn remove(watch: &Arc<Watch>) {
    let key = key(watch);

    if let Some(shard) = shard(key.0) {
        let node = shard.lock().remove_node(&key);

        // Freed without the lock.
        drop(node);
    }
}

/// Calls `f` for each watch of `file`; it may remove it.  May sleep if `f` may.
///
/// Watches that are put in the table meanwhile may be missed.
pub(crate) fn for_each(file: UncountedFile, mut f: impl FnMut(Arc<Watch>)) {
    let Some(shard) = shard(file) else {
        return;
    };
    let mut from = (file, 0);

    loop {
        let watch = {
            let tree = shard.lock();

            match tree.cursor_lower_bound(&from).as_ref().map(|c| c.current()) {
                Some((key, watch)) if key.0 == file => {
                    from = (file, key.1.wrapping_add(1));
                    watch.clone()
                }
                _ => return,
            }
        };

        f(watch);
    }
}
