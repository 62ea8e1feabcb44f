// SPDX-License-Identifier: MIT
//! Unit tests of the kernel's table and its lists.

use crate::table::{Linked, List, Table, NONE};

type Numbers = Table<Box<[Linked<u32>]>>;

/// A chunk whose entries say which id they have.
fn chunk(table: &Numbers, len: u32) -> Box<[Linked<u32>]> {
    let ids = table.size()..table.size() + len;
    ids.map(Linked::new).collect()
}

fn grow(table: &mut Numbers) {
    let chunk = chunk(table, table.next_chunk().unwrap());
    assert!(table.grow(chunk).is_ok());
}

fn table(size: u32) -> Numbers {
    let mut table = Numbers::new();
    while table.size() < size {
        grow(&mut table);
    }
    table
}

/// Takes all entries from a list, from its beginning.
fn drain(table: &mut Numbers, list: &mut List) -> Vec<u32> {
    let len = list.len();
    let take = || {
        let id = list.first()?;
        table.unlink(list, id);
        Some(id)
    };
    let ids: Vec<_> = std::iter::from_fn(take).collect();
    assert_eq!(ids.len() as u32, len);
    assert!(list.is_empty());
    ids
}

#[test]
fn chunks_double_the_size_and_move_nothing() {
    let mut table = Numbers::new();
    assert_eq!((table.size(), table.get(0)), (0, None));
    let mut sizes = Vec::new();
    let mut first = None;
    for _ in 0..12 {
        let right = table.next_chunk().unwrap();
        assert_eq!(right, table.size() + 16);
        // Any other size is refused, and given back.
        for len in [0, 1, right - 1, right + 1] {
            let wrong = chunk(&table, len);
            assert_eq!(table.grow(wrong).unwrap_err().len(), len as usize);
        }
        grow(&mut table);
        sizes.push(table.size());
        let here = std::ptr::from_ref(table.get(15).unwrap());
        assert_eq!(*first.get_or_insert(here), here);
    }
    assert_eq!(sizes[..4], [16, 48, 112, 240]);
    for id in 0..table.size() {
        assert_eq!(table.get(id), Some(&id));
    }
}

#[test]
fn ids_far_apart_are_found_or_not() {
    let mut table = table(1 << 20);
    let size = table.size();
    for id in [0, 15, 16, 47, 48, 111, 112, 65_519, 65_520, size - 1] {
        assert_eq!(table.get(id), Some(&id));
        *table.get_mut(id).unwrap() += 1;
        assert_eq!(table.get(id), Some(&(id + 1)));
    }
    let chunks = (0..32).map(|log| 1u32 << log);
    let edges = chunks.flat_map(|id| [id - 1, id, id.wrapping_sub(16), id.wrapping_sub(17)]);
    for id in edges.filter(|id| *id >= size).chain([size, NONE - 1, NONE]) {
        assert_eq!(table.get(id), None, "{id:#x}");
        assert!(table.get_mut(id).is_none());
    }
}

#[test]
fn lists_are_linked_from_both_ends() {
    let mut table = table(100);
    let (mut one, mut two) = (List::new(), List::new());
    assert_eq!((one.first(), one.len()), (None, 0));
    for id in [7, 99, 0, 50] {
        table.push(&mut one, id);
        table.push_front(&mut two, id + 1);
    }
    assert_eq!((one.first(), two.first()), (Some(7), Some(51)));
    assert_eq!(drain(&mut table, &mut one), [7, 99, 0, 50]);
    assert_eq!(drain(&mut table, &mut two), [51, 1, 100, 8]);
    // They can be put in another one.
    table.push_front(&mut two, 7);
    table.push(&mut two, 51);
    assert_eq!(drain(&mut table, &mut two), [7, 51]);
}

#[test]
fn entries_are_taken_from_anywhere() {
    let ids = [3, 1, 4, 15, 92];
    for taken in ids {
        let mut table = table(100);
        let mut list = List::new();
        for id in ids {
            table.push(&mut list, id);
        }
        table.unlink(&mut list, taken);
        assert_eq!(list.len(), 4);
        table.push(&mut list, taken);
        let rest = ids.into_iter().filter(|id| *id != taken);
        let expected: Vec<_> = rest.chain([taken]).collect();
        assert_eq!(drain(&mut table, &mut list), expected);
    }
}

#[test]
fn what_is_not_there_is_in_no_list() {
    let mut table = table(16);
    let mut list = List::new();
    for id in [16, NONE] {
        table.push(&mut list, id);
        table.push_front(&mut list, id);
        table.unlink(&mut list, id);
    }
    assert_eq!((list.first(), list.len()), (None, 0));
}

proptest::proptest! {
    /// Entries are found by their hash, and only those that were added, however the hashes meet
    /// and while the table grows.
    #[test]
    fn entries_are_found_by_their_hash(
        steps in proptest::collection::vec((0_u32..4, proptest::num::u32::ANY, 0_u32..200), 1..400),
        bits in 0_u32..=32,
    ) {
        let mut table = table(16);
        let mut hashes = std::collections::BTreeMap::new();
        for (step, hash, id) in steps {
            // Few different hashes, so that buckets are shared.
            let hash = hash & 1_u32.checked_shl(bits).map_or(u32::MAX, |bit| bit - 1);
            if step > 0 {
                while id >= table.size() {
                    grow(&mut table);
                }
                if let std::collections::btree_map::Entry::Vacant(room) = hashes.entry(id) {
                    room.insert(hash);
                    table.add(id, hash);
                }
            } else if hashes.remove(&id).is_some() {
                table.forget(id);
            } else {
                // What is in no bucket is not missed in one.
                table.forget(id);
            }
            for id in 0..table.size() {
                let hash = hashes.get(&id).copied();
                let found = |hash| table.find(hash, |&it| it == id);
                proptest::prop_assert_eq!(hash.and_then(found), hash.map(|_| id));
                if hash != Some(1) {
                    proptest::prop_assert_eq!(found(1), None);
                }
            }
        }
    }
}
