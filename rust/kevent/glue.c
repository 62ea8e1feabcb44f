// SPDX-License-Identifier: GPL-2.0
/*
 * What kevent needs to know of files and descriptor tables and only C can tell.
 */

#include <linux/fs.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/uaccess.h>
#include <linux/eventpoll.h>
#include <linux/io_uring.h>
#include <linux/kevent.h>

/*
 * Tells whether @file is an event queue itself.  Such files are not watched: a
 * wake-up that travels from queue to queue could come back.  (Queues of kevent
 * are told apart by the caller.)
 */
bool kevent_is_aggregator(struct file *file)
{
#ifdef CONFIG_EPOLL
	if (is_file_epoll(file))
		return true;
#endif
	return io_is_uring_fops(file);
}

/*
 * Lets the release of @file and the closing of its descriptors be noticed, from
 * now on.  Others change f_mode under f_lock without atomics, or with atomics
 * without the lock, so this takes both.
 */
void kevent_mark_watched(struct file *file)
{
	fmode_t mode;

	if (READ_ONCE(file->f_mode) & FMODE_KEVENT)
		return;

	spin_lock(&file->f_lock);
	mode = READ_ONCE(file->f_mode);
	while (!try_cmpxchg(&file->f_mode, &mode, mode | FMODE_KEVENT))
		;
	spin_unlock(&file->f_lock);
}

/*
 * Tells whether descriptor @fd of the table @files is (still) @file.  The table
 * must be alive, or on its way out by close_files().
 *
 * The lock orders this against the change of a table: whoever closes a
 * descriptor takes it before looking at f_mode, and whoever registers one calls
 * this after kevent_mark_watched().  So either the one finds FMODE_KEVENT, or
 * the other finds the descriptor gone.
 */
bool kevent_fd_refers_to(struct files_struct *files, unsigned int fd,
			 const struct file *file)
{
	bool same;

	/* close_files() leaves the descriptors in the dying table. */
	if (!atomic_read(&files->count))
		return false;

	spin_lock(&files->file_lock);
	same = files_lookup_fd_locked(files, fd) == file;
	spin_unlock(&files->file_lock);
	return same;
}
