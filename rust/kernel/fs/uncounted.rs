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
    /// The file may be in the course of its release, but that must not be over.
    pub unsafe fn pin(self) -> Option<ARef<File>> {
        // SAFETY: The file is valid, by the requirements.
        if unsafe { bindings::file_ref_get(&raw mut (*self.0.as_ptr()).f_ref) } {
            // SAFETY: The reference was just taken.
            Some(unsafe { ARef::from_raw(self.0.cast()) })
        } else {
            None
        }
    }
}
