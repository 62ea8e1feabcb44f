/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_KEVENT_H
#define _LINUX_KEVENT_H

#include <linux/fs.h>
#include <uapi/linux/kevent.h>

#ifdef CONFIG_KEVENT

/* Implemented in Rust, for C; see fs/kevent/exports.rs. */
int kevent_rs_setup(void);
struct file *kevent_rs_create(struct kevent_params *params);
int kevent_rs_ctl(struct file *kfile, struct ukevent __user *changes,
		  unsigned int nr, unsigned int flags);
int kevent_rs_getevents(struct file *kfile, struct ukevent __user *events,
			unsigned int min_events, unsigned int max_events,
			const ktime_t *expires, u64 slack);
void kevent_rs_release(struct file *file);
void kevent_rs_fd_closed(struct file *file, fl_owner_t id);

/* Implemented in C, for Rust; see fs/kevent/glue.c. */
bool kevent_is_aggregator(struct file *file);
void kevent_mark_watched(struct file *file);
bool kevent_fd_refers_to(struct files_struct *files, unsigned int fd,
			 const struct file *file);

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
	if (unlikely(file->f_mode & FMODE_KEVENT))
		kevent_rs_fd_closed(file, id);
}

#else

static inline void kevent_release(struct file *file) {}
static inline void kevent_fd_closed(struct file *file, fl_owner_t id) {}

#endif /* CONFIG_KEVENT */

#endif /* _LINUX_KEVENT_H */
