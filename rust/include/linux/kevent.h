/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_KEVENT_H
#define _LINUX_KEVENT_H

#include <linux/fs.h>

#ifdef CONFIG_KEVENT

/* Implemented in Rust; see fs/kevent/exports.rs. */
void kevent_rs_release(struct file *file);
void kevent_rs_fd_closed(struct file *file, fl_owner_t id);

/* The last reference to @file is gone: whatever watches it must end. */
static inline void kevent_release(struct file *file)
{
	if (unlikely(file->f_mode & FMODE_KEVENT))
		kevent_rs_release(file);
}

/*
 * A descriptor of @file was closed or replaced in the table @id.  Registrations
 * of that descriptor end, even if @file lives on.
 */
static inline void kevent_fd_closed(struct file *file, fl_owner_t id)
{
	if (unlikely(READ_ONCE(file->f_mode) & FMODE_KEVENT))
		kevent_rs_fd_closed(file, id);
}

/* CLOCK_REALTIME was set, or the system resumed. */
void kevent_clock_was_set(void);
void kevent_resume(void);

#else

static inline void kevent_release(struct file *file) {}
static inline void kevent_fd_closed(struct file *file, fl_owner_t id) {}
static inline void kevent_clock_was_set(void) {}
static inline void kevent_resume(void) {}

#endif /* CONFIG_KEVENT */

#endif /* _LINUX_KEVENT_H */
