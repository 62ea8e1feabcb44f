/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the kevent selftests share: the system calls, a consumer of the ring,
 * and helpers that wait for events, for threads and for other processes.
 *
 * The consumer (struct kevent_ring_map, kevent_ring_map(), kevent_ring_unmap(),
 * kevent_ring_claim(), kevent_ring_fence()) depends on nothing else here and
 * follows the protocol in <linux/kevent.h>, but that one whose position is behind
 * takes what it finds there at once, and comes to what is older later on.
 */
#ifndef __KEVENT_UTIL_H
#define __KEVENT_UTIL_H

#include "kselftest_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kevent.h>
#include <linux/time_types.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* To print them, the harness makes 64-bit numbers of pointers of 32 bits. */
#pragma GCC diagnostic ignored "-Wpointer-to-int-cast"

/* How long to wait for what has to come: only a failing test takes so long. */
#define PATIENCE_MS	8000
/* How long to wait for what must not come, from a source that is slow. */
#define SETTLE_MS	30
/* A timeout that is to pass, or the time for a thread to fall asleep. */
#define MOMENT_MS	50

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME	0x00000080
#endif

#define NSEC_PER_MSEC	1000000LL
#define NSEC_PER_SEC	1000000000LL
#define HOUR_NS		(3600 * NSEC_PER_SEC)

/*
 * The system calls; each returns what the kernel does, a negated error number
 * in case of an error.
 */

static inline int sys_kevent_init(struct kevent_params *params, size_t size)
{
	long ret = syscall(__NR_kevent_init, params, size);

	return ret < 0 ? -errno : ret;
}

static inline int sys_kevent_ctl(int kfd, struct ukevent *changes,
				 unsigned int nr, unsigned int flags)
{
	long ret = syscall(__NR_kevent_ctl, kfd, changes, nr, flags);

	return ret < 0 ? -errno : ret;
}

static inline int sys_kevent_getevents(int kfd, struct ukevent *events,
				       unsigned int min, unsigned int max,
				       const struct __kernel_timespec *timeout,
				       const struct kevent_getopts *opts)
{
	long ret = syscall(__NR_kevent_getevents, kfd, events, min, max,
			   timeout, opts);

	return ret < 0 ? -errno : ret;
}

/*
 * A consumer of the ring.
 */

/**
 * struct kevent_ring_map - a mapped ring, and one consumer's place in it
 * @fd: the queue, to map what it has grown to; negative if it shall not
 * @ring: the header
 * @header_size: bytes of it
 * @slots: the set of slots that the consumer is in
 * @slots_size: bytes of it
 * @nr_slots: how many there are
 * @slot_size: bytes from one to the next
 * @cursor: the position that the consumer looks at next
 * @claimed: the position that it claimed last
 *
 * Consumers that work at the same time have a copy each.  Who goes on to a
 * larger set unmaps the one before: if the ring grows, a copy needs mappings of
 * its own, see kq_attach().
 */
struct kevent_ring_map {
	int fd;
	const struct kevent_ring *ring;
	size_t header_size;
	unsigned char *slots;
	size_t slots_size;
	__u32 nr_slots;
	__u32 slot_size;
	__u64 cursor;
	__u64 claimed;
};

static inline struct kevent_slot *
kevent_ring_slot(const struct kevent_ring_map *map, __u64 pos)
{
	__u64 index = pos & (map->nr_slots - 1);

	return (struct kevent_slot *)(map->slots + index * map->slot_size);
}

static inline __u32 kevent_ring_gen(const struct kevent_ring_map *map,
				    __u64 pos)
{
	return (pos / map->nr_slots + 1) & KEVENT_WORD_GEN_MASK;
}

static inline __u64 kevent_slot_word(const struct kevent_slot *slot)
{
	return __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE);
}

static inline __u32 kevent_ring_flags(const struct kevent_ring_map *map)
{
	return __atomic_load_n(&map->ring->flags, __ATOMIC_ACQUIRE);
}

static inline __u32 kevent_ring_rings(const struct kevent_ring_map *map)
{
	return __atomic_load_n(&map->ring->rings, __ATOMIC_ACQUIRE);
}

/* The bytes of a set of slots, as far as it can be mapped */
static inline size_t kevent_set_size(__u32 nr_slots, __u32 slot_size)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return ((size_t)nr_slots * slot_size + page - 1) / page * page;
}

/*
 * Go to the smallest set of more than @above slots, where the consumer begins
 * anew.  Zero if that was done, -ENOENT if there is none.
 */
static inline int kevent_ring_go(struct kevent_ring_map *map, __u32 above)
{
	for (;;) {
		__u32 rings = kevent_ring_rings(map);
		__u32 nr_slots, bit;
		size_t size;
		void *slots;

		for (bit = 0; bit < 32; bit++)
			if ((rings >> bit & 1) && 1U << bit > above)
				break;
		if (bit == 32)
			return -ENOENT;
		nr_slots = 1U << bit;
		size = kevent_set_size(nr_slots, map->ring->slot_size);
		slots = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			     map->fd, KEVENT_OFF_SLOTS(nr_slots));
		if (slots == MAP_FAILED) {
			/* Has it gone meanwhile? */
			if (errno == EINVAL && kevent_ring_rings(map) != rings)
				continue;
			return -errno;
		}
		if (map->slots)
			munmap(map->slots, map->slots_size);
		map->slots = slots;
		map->slots_size = size;
		map->nr_slots = nr_slots;
		map->cursor = 0;
		map->claimed = 0;
		return 0;
	}
}

/* Zero, or a negated error number */
static inline int kevent_ring_map(struct kevent_ring_map *map, int fd,
				  size_t header_size)
{
	void *ring;
	int err;

	memset(map, 0, sizeof(*map));
	ring = mmap(NULL, header_size, PROT_READ, MAP_SHARED, fd,
		    KEVENT_OFF_HEADER);
	if (ring == MAP_FAILED)
		return -errno;
	map->fd = fd;
	map->ring = ring;
	map->header_size = header_size;
	map->slot_size = map->ring->slot_size;
	if (map->ring->incompat & ~KEVENT_RING_INCOMPAT_GROWN)
		err = -EOPNOTSUPP;
	else
		err = kevent_ring_go(map, 0);
	if (err) {
		munmap(ring, header_size);
		memset(map, 0, sizeof(*map));
	}
	return err;
}

static inline void kevent_ring_unmap(struct kevent_ring_map *map)
{
	if (map->ring)
		munmap((void *)map->ring, map->header_size);
	if (map->slots)
		munmap(map->slots, map->slots_size);
	memset(map, 0, sizeof(*map));
}

/**
 * kevent_set_claim() - claim the next event in the set of slots
 * @map: the ring and the consumer's cursor
 * @ev: filled in: ident, source, flags, events (the value), user_data, tag
 *
 * Cancelled slots are claimed on the way and are no events.
 *
 * Return: true if there was an event, false if the next was not posted yet
 */
static inline bool kevent_set_claim(struct kevent_ring_map *map,
				    struct ukevent *ev)
{
	const __u32 half = (KEVENT_WORD_GEN_MASK >> 1) + 1;

	for (;;) {
		__u64 pos = map->cursor;
		struct kevent_slot *slot = kevent_ring_slot(map, pos);
		__u64 word = kevent_slot_word(slot);
		/* How many laps the slot is ahead of the cursor, modulo 2^31 */
		__u32 ahead = (KEVENT_WORD_GEN(word) -
				  kevent_ring_gen(map, pos)) &
				 KEVENT_WORD_GEN_MASK;
		bool behind = ahead >= half;

		if (word & KEVENT_WORD_READY) {
			memset(ev, 0, sizeof(*ev));
			ev->user_data = __atomic_load_n(&slot->user_data,
							__ATOMIC_RELAXED);
			ev->ident = __atomic_load_n(&slot->ident,
						    __ATOMIC_RELAXED);
			ev->source = __atomic_load_n(&slot->source,
						     __ATOMIC_RELAXED);
			ev->flags = __atomic_load_n(&slot->flags,
						    __ATOMIC_RELAXED);
			ev->tag = __atomic_load_n(&slot->tag, __ATOMIC_RELAXED);
			ev->events = KEVENT_WORD_VALUE(word);
			if (!__atomic_compare_exchange_n(&slot->word, &word,
							 KEVENT_WORD_CLAIMED(word),
							 false, __ATOMIC_ACQ_REL,
							 __ATOMIC_RELAXED))
				continue;
		} else if (behind) {
			return false;
		}

		/*
		 * The slot is the consumer's or somebody else's by now.  Left
		 * over from an earlier lap, it says nothing about the position
		 * that the cursor is at.  From a later lap, it says that
		 * everything up to one lap before it is gone: go there, which
		 * is the next position if it is the cursor's own lap or the one
		 * after it.
		 */
		if (!behind)
			map->cursor = pos + 1 + (ahead ? ahead - 1ULL : 0) *
				      map->nr_slots;

		if (word & KEVENT_WORD_READY) {
			__s64 laps = behind ?
				       (__s64)ahead - KEVENT_WORD_GEN_MASK - 1 :
				       (__s64)ahead;

			map->claimed = pos + laps * map->nr_slots;
			if (ev->events)
				return true;
		}
	}
}

/**
 * kevent_ring_claim() - claim the next event
 * @map: the ring and the consumer's cursor
 * @ev: filled in as by kevent_set_claim()
 *
 * Goes on to a larger set of slots when its own is empty for good.  After the
 * last claim of a batch comes kevent_ring_fence().
 *
 * Return: true if there was an event, false if the next was not posted yet
 */
static inline bool kevent_ring_claim(struct kevent_ring_map *map,
				     struct ukevent *ev)
{
	while (!kevent_set_claim(map, ev)) {
		if (map->fd < 0 || !map->ring ||
		    kevent_ring_rings(map) < 2ULL * map->nr_slots)
			return false;
		/*
		 * The ring has grown, so nothing is posted here any more.  What
		 * was posted before it grew can have come since the last look.
		 */
		if (kevent_set_claim(map, ev))
			return true;
		if (kevent_ring_go(map, map->nr_slots))
			return false;
	}
	return true;
}

/* What a consumer owes between its last claim and its first look at a source */
static inline void kevent_ring_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/*
 * A queue, with its ring mapped.
 */

struct kq {
	int fd;
	struct kevent_params params;
	struct kevent_ring_map map;
};

static inline int kq_map(struct kq *q)
{
	return kevent_ring_map(&q->map, q->fd, q->params.header_size);
}

static inline void kq_unmap(struct kq *q)
{
	kevent_ring_unmap(&q->map);
}

/*
 * Another consumer of the queue, with mappings of its own.  Ends with
 * kq_unmap(): the descriptor is that of @q.
 */
static inline int kq_attach(struct kq *copy, const struct kq *q)
{
	*copy = *q;
	return kq_map(copy);
}

static inline int kq_open_flags(struct kq *q, unsigned int slots,
				__u32 init_flags, __u32 node)
{
	int err;

	memset(q, 0, sizeof(*q));
	q->params.slots = slots;
	q->params.flags = init_flags;
	q->params.node = node;
	q->fd = sys_kevent_init(&q->params, sizeof(q->params));
	if (q->fd < 0)
		return q->fd;
	err = kq_map(q);
	if (err) {
		close(q->fd);
		q->fd = -1;
	}
	return err;
}

static inline int kq_open(struct kq *q, unsigned int slots)
{
	return kq_open_flags(q, slots, 0, 0);
}

static inline void kq_close(struct kq *q)
{
	kq_unmap(q);
	if (q->fd >= 0)
		close(q->fd);
	q->fd = -1;
}

/* For FIXTURE_SETUP(), where it has to be the last thing if it returns false */
static inline bool kq_setup_flags(struct __test_metadata *_metadata,
				  struct kq *q, unsigned int slots,
				  __u32 init_flags)
{
	int err = kq_open_flags(q, slots, init_flags, 0);

	if (err == -ENOSYS)
		SKIP(return false, "this kernel has no kevent");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, q->map.ring->incompat);
	return true;
}

static inline bool kq_setup(struct __test_metadata *_metadata, struct kq *q,
			    unsigned int slots)
{
	return kq_setup_flags(_metadata, q, slots, 0);
}

/*
 * Changes.  Builders return a change; what takes a queue applies it, and returns
 * one if all is well, as kevent_ctl() does.
 */

/* What an operation that takes nothing but the name needs, and others build on */
static inline struct ukevent kq_change(__u16 source, __u16 op, __u64 ident,
				       __u32 tag)
{
	return (struct ukevent) {
		.ident = ident,
		.source = source,
		.op = op,
		.tag = tag,
	};
}

static inline int kq_apply(const struct kq *q, struct ukevent change)
{
	return sys_kevent_ctl(q->fd, &change, 1, 0);
}

/* KEVENT_OP_DEL, _ENABLE and _DISABLE */
static inline int kq_op(const struct kq *q, __u16 source, __u16 op, __u64 ident,
			__u32 tag)
{
	return kq_apply(q, kq_change(source, op, ident, tag));
}

/*
 * For KEVENT_OP_ADD, _MOD and _SET.  The mode flags of a file are all that it
 * gets; timers and user events get KEVENT_EDGE in any case.
 */
static inline struct ukevent kq_mode_change(__u16 op, int fd, __u32 events,
					    __u32 mode_flags, __u64 udata)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_FD, op, fd, 0);

	change.flags = mode_flags;
	change.events = events;
	change.user_data = udata;
	return change;
}

static inline struct ukevent kq_timer_change(__u16 op, __u64 ident,
					     __u32 fflags, __u64 data,
					     __u64 interval, __u32 mode_flags,
					     __u64 udata)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_TIMER, op, ident, 0);

	change.flags = KEVENT_EDGE | mode_flags;
	change.fflags = fflags;
	change.data = data;
	change.interval = interval;
	change.user_data = udata;
	return change;
}

static inline struct ukevent kq_user_change(__u16 op, __u64 ident, __u32 kind,
					    __u32 mode_flags, __u64 udata)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_USER, op, ident, 0);

	change.flags = KEVENT_EDGE | mode_flags;
	change.events = kind;
	change.user_data = udata;
	return change;
}

/* KEVENT_OP_TRIGGER */
static inline struct ukevent kq_trigger_change(__u64 ident, __u64 data,
					       __u32 fflags)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_USER, KEVENT_OP_TRIGGER,
					  ident, 0);

	change.data = data;
	change.fflags = fflags;
	return change;
}

static inline int kq_add_mode(const struct kq *q, int fd, __u32 events,
			      __u32 mode_flags, __u64 udata)
{
	return kq_apply(q, kq_mode_change(KEVENT_OP_ADD, fd, events, mode_flags,
					  udata));
}

static inline int kq_mod_mode(const struct kq *q, int fd, __u32 events,
			      __u32 mode_flags, __u64 udata)
{
	return kq_apply(q, kq_mode_change(KEVENT_OP_MOD, fd, events, mode_flags,
					  udata));
}

static inline int kq_set_mode(const struct kq *q, int fd, __u32 events,
			      __u32 mode_flags, __u64 udata)
{
	return kq_apply(q, kq_mode_change(KEVENT_OP_SET, fd, events, mode_flags,
					  udata));
}

static inline int kq_add_timer(const struct kq *q, __u64 ident, __u32 fflags,
			       __u64 data, __u64 interval, __u64 udata)
{
	return kq_apply(q, kq_timer_change(KEVENT_OP_ADD, ident, fflags, data,
					   interval, 0, udata));
}

static inline int kq_mod_timer(const struct kq *q, __u64 ident, __u32 fflags,
			       __u64 data, __u64 interval, __u64 udata)
{
	return kq_apply(q, kq_timer_change(KEVENT_OP_MOD, ident, fflags, data,
					   interval, 0, udata));
}

/* @kind is KEVENT_USER_COUNT or _FLAGS, @flags the mode. */
static inline int kq_add_user(const struct kq *q, __u64 ident, __u32 kind,
			      __u32 flags, __u64 udata)
{
	return kq_apply(q, kq_user_change(KEVENT_OP_ADD, ident, kind, flags,
					  udata));
}

static inline int kq_trigger(const struct kq *q, __u64 ident, __u64 data,
			     __u32 fflags)
{
	return kq_apply(q, kq_trigger_change(ident, data, fflags));
}

static inline int kq_grow(const struct kq *q, __u64 slots)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_QUEUE, KEVENT_OP_GROW,
					  0, 0);

	change.data = slots;
	return kq_apply(q, change);
}

static inline int kq_wake(const struct kq *q)
{
	return kq_op(q, KEVENT_SOURCE_QUEUE, KEVENT_OP_WAKE, 0, 0);
}

static inline int kq_move(const struct kq *from, const struct kq *to,
			  __u16 source, __u64 ident, __u32 tag)
{
	struct ukevent change = kq_change(source, KEVENT_OP_MOVE, ident, tag);

	change.data = to->fd;
	return kq_apply(from, change);
}

/* The change that does @op to @fd; @events and @udata as for an addition */
static inline struct ukevent kq_fd_change(unsigned int op, int fd,
					  __u32 events, __u64 udata)
{
	if (op == KEVENT_OP_ADD || op == KEVENT_OP_MOD || op == KEVENT_OP_SET)
		return kq_mode_change(op, fd, events, KEVENT_EDGE, udata);
	return kq_change(KEVENT_SOURCE_FD, op, fd, 0);
}

static inline int kq_ctl(const struct kq *q, unsigned int op, int fd,
			 __u32 events, __u64 udata)
{
	return kq_apply(q, kq_fd_change(op, fd, events, udata));
}

static inline int kq_add(const struct kq *q, int fd, __u32 events,
			 __u64 udata)
{
	return kq_ctl(q, KEVENT_OP_ADD, fd, events, udata);
}

static inline int kq_mod(const struct kq *q, int fd, __u32 events,
			 __u64 udata)
{
	return kq_ctl(q, KEVENT_OP_MOD, fd, events, udata);
}

static inline int kq_del(const struct kq *q, int fd)
{
	return kq_ctl(q, KEVENT_OP_DEL, fd, 0, 0);
}

/*
 * Time
 */

static inline struct __kernel_timespec ms_to_timespec(unsigned int ms)
{
	return (struct __kernel_timespec) {
		.tv_sec = ms / 1000,
		.tv_nsec = ms % 1000 * NSEC_PER_MSEC,
	};
}

static inline struct __kernel_timespec ns_to_timespec(__s64 ns)
{
	return (struct __kernel_timespec) {
		.tv_sec = ns / NSEC_PER_SEC,
		.tv_nsec = ns % NSEC_PER_SEC,
	};
}

static inline __s64 clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

static inline __s64 now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static inline void sleep_ms(unsigned int ms)
{
	struct timespec ts = {
		.tv_sec = ms / 1000,
		.tv_nsec = ms % 1000 * NSEC_PER_MSEC,
	};

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static inline int kq_getevents(const struct kq *q, struct ukevent *evs,
			       unsigned int min, unsigned int max,
			       unsigned int timeout_ms)
{
	struct __kernel_timespec ts = ms_to_timespec(timeout_ms);

	return sys_kevent_getevents(q->fd, evs, min, max, &ts, NULL);
}

/* Lets in what waits behind a full ring, and collects nothing */
static inline int kq_let_in(const struct kq *q)
{
	return kq_getevents(q, NULL, 0, 0, 0);
}

static inline struct kevent_getopts kq_opts(__u32 flags)
{
	return (struct kevent_getopts) {
		.size = sizeof(struct kevent_getopts),
		.flags = flags,
	};
}

/* As kq_getevents(), with options */
static inline int kq_getevents_opts(const struct kq *q, struct ukevent *evs,
				    unsigned int min, unsigned int max,
				    unsigned int timeout_ms,
				    const struct kevent_getopts *opts)
{
	struct __kernel_timespec ts = ms_to_timespec(timeout_ms);

	return sys_kevent_getevents(q->fd, evs, min, max, &ts, opts);
}

/*
 * Two ways to collect the same events.
 */

enum collect_by {
	BY_RING,
	BY_SYSCALL,
};

/* Collect what there is, without waiting. */
static inline int kq_collect(struct kq *q, enum collect_by by,
			     struct ukevent *evs, unsigned int max)
{
	unsigned int nr = 0;

	if (by == BY_SYSCALL)
		return kq_getevents(q, evs, 0, max, 0);

	while (nr < max && kevent_ring_claim(&q->map, &evs[nr]))
		nr++;
	kevent_ring_fence();
	return nr;
}

/* Wait for one event: one if it came, zero if it did not. */
static inline int kq_next(struct kq *q, enum collect_by by, struct ukevent *ev)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;

	if (by == BY_SYSCALL)
		return kq_getevents(q, ev, 1, 1, PATIENCE_MS);

	while (!kq_collect(q, by, ev, 1)) {
		if (now_ns() > end)
			return 0;
		sleep_ms(1);
	}
	return 1;
}

/*
 * Is @value one that a source may report which was asked for @asked, and for
 * which all of @must is true?  A source that was woken without saying why may
 * be anything that was asked for.
 */
static inline bool fd_value_ok(__u32 value, __u32 asked, __u32 must)
{
	__u32 always = EPOLLERR | EPOLLHUP;

	if (value & KEVENT_FD_HINT)
		return (value & ~always) == ((asked & ~always) | KEVENT_FD_HINT);
	return value && (value & must) == must && !(value & ~(asked | always));
}

/*
 * The next event has to be of @fd, and say what it should; gives the value.
 * @mode is the mode of the registration.
 */
static inline __u32 __want_mode(struct __test_metadata *_metadata, int line,
				struct kq *q, enum collect_by by, int fd,
				__u32 asked, __u32 must, __u32 mode,
				__u64 udata)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_next(q, by, &ev))
		TH_LOG("line %d: no event of fd %d", line, fd);
	EXPECT_EQ(fd, ev.ident)
		TH_LOG("line %d", line);
	EXPECT_EQ(KEVENT_SOURCE_FD, ev.source)
		TH_LOG("line %d", line);
	EXPECT_EQ(0, ev.tag)
		TH_LOG("line %d", line);
	EXPECT_EQ(udata, ev.user_data)
		TH_LOG("line %d", line);
	EXPECT_TRUE(fd_value_ok(ev.events, asked, must))
		TH_LOG("line %d: value %#x; asked for %#x, expected %#x", line,
		       ev.events, asked, must);
	/* The ring has no room for the flags of the registration. */
	EXPECT_EQ(by == BY_RING ? 0 : mode, ev.flags)
		TH_LOG("line %d", line);
	EXPECT_EQ(0, ev.data)
		TH_LOG("line %d", line);
	return ev.events;
}

static inline __u32 __want_event(struct __test_metadata *_metadata, int line,
				 struct kq *q, enum collect_by by, int fd,
				 __u32 asked, __u32 must, __u64 udata)
{
	return __want_mode(_metadata, line, q, by, fd, asked, must, KEVENT_EDGE,
			   udata);
}

#define want_event(q, by, fd, asked, must, udata) \
	__want_event(_metadata, __LINE__, q, by, fd, asked, must, udata)
/* Of a registration that is of another mode than KEVENT_EDGE alone */
#define want_mode(q, by, fd, asked, must, mode, udata) \
	__want_mode(_metadata, __LINE__, q, by, fd, asked, must, mode, udata)

/* The next event has to be of a timer or a user event, and have this value. */
static inline void __want_value(struct __test_metadata *_metadata, int line,
				struct kq *q, enum collect_by by, __u16 source,
				__u64 ident, __u32 value, __u64 udata)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_next(q, by, &ev))
		TH_LOG("line %d: no event of %llu", line, ident);
	EXPECT_EQ(source, ev.source)
		TH_LOG("line %d", line);
	EXPECT_EQ(ident, ev.ident)
		TH_LOG("line %d", line);
	EXPECT_EQ(value, ev.events)
		TH_LOG("line %d", line);
	EXPECT_EQ(udata, ev.user_data)
		TH_LOG("line %d", line);
}

#define want_value(q, by, source, ident, value, udata) \
	__want_value(_metadata, __LINE__, q, by, source, ident, value, udata)

static inline void __want_none(struct __test_metadata *_metadata, int line,
			       struct kq *q, enum collect_by by)
{
	struct ukevent ev;

	EXPECT_EQ(0, kq_collect(q, by, &ev, 1))
		TH_LOG("line %d: source %u, ident %lld, value %#x, user data %#llx",
		       line, ev.source, ev.ident, ev.events, ev.user_data);
}

#define want_none(q, by) __want_none(_metadata, __LINE__, q, by)

/*
 * Randomness, the same again if KEVENT_SEED says what was printed
 */

static inline __u64 random_seed(void)
{
	const char *env = getenv("KEVENT_SEED");
	__u64 seed;

	seed = env ? strtoull(env, NULL, 0) : now_ns() ^ (__u64)getpid() << 32;
	printf("# KEVENT_SEED=%llu\n", seed);
	/* A test does not end with exit(). */
	fflush(stdout);
	/* Zero would stay what it is. */
	return seed ? seed : 1;
}

static inline __u64 next_random(__u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/*
 * Sources that tests use most
 */

static inline int open_eventfd(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

/* Makes an eventfd readable, and wakes who waits for that. */
static inline void signal_eventfd(int fd)
{
	__u64 one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* What was written since the last call */
static inline __u64 drain_eventfd(int fd)
{
	__u64 val;

	return read(fd, &val, sizeof(val)) == sizeof(val) ? val : 0;
}

/*
 * Other threads and processes
 */

/* Two ends; what one posts, the other waits for. */
static inline int sync_open(int s[2])
{
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
}

static inline void sync_post(int s)
{
	char c = 0;

	while (send(s, &c, 1, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* False if the other end is closed */
static inline bool sync_wait(int s)
{
	char c;
	ssize_t n;

	do {
		n = read(s, &c, 1);
	} while (n < 0 && errno == EINTR);
	return n == 1;
}

/* Waits for a child: its exit code, or 128 and the signal that ended it */
static inline int reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) != pid)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) :
				   128 + WTERMSIG(status);
}

static inline int send_fd(int sock, int fd)
{
	char c = 0, control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* A negative number if none came */
static inline int receive_fd(int sock)
{
	char c, control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

static inline bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t len = strlen(text);
	bool ok = fd >= 0 && write(fd, text, len) == len;

	if (fd >= 0)
		close(fd);
	return ok;
}

/*
 * In a new time namespace, before anybody is in it: two clocks are ahead, for
 * those who are born into it.
 */
static inline bool shift_time_namespace(void)
{
	return write_file("/proc/self/timens_offsets",
			  "monotonic 10000 0\nboottime 20000 0\n");
}

/* A thread that makes one call of kevent_getevents() */
struct waiter {
	pthread_t thread;
	const struct kq *q;
	bool wait_only;		/* collect nothing */
	bool forever;		/* give no timeout */
	const struct kevent_getopts *opts;
	unsigned int min;
	unsigned int max;	/* not more than the size of evs */
	pid_t tid;
	int done;
	int ret;
	struct ukevent evs[16];
};

static inline void *waiter_fn(void *arg)
{
	/* Long enough to tell a lost wake-up from a slow one */
	struct __kernel_timespec ts = ms_to_timespec(4 * PATIENCE_MS);
	struct waiter *w = arg;

	__atomic_store_n(&w->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	w->ret = sys_kevent_getevents(w->q->fd, w->wait_only ? NULL : w->evs,
				      w->min, w->wait_only ? 0 : w->max,
				      w->forever ? NULL : &ts, w->opts);
	__atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static inline bool waiter_done(struct waiter *w)
{
	return __atomic_load_n(&w->done, __ATOMIC_ACQUIRE);
}

/* The state of a thread or process, of which @path is the stat file */
static inline char task_state(const char *path)
{
	char buf[256], *state;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	buf[n > 0 ? n : 0] = 0;
	state = strrchr(buf, ')');
	return state && state[1] ? state[2] : 0;
}

/*
 * Until a thread sleeps, or @done says that it need not be waited for.  No test
 * depends on it: one that goes on too early only tests something easier.
 */
static inline void wait_until_asleep(pid_t *tid, int *done)
{
	char path[64];

	while (!__atomic_load_n(tid, __ATOMIC_ACQUIRE))
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", *tid);
	for (int tries = 0; tries < 1000; tries++) {
		char state;

		if (done && __atomic_load_n(done, __ATOMIC_ACQUIRE))
			return;
		state = task_state(path);
		if (!state || state == 'S')
			return;
		sched_yield();
	}
}

/* The same for a process, which may also have ended. */
static inline void wait_until_process_asleep(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (int tries = 0; tries < 1000; tries++) {
		char state = task_state(path);

		if (!state || state == 'S' || state == 'Z')
			return;
		sched_yield();
	}
}

/*
 * Stops a child that makes one call of kevent_getevents(), and lets it go on,
 * until the call is over: the status that waitpid() gives in the end.
 */
static inline int stop_and_continue(struct __test_metadata *_metadata,
				    pid_t pid)
{
	int status = 0;

	wait_until_process_asleep(pid);
	/* Again, if it was not there yet */
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		kill(pid, SIGSTOP);
		ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
		if (!WIFSTOPPED(status))
			break;
		kill(pid, SIGCONT);
		sleep_ms(1);
		if (waitpid(pid, &status, WNOHANG) == pid)
			break;
	}
	if (WIFSTOPPED(status)) {
		kill(pid, SIGKILL);
		reap(pid);
	}
	return status;
}

static inline int waiter_start(struct waiter *w, const struct kq *q,
			       unsigned int min, unsigned int max)
{
	int err;

	w->q = q;
	w->min = min;
	w->max = max;
	w->tid = 0;
	w->done = 0;
	err = pthread_create(&w->thread, NULL, waiter_fn, w);
	if (!err)
		wait_until_asleep(&w->tid, &w->done);
	return -err;
}

/*
 * True if the call has come to its end, with what it returned in ret; false if
 * it has not, after all the time that it could want.
 */
static inline bool waiter_join(struct waiter *w)
{
	for (int ms = 0; !waiter_done(w); ms++) {
		if (ms > PATIENCE_MS)
			return false;
		sleep_ms(1);
	}
	pthread_join(w->thread, NULL);
	return true;
}

#endif /* __KEVENT_UTIL_H */
