// SPDX-License-Identifier: GPL-2.0
/*
 * The system calls of kevent: arguments are checked and copied here as far as C
 * macros are needed for that, and handed to the Rust code.
 */

#include <linux/file.h>
#include <linux/init.h>
#include <linux/kevent.h>
#include <linux/ktime.h>
#include <linux/poll.h>
#include <linux/syscalls.h>
#include <linux/uaccess.h>

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
	if (copy_to_user(uparams, &params, sizeof(params))) {
		put_unused_fd(fd);
		fput(file);
		return -EFAULT;
	}

	fd_install(fd, file);
	return fd;
}

SYSCALL_DEFINE4(kevent_ctl, int, kfd, struct ukevent __user *, changes,
		unsigned int, nr, unsigned int, flags)
{
	CLASS(fd, f)(kfd);

	if (fd_empty(f))
		return -EBADF;
	return kevent_rs_ctl(fd_file(f), changes, nr, flags);
}

SYSCALL_DEFINE6(kevent_getevents, int, kfd, struct ukevent __user *, events,
		unsigned int, min_events, unsigned int, max_events,
		const struct __kernel_timespec __user *, timeout,
		const struct kevent_getopts __user *, opts)
{
	CLASS(fd, f)(kfd);
	struct timespec64 ts;
	ktime_t expires = 0;
	u64 slack = 0;

	if (fd_empty(f))
		return -EBADF;
	if (opts)
		return -EINVAL;
	if (timeout) {
		if (get_timespec64(&ts, timeout))
			return -EFAULT;
		/* Zero stays zero, a time that is over. */
		if (poll_select_set_timeout(&ts, ts.tv_sec, ts.tv_nsec))
			return -EINVAL;
		expires = timespec64_to_ktime(ts);
		if (expires)
			slack = select_estimate_accuracy(&ts);
	}
	return kevent_rs_getevents(fd_file(f), events, min_events, max_events,
				   timeout ? &expires : NULL, slack);
}

static int __init kevent_setup(void)
{
	return kevent_rs_setup();
}
fs_initcall(kevent_setup);
