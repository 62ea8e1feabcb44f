// SPDX-License-Identifier: GPL-2.0

//! Who watches which file: a table of all watches in the system, by file.
//!
//! It is how the release of a file and the closing of a descriptor find the registrations that they
//! end.
//!
//! Files that were never watched do not come here; see `FMODE_KEVENT`.

use crate::{
    fd::Watch,
    files::TableId, //
};
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

/// The place of a watch: its file, the table of its descriptor, and its own address to tell it from
/// others.
type Place = (UncountedFile, TableId, usize);

/// The watches, ordered by their places.
type Tree = RBTree<Place, Arc<Watch>>;

/// A part of the table.
type Shard = SpinLock<Tree>;

/// How many parts the table has; files are spread over them by their address.
const SHARDS: usize = 64;

static TABLE: SetOnce<KVec<Pin<KBox<Shard>>>> = SetOnce::new();

/// Room for a watch in the table, allocated before it is needed.
pub(crate) struct Reservation(RBTreeNodeReservation<Place, Arc<Watch>>);

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

fn place(watch: &Arc<Watch>) -> Place {
    let source = watch.handler();

    (source.file(), source.table(), (&raw const **watch).addr())
}

impl Reservation {
    /// Allocates room.  May sleep.
    pub(crate) fn new() -> Result<Self> {
        // It could not be made at boot: nobody would find the watch.
        TABLE.as_ref().ok_or(ENOMEM)?;
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }

    /// Puts `watch` in the table.
    pub(crate) fn insert(self, watch: Arc<Watch>) {
        let place = place(&watch);

        if let Some(shard) = shard(place.0) {
            // The place is its own, so there is nothing to replace.
            shard.lock().insert(self.0.into_node(place, watch));
        }
    }
}

/// Takes `watch` out of the table.
pub(crate) fn remove(watch: &Arc<Watch>) {
    let place = place(watch);

    if let Some(shard) = shard(place.0) {
        let node = shard.lock().remove_node(&place);

        // Freed without the lock.
        drop(node);
    }
}

/// Calls `f` for each watch of `file`, or for those of its descriptors in `table` alone; it may
/// remove it.  May sleep if `f` may.
///
/// Watches that are put in the table meanwhile may be missed.
pub(crate) fn for_each(file: UncountedFile, table: Option<TableId>, mut f: impl FnMut(Arc<Watch>)) {
    let Some(shard) = shard(file) else {
        return;
    };
    let mut from = (file, table.unwrap_or(TableId::NONE), 0);

    loop {
        let watch = {
            let tree = shard.lock();

            match tree.cursor_lower_bound(&from).as_ref().map(|c| c.current()) {
                Some((&(found, of, address), watch))
                    if found == file && table.is_none_or(|table| table == of) =>
                {
                    from = (found, of, address.wrapping_add(1));
                    watch.clone()
                }
                _ => return,
            }
        };

        f(watch);
    }
}
