// SPDX-License-Identifier: GPL-2.0
/*
 * The system calls of kevent: arguments are checked and copied here as far as C
 * macros are needed for that, and handed to the Rust code.
 */

#include <linux/compat.h>
#include <linux/file.h>
#include <linux/init.h>
#include <linux/ktime.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/syscalls.h>
#include <linux/time_namespace.h>
#include <linux/uaccess.h>

#include "kevent.h"

SYSCALL_DEFINE2(kevent_init, struct kevent_params __user *, uparams, size_t, size)
{
	struct kevent_params params;
	struct file *file;
	int fd, ret;

	BUILD_BUG_ON(sizeof(params) != KEVENT_PARAMS_SIZE_VER0);

	if (size > PAGE_SIZE)
		return -E2BIG;
	if (size < KEVENT_PARAMS_SIZE_VER0)
		return -EINVAL;
	ret = copy_struct_from_user(&params, sizeof(params), uparams, size);
	if (ret)
		return ret;

	fd = get_unused_fd_flags(O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fd;

	file = kevent_rs_create(&params);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	ret = copy_struct_to_user(uparams, size, &params, sizeof(params), NULL);
	if (ret) {
		put_unused_fd(fd);
		fput(file);
		return ret;
	}

	fd_install(fd, file);
	return fd;
}

SYSCALL_DEFINE4(kevent_ctl, int, kfd, struct ukevent __user *, changes,
		unsigned int, nr, unsigned int, flags)
{
	CLASS(fd, f)(kfd);
	int error;

	if (fd_empty(f))
		return -EBADF;
	return kevent_rs_ctl(fd_file(f), changes, nr, flags, &error);
}

static bool kevent_clock_valid(u32 clock)
{
	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_MONOTONIC:
	case CLOCK_BOOTTIME:
	case CLOCK_TAI:
		return true;
	default:
		return false;
	}
}

/* Copies @uopts and checks what can be checked without doing anything. */
static int kevent_get_opts(struct kevent_getopts *opts,
			   const struct kevent_getopts __user *uopts)
{
	u32 size;
	int ret;

	BUILD_BUG_ON(sizeof(*opts) != KEVENT_GETOPTS_SIZE_VER0);

	if (get_user(size, &uopts->size))
		return -EFAULT;
	if (size > PAGE_SIZE)
		return -E2BIG;
	if (size < KEVENT_GETOPTS_SIZE_VER0)
		return -EINVAL;
	ret = copy_struct_from_user(opts, sizeof(*opts), uopts, size);
	if (ret)
		return ret;

	if (opts->flags & ~KEVENT_GET_ABSTIME || opts->resv[0] || opts->resv[1])
		return -EINVAL;
	if (!(opts->flags & KEVENT_GET_ABSTIME) && opts->clock)
		return -EINVAL;
	if (!kevent_clock_valid(opts->clock))
		return -EINVAL;
	/* 64 bits of signals in a 32-bit program, too */
	if (opts->sigsetsize != (opts->sigmask ? sizeof(sigset_t) : 0))
		return -EINVAL;
	if (!opts->nr_changes && (opts->changes || opts->change_flags))
		return -EINVAL;
	return 0;
}

/* Turns @timeout into a time, of the clock of @opts if that says so. */
static int kevent_get_timeout(struct kevent_limit *limit,
			      const struct __kernel_timespec __user *timeout,
			      const struct kevent_getopts *opts)
{
	struct timespec64 ts;

	limit->clock = CLOCK_MONOTONIC;
	if (!timeout) {
		limit->none = true;
		return opts->flags & KEVENT_GET_ABSTIME ? -EINVAL : 0;
	}
	if (get_timespec64(&ts, timeout))
		return -EFAULT;
	if (opts->flags & KEVENT_GET_ABSTIME) {
		if (!timespec64_valid(&ts))
			return -EINVAL;
		limit->clock = opts->clock;
		limit->expires = timens_ktime_to_host(limit->clock,
						      timespec64_to_ktime(ts));
		limit->slack = current->timer_slack_ns;
		return 0;
	}
	/* Zero stays zero, a time that is over. */
	if (poll_select_set_timeout(&ts, ts.tv_sec, ts.tv_nsec))
		return -EINVAL;
	limit->expires = timespec64_to_ktime(ts);
	if (limit->expires)
		limit->slack = select_estimate_accuracy(&ts);
	return 0;
}

/* Turns @min_wait into a time, if it is over before the timeout is. */
static void kevent_get_min_wait(struct kevent_limit *limit, u64 min_wait,
				const struct kevent_limit *timeout)
{
	ktime_t wait = min_t(u64, min_wait, KTIME_MAX);

	limit->none = true;
	if (!min_wait)
		return;
	if (!timeout->none) {
		ktime_t now;

		switch (timeout->clock) {
		case CLOCK_REALTIME:
			now = ktime_get_real();
			break;
		case CLOCK_BOOTTIME:
			now = ktime_get_boottime();
			break;
		case CLOCK_TAI:
			now = ktime_get_clocktai();
			break;
		default:
			now = ktime_get();
		}
		if (ktime_add_safe(now, wait) >= timeout->expires)
			return;
	}
	limit->none = false;
	limit->clock = CLOCK_MONOTONIC;
	limit->expires = ktime_add_safe(ktime_get(), wait);
	limit->slack = current->timer_slack_ns;
}

static int kevent_set_sigmask(const struct kevent_getopts *opts)
{
	void __user *mask = u64_to_user_ptr(opts->sigmask);

#ifdef CONFIG_COMPAT
	if (in_compat_syscall())
		return set_compat_user_sigmask(mask, opts->sigsetsize);
#endif
	return set_user_sigmask(mask, opts->sigsetsize);
}

SYSCALL_DEFINE6(kevent_getevents, int, kfd, struct ukevent __user *, events,
		unsigned int, min_events, unsigned int, max_events,
		const struct __kernel_timespec __user *, timeout,
		const struct kevent_getopts __user *, uopts)
{
	CLASS(fd, f)(kfd);
	struct kevent_getargs args = {
		.events = events,
		.min_events = min_events,
		.max_events = max_events,
	};
	struct kevent_getopts opts = {};
	int ret, error = 0;

	if (fd_empty(f))
		return -EBADF;
	if (uopts) {
		ret = kevent_get_opts(&opts, uopts);
		if (ret)
			return ret;
	}
	ret = kevent_get_timeout(&args.timeout, timeout, &opts);
	if (ret)
		return ret;
	kevent_get_min_wait(&args.min_wait, opts.min_wait, &args.timeout);

	ret = kevent_rs_check(fd_file(f), &args);
	if (ret)
		return ret;
	ret = kevent_set_sigmask(&opts);
	if (ret)
		return ret;
	if (opts.nr_changes)
		kevent_rs_ctl(fd_file(f), u64_to_user_ptr(opts.changes),
			      opts.nr_changes, opts.change_flags, &error);
	ret = error ?: kevent_rs_getevents(fd_file(f), &args);
	restore_saved_sigmask_unless(ret == -EINTR);
	return ret;
}

static int __init kevent_setup(void)
{
	return kevent_rs_setup();
}
fs_initcall(kevent_setup);
