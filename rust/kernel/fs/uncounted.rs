// SPDX-License-Identifier: GPL-2.0

//! Files that are known but not referenced.
//!
//! For those who must not keep a file open but are told when it is released.

use super::File;
use crate::{
    bindings,
    sync::aref::ARef, //
};
use core::ptr::NonNull;

/// The address of a file, without a reference to it.
///
/// # Examples
///
/// ```
/// use kernel::{
///     fs::{
///         anon_inode::{
///             FileOperations,
///             FileOperationsTable, //
///         },
///         file::flags,
///         UncountedFile, //
///     },
///     sync::Arc, //
/// };
///
/// struct Quiet;
///
/// #[vtable]
/// impl FileOperations for Quiet {
///     type Data = Arc<u32>;
/// }
///
/// static QUIET: FileOperationsTable<Quiet> = FileOperationsTable::new();
///
/// let file = QUIET.create(c"[quiet]", Arc::new(0, GFP_KERNEL)?, flags::O_RDONLY)?;
/// let known = UncountedFile::new(&file);
///
/// // Whoever releases the file has told us of it, or has not begun yet.
/// //
/// // SAFETY: `file` is a reference to it.  Its position is not used.
/// let pinned = unsafe { known.pin() };
///
/// assert_eq!(pinned.as_deref().map(UncountedFile::new), Some(known));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UncountedFile(NonNull<bindings::file>);

// SAFETY: It is only an address until `pin`, whose result can be sent.
unsafe impl Send for UncountedFile {}
// SAFETY: As above.
unsafe impl Sync for UncountedFile {}

impl UncountedFile {
    /// Takes the address of `file`.
    pub fn new(file: &File) -> Self {
        // SAFETY: The address of a reference is not null.
        Self(unsafe { NonNull::new_unchecked(file.as_ptr()) })
    }

    /// Makes one of an address.
    pub fn from_raw(file: *mut bindings::file) -> Option<Self> {
        NonNull::new(file).map(Self)
    }

    /// Returns the address.
    pub fn addr(self) -> usize {
        self.0.addr().get()
    }

    /// Takes a reference to the file, unless its last one is gone.  Can be called in any context.
    ///
    /// # Safety
    ///
    /// The file may be in the course of its release, but that must not be over.  The position of
    /// the file must not be used by the result: somebody else may be using it without its lock.
    pub unsafe fn pin(self) -> Option<ARef<File>> {
        // SAFETY: The file is valid, by the requirements.
        if unsafe { bindings::file_ref_get(&raw mut (*self.0.as_ptr()).f_ref) } {
            // SAFETY: The reference was just taken.  By the requirements nobody minds who else uses
            // the position.
            Some(unsafe { ARef::from_raw(self.0.cast()) })
        } else {
            None
        }
    }
}

#[cfg(CONFIG_RUST_FS_KUNIT_TEST)]
#[macros::kunit_tests(rust_uncounted_file)]
mod tests {
    use super::*;
    use crate::{
        fs::anon_inode::{
            FileOperations,
            FileOperationsTable, //
        },
        prelude::*,
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Relaxed,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
    };

    /// What is seen of a file while it is released.
    struct Seen {
        file: Atomic<*mut bindings::file>,
        released: Atomic<bool>,
        pinned: Atomic<bool>,
    }

    #[vtable]
    impl FileOperations for Seen {
        type Data = Arc<Seen>;

        fn release(seen: Arc<Seen>) {
            let pinned = UncountedFile::from_raw(seen.file.load(Relaxed)).and_then(|file| {
                // SAFETY: The file is in the course of its release.  Its position is not used.
                unsafe { file.pin() }
            });

            if let Some(file) = pinned {
                // To drop it would release the file once more.
                core::mem::forget(file);
                seen.pinned.store(true, Relaxed);
            }
            seen.released.store(true, Release);
        }
    }

    static SEEN: FileOperationsTable<Seen> = FileOperationsTable::new();

    #[test]
    fn can_be_pinned_until_the_last_reference_is_gone() -> Result {
        let seen = Arc::new(
            Seen {
                file: Atomic::new(core::ptr::null_mut()),
                released: Atomic::new(false),
                pinned: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;
        let file = SEEN.create(c"[kunit]", seen.clone(), 0)?;
        let uncounted = UncountedFile::new(&file);

        seen.file.store(file.as_ptr(), Relaxed);
        assert_eq!(uncounted.addr(), file.as_ptr().addr());
        assert_eq!(UncountedFile::from_raw(file.as_ptr()), Some(uncounted));

        // SAFETY: The file is referenced.  Its position is not used.
        let pinned = unsafe { uncounted.pin() }.ok_or(EBADF)?;

        drop(file);
        fsleep(Delta::from_millis(50));
        // The other reference keeps it.
        assert!(!seen.released.load(Acquire));
        drop(pinned);

        // Kernel threads release files later.
        for _ in 0..10_000 {
            if seen.released.load(Acquire) {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        assert!(seen.released.load(Acquire));
        assert!(!seen.pinned.load(Relaxed));
        Ok(())
    }

    #[test]
    fn null_is_no_file() {
        assert_eq!(UncountedFile::from_raw(core::ptr::null_mut()), None);
    }
}
