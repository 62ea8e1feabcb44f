/* SPDX-License-Identifier: GPL-2.0 */
/*
 * kevent: what its C and its Rust part are to each other.
 */
#ifndef _FS_KEVENT_H
#define _FS_KEVENT_H

#include <linux/kevent.h>
#include <linux/ktime.h>
#include <linux/types.h>
#include <uapi/linux/kevent.h>

/**
 * struct kevent_limit - how long to wait
 * @none: for ever
 * @clock: the clock
 * @expires: until it shows this; zero is over already
 * @slack: by how many nanoseconds it may be later
 */
struct kevent_limit {
	bool none;
	clockid_t clock;
	ktime_t expires;
	u64 slack;
};

/**
 * struct kevent_getargs - arguments of kevent_getevents(), checked
 * @events: where to copy events
 * @min_events: how many to wait for
 * @max_events: how many to copy
 * @timeout: how long to wait
 * @min_wait: how long to wait for more than one
 */
struct kevent_getargs {
	struct ukevent __user *events;
	unsigned int min_events;
	unsigned int max_events;
	struct kevent_limit timeout;
	struct kevent_limit min_wait;
};

struct files_struct;
struct user_struct;

/* Implemented in Rust, for C; see exports.rs. */
int kevent_rs_setup(void);
void kevent_rs_clock_was_set(void);
struct file *kevent_rs_create(struct kevent_params *params);
int kevent_rs_ctl(struct file *kfile, struct ukevent __user *changes,
		  unsigned int nr, unsigned int flags, int *error);
int kevent_rs_check(struct file *kfile, const struct kevent_getargs *args);
int kevent_rs_getevents(struct file *kfile, const struct kevent_getargs *args);

/* Implemented in C, for Rust; see glue.c. */
bool kevent_is_aggregator(struct file *file);
void kevent_mark_watched(struct file *file);
bool kevent_fd_refers_to(struct files_struct *files, unsigned int fd,
			 const struct file *file);

struct user_struct *kevent_get_user(void);
bool kevent_charge_user(struct user_struct *user);
void kevent_uncharge_user(struct user_struct *user);
bool kevent_node_has_memory(unsigned int node);
ktime_t kevent_time_to_host(clockid_t clock, ktime_t time);
ktime_t kevent_timer_resolution(void);
ktime_t kevent_realtime_offset(void);
u32 kevent_hash(u64 ident, u32 tag, u32 source);
bool kevent_get_change(struct ukevent *to, const struct ukevent __user *from);
unsigned int kevent_put_events(struct ukevent __user *to, const struct ukevent *event,
			       size_t stride, unsigned int nr);
bool kevent_put_event_nofault(struct ukevent __user *to, const struct ukevent *event);

#endif /* _FS_KEVENT_H */
