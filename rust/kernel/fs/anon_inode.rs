// SPDX-License-Identifier: GPL-2.0

//! Files without an inode of their own, and the operations of files.
//!
//! For kernel objects that user space holds by a file descriptor but never opens by name.
//!
//! C headers: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    error::{
        from_err_ptr,
        VTABLE_DEFAULT_ERROR, //
    },
    fs::File,
    mm::virt::VmaNew,
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    sync::{
        aref::ARef,
        poll::PollTable, //
    },
    types::ForeignOwnable, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// What can be done with a file.
///
/// # Examples
///
/// ```
/// use kernel::{
///     fs::{
///         file::flags,
///         anon_inode::{
///             FileOperations,
///             FileOperationsTable, //
///         }, //
///     },
///     sync::Arc, //
/// };
///
/// struct Answers;
///
/// #[vtable]
/// impl FileOperations for Answers {
///     type Data = Arc<u32>;
/// }
///
/// static ANSWERS: FileOperationsTable<Answers> = FileOperationsTable::new();
///
/// let file = ANSWERS.create(c"[answer]", Arc::new(42, GFP_KERNEL)?, flags::O_RDONLY)?;
///
/// // Only a file of this kind has such data.
/// assert_eq!(ANSWERS.data(&file).as_deref(), Some(&42));
/// # Ok::<(), Error>(())
/// ```
#[vtable]
pub trait FileOperations: Sized {
    /// What the file owns, its private data.
    type Data: ForeignOwnable + Send + Sync;

    /// Called when the last reference to the file is gone.  May sleep.
    fn release(data: Self::Data) {
        drop(data);
    }

    /// Registers the file's wait queue with `table` and returns what it is ready for, a poll mask.
    /// May sleep.
    fn poll(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _table: PollTable<'_>,
    ) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps the part of the file that begins `offset` pages into it.  May sleep.
    fn mmap(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _vma: &VmaNew,
        _offset: usize,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes what `/proc/PID/fdinfo` shall say of the file.  May sleep.
    fn show_fdinfo(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _to: &SeqFile) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The table of the operations of a kind of files.
///
/// Its address is what tells the files of one kind from all others, so there must be one only: put
/// it in a `static`.  A `const` may have several addresses, by some of which
/// [`FileOperationsTable::data`] does not know the files that were made by another.
pub struct FileOperationsTable<T: FileOperations> {
    table: bindings::file_operations,
    // Invariant: a table of one type is no table of a subtype, which has operations of its own.
    _operations: PhantomData<fn(T) -> T>,
}

// SAFETY: The table does not change and its functions can be called on any thread.
unsafe impl<T: FileOperations> Sync for FileOperationsTable<T> {}

impl<T: FileOperations> FileOperationsTable<T> {
    /// Makes the table.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            table: bindings::file_operations {
                owner: this_module::<T::OwnerModule>().as_ptr(),
                release: Some(Self::release),
                poll: if T::HAS_POLL { Some(Self::poll) } else { None },
                mmap: if T::HAS_MMAP { Some(Self::mmap) } else { None },
                show_fdinfo: if T::HAS_SHOW_FDINFO {
                    Some(Self::show_fdinfo)
                } else {
                    None
                },
                ..pin_init::zeroed()
            },
            _operations: PhantomData,
        }
    }

    /// Makes a file of this kind that owns `data`.
    ///
    /// `name` appears in `/proc/PID/fd`; `flags` are of [`crate::fs::file::flags`].  May sleep.
    pub fn create(&'static self, name: &CStr, data: T::Data, flags: u32) -> Result<ARef<File>> {
        let data = data.into_foreign();

        // SAFETY: The table is static, and its functions expect what `data` is.
        let file = from_err_ptr(unsafe {
            bindings::anon_inode_getfile(
                name.as_char_ptr(),
                &raw const self.table,
                data,
                // CAST: It is a set of bits.
                flags as c_int,
            )
        })
        .inspect_err(|_| {
            // SAFETY: The file does not exist, so the data is still ours.
            drop(unsafe { T::Data::from_foreign(data) });
        })?;

        // SAFETY: It is a new file, whose only reference is ours.  Nobody uses its position.
        Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
    }

    /// Returns the data of `file`, or [`None`] if it is of another kind.
    pub fn data<'a>(
        &'static self,
        file: &'a File,
    ) -> Option<<T::Data as ForeignOwnable>::Borrowed<'a>> {
        // SAFETY: The file is valid.  The operations of files of other kinds, as terminals, can be
        // replaced meanwhile, but not by these.
        let table = unsafe { core::ptr::read_volatile(&raw const (*file.as_ptr()).f_op) };

        if !core::ptr::eq(table, &raw const self.table) {
            return None;
        }
        // SAFETY: The file is of this kind, so its data does not change, and lives as long as the
        // file.
        Some(unsafe { T::Data::borrow((*file.as_ptr()).private_data) })
    }

    /// # Safety
    ///
    /// `file` must be a file of this kind that is being released.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The data was made by `into_foreign` in `create`, and nobody borrows it any more.
        T::release(unsafe { T::Data::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// `file` must be a file of this kind, `table` null or a valid poll table.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table,
    ) -> bindings::__poll_t {
        // SAFETY: The data was made by `into_foreign` in `create`.
        let data = unsafe { T::Data::borrow((*file).private_data) };
        // SAFETY: The file is valid, and its position is not used.
        let file = unsafe { File::from_raw_file(file) };

        // SAFETY: The table is valid, by the requirements.
        T::poll(data, file, unsafe { PollTable::from_raw(table) })
    }

    /// # Safety
    ///
    /// `file` must be a file of this kind, `vma` an area that is being mapped to it.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The data was made by `into_foreign` in `create`.
        let data = unsafe { T::Data::borrow((*file).private_data) };
        // SAFETY: The area is being set up, so its offset does not change.
        let offset = unsafe { (*vma).vm_pgoff };

        // SAFETY: The area is being set up.
        match T::mmap(data, unsafe { VmaNew::from_raw(vma) }, offset) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// `file` must be a file of this kind, `to` a valid sequential file that nobody else uses.
    unsafe extern "C" fn show_fdinfo(to: *mut bindings::seq_file, file: *mut bindings::file) {
        // SAFETY: The data was made by `into_foreign` in `create`.
        let data = unsafe { T::Data::borrow((*file).private_data) };

        // SAFETY: By the requirements.
        T::show_fdinfo(data, unsafe { SeqFile::from_raw(to) });
    }
}

#[cfg(CONFIG_RUST_FS_KUNIT_TEST)]
#[macros::kunit_tests(rust_anon_inode)]
mod tests {
    use super::*;
    use crate::{
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Relaxed,
                Release, //
            },
            poll_watch::{
                can_poll,
                mask,
                poll, //
            },
            Arc,
            ArcBorrow, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
    };

    /// What a file was asked.
    struct Asked {
        ready: Atomic<u32>,
        polls: Atomic<u32>,
        releases: Atomic<u32>,
    }

    #[vtable]
    impl FileOperations for Asked {
        type Data = Arc<Asked>;

        fn release(asked: Arc<Asked>) {
            asked.releases.fetch_add(1, Release);
        }

        fn poll(asked: ArcBorrow<'_, Asked>, _file: &File, _table: PollTable<'_>) -> u32 {
            asked.polls.fetch_add(1, Relaxed);
            asked.ready.load(Relaxed)
        }
    }

    /// A kind of files that has no operations but the release.
    struct Plain;

    #[vtable]
    impl FileOperations for Plain {
        type Data = Arc<Asked>;
    }

    static ASKED: FileOperationsTable<Asked> = FileOperationsTable::new();
    static OTHERS: FileOperationsTable<Asked> = FileOperationsTable::new();
    static PLAIN: FileOperationsTable<Plain> = FileOperationsTable::new();

    fn asked() -> Result<Arc<Asked>> {
        let asked = Asked {
            ready: Atomic::new(0),
            polls: Atomic::new(0),
            releases: Atomic::new(0),
        };

        Ok(Arc::new(asked, GFP_KERNEL)?)
    }

    #[test]
    fn data_is_found_by_its_own_table_only() -> Result {
        let data = asked()?;
        let file = ASKED.create(c"[kunit]", data.clone(), 0)?;

        assert!(ASKED
            .data(&file)
            .is_some_and(|found| Arc::ptr_eq(&found.into(), &data)));
        assert!(OTHERS.data(&file).is_none());
        assert!(PLAIN.data(&file).is_none());
        Ok(())
    }

    #[test]
    fn released_once_by_the_last_reference() -> Result {
        let data = asked()?;
        let file = ASKED.create(c"[kunit]", data.clone(), 0)?;
        let second = file.clone();

        drop(file);
        fsleep(Delta::from_millis(50));
        assert_eq!(data.releases.load(Acquire), 0);
        drop(second);

        // Kernel threads release files later.
        for _ in 0..10_000 {
            if data.releases.load(Acquire) != 0 {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        fsleep(Delta::from_millis(50));
        assert_eq!(data.releases.load(Acquire), 1);
        Ok(())
    }

    #[test]
    fn polled_if_the_kind_can_be() -> Result {
        let data = asked()?;
        let file = ASKED.create(c"[kunit]", data.clone(), 0)?;
        let plain = PLAIN.create(c"[kunit]", asked()?, 0)?;

        assert!(can_poll(&file));
        assert_eq!(poll(&file, mask::ALL), 0);
        data.ready.store(mask::IN | mask::HUP, Relaxed);
        assert_eq!(poll(&file, mask::ALL), mask::IN | mask::HUP);
        assert_eq!(data.polls.load(Relaxed), 2);
        assert!(!can_poll(&plain));
        Ok(())
    }
}
