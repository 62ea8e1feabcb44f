// SPDX-License-Identifier: GPL-2.0
/*
 * What kevent needs of the kernel and only C can have: its tracepoints and
 * sysctls, and what there is to know of files, users, nodes and clocks.
 */

#include <linux/cred.h>
#include <linux/fault-inject-usercopy.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
/* It needs the one above. */
#include <linux/eventpoll.h>
#include <linux/io_uring.h>
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/once.h>
#include <linux/sched/user.h>
#include <linux/siphash.h>
#include <linux/sysctl.h>
#include <linux/time_namespace.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "kevent.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/kevent.h>

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

/*
 * How many registrations a user may have: as epoll has it, so many that they
 * take a twenty-fifth of low memory.
 */
#define KEVENT_REGISTRATION_COST	512

static long max_user_registrations __read_mostly;
static long long_max = LONG_MAX;

struct user_struct *kevent_get_user(void)
{
	return get_uid(current_user());
}

bool kevent_charge_user(struct user_struct *user)
{
	if (atomic_long_inc_return(&user->kevent_registrations) <=
	    READ_ONCE(max_user_registrations))
		return true;
	atomic_long_dec(&user->kevent_registrations);
	return false;
}

void kevent_uncharge_user(struct user_struct *user)
{
	atomic_long_dec(&user->kevent_registrations);
}

static const struct ctl_table kevent_sysctls[] = {
	{
		.procname	= "max_user_registrations",
		.data		= &max_user_registrations,
		.maxlen		= sizeof(max_user_registrations),
		.mode		= 0644,
		.proc_handler	= proc_doulongvec_minmax,
		.extra1		= SYSCTL_LONG_ZERO,
		.extra2		= &long_max,
	},
};

static int __init kevent_limits_init(void)
{
	struct sysinfo si;

	si_meminfo(&si);
	max_user_registrations = (si.totalram - si.totalhigh) / 25 * PAGE_SIZE /
				 KEVENT_REGISTRATION_COST;
	register_sysctl("fs/kevent", kevent_sysctls);
	return 0;
}
fs_initcall(kevent_limits_init);

/* Copies a change from a program; returns false if user memory is not there. */
bool kevent_get_change(struct ukevent *to, const struct ukevent __user *from)
{
	const u64 __user *words = (const u64 __user *)from;
	u64 *copy = (u64 *)to;

	might_fault();
	if (should_fail_usercopy())
		return false;
	scoped_user_read_access_size(words, sizeof(*to), fault) {
		for (unsigned int i = 0; i < sizeof(*to) / sizeof(u64); i++)
			unsafe_get_user(copy[i], &words[i], fault);
	}
	return true;
fault:
	return false;
}

/*
 * Copies events to a program, but those that say nothing.  Each is @stride bytes
 * behind the one before.  All at once, so that user memory is made accessible
 * once for them.
 *
 * Returns how many of the @nr it is done with; not all, if user memory is not
 * there.
 */
unsigned int kevent_put_events(struct ukevent __user *to, const struct ukevent *event,
			       size_t stride, unsigned int nr)
{
	unsigned int copied = 0, i = 0;

	might_fault();
	if (should_fail_usercopy())
		return 0;
	scoped_user_write_access_size(to, nr * sizeof(*to), fault) {
		for (; i < nr; i++, event = (void *)event + stride) {
			if (!event->events)
				continue;
			unsafe_copy_to_user((char __user *)&to[copied], (char *)event,
					    sizeof(*to), fault);
			copied++;
		}
	}
fault:
	return i;
}

/*
 * Copies an event to user memory if that is there.  Does not sleep.
 *
 * Returns whether it did.
 */
bool kevent_put_event_nofault(struct ukevent __user *to, const struct ukevent *event)
{
	return !copy_to_user_nofault(to, event, sizeof(*to));
}

bool kevent_node_has_memory(unsigned int node)
{
	return node < MAX_NUMNODES && node_state(node, N_MEMORY);
}

/*
 * A hash of what names a registration.  Programs choose the names, and a bucket
 * is searched with interrupts disabled, so they must not know which names meet.
 */
u32 kevent_hash(u64 ident, u32 tag, u32 source)
{
	static hsiphash_key_t key __read_mostly;

	get_random_once(&key, sizeof(key));
	return hsiphash_4u32(lower_32_bits(ident), upper_32_bits(ident), tag,
			     source, &key);
}

/* A time of the clock as the caller's time namespace has it */
ktime_t kevent_time_to_host(clockid_t clock, ktime_t time)
{
	return timens_ktime_to_host(clock, time);
}

/* The shortest interval that a timer can have, in nanoseconds */
ktime_t kevent_timer_resolution(void)
{
	return hrtimer_resolution;
}

/* How far CLOCK_REALTIME is ahead of CLOCK_MONOTONIC */
ktime_t kevent_realtime_offset(void)
{
	return ktime_mono_to_real(0);
}

/* Called in process context */
void kevent_clock_was_set(void)
{
	kevent_rs_clock_was_set();
}

static void kevent_resume_work(struct work_struct *work)
{
	kevent_rs_clock_was_set();
}

static DECLARE_WORK(kevent_work, kevent_resume_work);

/* Called with interrupts disabled */
void kevent_resume(void)
{
	schedule_work(&kevent_work);
}
