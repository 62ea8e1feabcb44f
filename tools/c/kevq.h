/* SPDX-License-Identifier: MIT */
/*
 * kevq: kevent queues for C11 and C++17 programs, with a consumer of the ring.
 *
 *	struct kevq_event events[64];
 *	struct kevq queue;
 *	int i, n;
 *
 *	if (kevq_open(&queue, 1024) || kevq_add(&queue, fd, EPOLLIN, 1))
 *		return 1;
 *	while ((n = kevq_poll(&queue, events, 64, KEVQ_FOREVER)) >= 0 || n == -EINTR)
 *		for (i = 0; i < n; i++)
 *			handle(events[i].user_data, events[i].value);
 *
 * Everything is static inline.  Nothing allocates memory.  What fails returns a
 * negated error number, as -ENOSYS on a kernel without kevent.
 *
 * <linux/kevent.h> and Documentation/userspace-api/kevent.rst are the contract.
 * Names that end in an underscore are internal.
 */
#ifndef KEVQ_H
#define KEVQ_H

#include <errno.h>
#include <linux/kevent.h>
#include <linux/time_types.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __NR_kevent_init
#if defined(__alpha__) || defined(__mips__) || (defined(__x86_64__) && defined(__ILP32__))
#error "the numbers of the system calls are different here: use the headers of the kernel"
#endif
#define __NR_kevent_init	473
#define __NR_kevent_ctl		474
#define __NR_kevent_getevents	475
#endif

/* A timeout of kevq_poll() and others; what is negative is for ever. */
#define KEVQ_FOREVER	((int64_t)-1)
#define KEVQ_MS(n)	((int64_t)(n) * 1000000)
#define KEVQ_SEC(n)	((int64_t)(n) * 1000000000)

/* The features of kevent_ring.incompat that are known here */
#define KEVQ_KNOWN_	KEVENT_RING_INCOMPAT_GROWN
/* How many events are collected at most when the system call must be used */
#define KEVQ_SPILL_	64u

#ifdef __cplusplus
extern "C" {
#else
/* With -std=c11, <unistd.h> does not have it. */
extern long syscall(long number, ...);
#endif

/**
 * struct kevq - a queue, and one consumer of its ring
 * @fd: the queue
 * @owns_fd: whether kevq_close() closes it
 * @header: the header of the ring, mapped
 * @slots: the set of slots that the consumer is in, mapped
 * @slot_size: bytes from one slot to the next
 * @count: how many slots there are in the set, a power of two
 * @shift: log2 of @count
 * @cursor: the position that the consumer looks at next
 *
 * One thread at a time may consume through it.  Another thread takes one of its
 * own, by kevq_attach().  Changes can be made by any thread.
 */
struct kevq {
	int fd;
	int owns_fd;
	const struct kevent_ring *header;
	unsigned char *slots;
	size_t slot_size;
	uint32_t count;
	uint32_t shift;
	uint64_t cursor;
};

/**
 * struct kevq_event - an event that was collected
 * @user_data: as given at registration
 * @ident: as given at registration, for a file its descriptor
 * @source: KEVENT_SOURCE_*
 * @flags: of the slot: zero
 * @tag: as given at registration
 * @value: what the source reports: EPOLL* bits, a count, or flags
 * @resv: nothing
 *
 * All but the value is as in struct kevent_slot.
 */
struct kevq_event {
	uint64_t user_data;
	uint64_t ident;
	uint16_t source;
	uint16_t flags;
	uint32_t tag;
	uint32_t value;
	uint32_t resv;
};

/*
 * The system calls
 */

static inline int kevq_sys_init(struct kevent_params *params, size_t size)
{
	long ret = syscall(__NR_kevent_init, params, size);

	return ret < 0 ? -errno : (int)ret;
}

static inline int kevq_sys_ctl(int fd, struct ukevent *changes, unsigned int nr,
			       unsigned int flags)
{
	long ret = syscall(__NR_kevent_ctl, fd, changes, nr, flags);

	return ret < 0 ? -errno : (int)ret;
}

static inline int kevq_sys_getevents(int fd, struct ukevent *events, unsigned int min,
				     unsigned int max, const struct __kernel_timespec *timeout,
				     const struct kevent_getopts *opts)
{
	long ret = syscall(__NR_kevent_getevents, fd, events, min, max, timeout, opts);

	return ret < 0 ? -errno : (int)ret;
}

/**
 * kevq_probe() - find out whether this kernel has kevent
 *
 * Return: 0 if it has, -ENOSYS if not, another error if a sandbox forbids it
 */
static inline int kevq_probe(void)
{
	/* A kernel that has it finds that the argument is too small. */
	int ret = kevq_sys_init(NULL, 0);

	if (ret == -EINVAL)
		return 0;
	return ret < 0 ? ret : -ENOSYS;
}

/*
 * Changes.  Each of these makes one for kevq_ctl() or kevq_apply(); what it does not
 * set can be set in the structure: flags for other modes, op, tag and so on.
 */

/* A change that only names something: KEVENT_OP_DEL, _ENABLE, _DISABLE and such */
static inline struct ukevent kevq_change(unsigned int op, unsigned int source, uint64_t ident)
{
	struct ukevent change;

	memset(&change, 0, sizeof(change));
	change.op = (__u16)op;
	change.source = (__u16)source;
	change.ident = ident;
	return change;
}

/* Register a file, edge-triggered, for EPOLL* @events */
static inline struct ukevent kevq_file(int fd, uint32_t events, uint64_t user_data)
{
	struct ukevent change = kevq_change(KEVENT_OP_ADD, KEVENT_SOURCE_FD, (uint64_t)fd);

	change.flags = KEVENT_EDGE;
	change.events = events;
	change.user_data = user_data;
	return change;
}

/*
 * Register a timer of CLOCK_MONOTONIC that expires after @first nanoseconds, and then
 * every @interval, if that is not zero
 */
static inline struct ukevent kevq_timer(uint64_t ident, uint64_t first, uint64_t interval,
					uint64_t user_data)
{
	struct ukevent change = kevq_change(KEVENT_OP_ADD, KEVENT_SOURCE_TIMER, ident);

	change.flags = KEVENT_EDGE;
	change.fflags = 1; /* CLOCK_MONOTONIC */
	change.data = first;
	change.interval = interval;
	change.user_data = user_data;
	return change;
}

/* Register a user event; @kind is KEVENT_USER_COUNT or KEVENT_USER_FLAGS */
static inline struct ukevent kevq_user(uint64_t ident, uint32_t kind, uint64_t user_data)
{
	struct ukevent change = kevq_change(KEVENT_OP_ADD, KEVENT_SOURCE_USER, ident);

	change.flags = KEVENT_EDGE;
	change.events = kind;
	change.user_data = user_data;
	return change;
}

/**
 * kevq_ctl() - apply changes in order
 * @q: the queue
 * @changes: what to change
 * @nr: how many changes
 * @flags: KEVENT_CTL_RESULTS, or zero
 *
 * The results of an earlier call are cleared, so what failed can be tried again.
 *
 * Return: how many were applied, which is less than @nr if one failed; the error if
 * that was the first and @flags is zero
 */
static inline int kevq_ctl(const struct kevq *q, struct ukevent *changes, unsigned int nr,
			   unsigned int flags)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		changes[i].result = 0;
	return kevq_sys_ctl(q->fd, changes, nr, flags);
}

/* Apply one change: zero, or a negated error number, as for all that follow */
static inline int kevq_apply(const struct kevq *q, struct ukevent change)
{
	int ret = kevq_ctl(q, &change, 1, 0);

	return ret < 0 ? ret : 0;
}

/* Register a file, edge-triggered; the registration ends when @fd is closed. */
static inline int kevq_add(const struct kevq *q, int fd, uint32_t events, uint64_t user_data)
{
	return kevq_apply(q, kevq_file(fd, events, user_data));
}

/* Replace what kevq_add() was given. */
static inline int kevq_mod(const struct kevq *q, int fd, uint32_t events, uint64_t user_data)
{
	struct ukevent change = kevq_file(fd, events, user_data);

	change.op = KEVENT_OP_MOD;
	return kevq_apply(q, change);
}

/* Unregister a file; no event of it can be claimed once this has returned. */
static inline int kevq_del(const struct kevq *q, int fd)
{
	return kevq_apply(q, kevq_change(KEVENT_OP_DEL, KEVENT_SOURCE_FD, (uint64_t)fd));
}

/* Add to a user event of the kind KEVENT_USER_COUNT. */
static inline int kevq_trigger(const struct kevq *q, uint64_t ident, uint64_t count)
{
	struct ukevent change = kevq_change(KEVENT_OP_TRIGGER, KEVENT_SOURCE_USER, ident);

	change.data = count;
	return kevq_apply(q, change);
}

/* Make @slots slots of the ring, more than there are; consumers follow by themselves. */
static inline int kevq_grow(const struct kevq *q, unsigned int slots)
{
	struct ukevent change = kevq_change(KEVENT_OP_GROW, KEVENT_SOURCE_QUEUE, 0);

	change.data = slots;
	return kevq_apply(q, change);
}

/* Let all threads that wait return; those that call later are not concerned. */
static inline int kevq_wake(const struct kevq *q)
{
	return kevq_apply(q, kevq_change(KEVENT_OP_WAKE, KEVENT_SOURCE_QUEUE, 0));
}

/*
 * What the consumer is built upon; a test has its own.
 */

#ifdef KEVQ_TEST_BACKEND
uint32_t kevq_flags_(const struct kevq *q);
uint32_t kevq_incompat_(const struct kevq *q);
uint32_t kevq_rings_(const struct kevq *q);
int kevq_map_(struct kevq *q, uint32_t count);
int kevq_getevents_(const struct kevq *q, struct ukevent *events, unsigned int min,
		    unsigned int max, int64_t timeout);
#else
static inline uint32_t kevq_flags_(const struct kevq *q)
{
	return __atomic_load_n(&q->header->flags, __ATOMIC_RELAXED);
}

static inline uint32_t kevq_incompat_(const struct kevq *q)
{
	return __atomic_load_n(&q->header->incompat, __ATOMIC_RELAXED);
}

static inline uint32_t kevq_rings_(const struct kevq *q)
{
	return __atomic_load_n(&q->header->rings, __ATOMIC_ACQUIRE);
}

static inline void *kevq_mmap_(int fd, size_t size, int prot, uint64_t offset)
{
#if defined(__NR_mmap2) && !defined(__LP64__)
	/* Here off_t may have 32 bits, and offsets of slots can have more. */
	long at = syscall(__NR_mmap2, NULL, size, prot, MAP_SHARED, fd, (long)(offset >> 12));

	return at == -1 ? MAP_FAILED : (void *)at;
#else
	return mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset);
#endif
}

/* Goes to the set with @count slots. */
static inline int kevq_map_(struct kevq *q, uint32_t count)
{
	size_t slot_size = q->header->slot_size;
	void *slots;

	if (!count || count & (count - 1) || count > KEVENT_MAX_SLOTS ||
	    slot_size < sizeof(struct kevent_slot) || slot_size > 4096 || slot_size % 8)
		return -EPROTO;
	slots = kevq_mmap_(q->fd, count * slot_size, PROT_READ | PROT_WRITE,
			   KEVENT_OFF_SLOTS((uint64_t)count));
	if (slots == MAP_FAILED)
		return -errno;
	if (q->slots)
		munmap(q->slots, q->count * q->slot_size);
	q->slots = (unsigned char *)slots;
	q->slot_size = slot_size;
	q->count = count;
	return 0;
}

static inline int kevq_getevents_(const struct kevq *q, struct ukevent *events, unsigned int min,
				  unsigned int max, int64_t timeout)
{
	struct __kernel_timespec time;

	time.tv_sec = timeout / 1000000000;
	time.tv_nsec = timeout % 1000000000;
	return kevq_sys_getevents(q->fd, events, min, max, timeout < 0 ? NULL : &time, NULL);
}
#endif

/*
 * The consumer.  The cursor is the position that is looked for next, counted from 0.
 * Nothing depends on its being right but how soon an event is found.
 */

/* The word of a slot; in 32-bit programs, too, it is aligned to 8 bytes. */
typedef __u64 __attribute__((__aligned__(8), __may_alias__)) kevq_word_;

static inline struct kevent_slot *kevq_slot_(const struct kevq *q, uint64_t position)
{
	size_t index = (size_t)position & (q->count - 1);

	return (struct kevent_slot *)(void *)(q->slots + index * q->slot_size);
}

static inline uint64_t kevq_load_(const struct kevent_slot *slot)
{
	return __atomic_load_n((const kevq_word_ *)(const void *)&slot->word, __ATOMIC_ACQUIRE);
}

/*
 * Puts the cursor to the oldest position that may still hold an event.
 *
 * Slot 0 tells the lap, and everything up to a lap before that may still be there: the
 * search starts at slot 1 of the lap before.  If nothing has been posted at all this is
 * before the first lap; that does no harm, as slots of generation 0 count as consumed.
 */
static inline void kevq_resynchronise_(struct kevq *q)
{
	uint64_t gen = KEVENT_WORD_GEN(kevq_load_(kevq_slot_(q, 0)));
	uint64_t lap = (gen - 1) & KEVENT_WORD_GEN_MASK;

	q->cursor = (lap << q->shift) - (((uint64_t)1 << q->shift) - 1);
}

static inline int kevq_go_(struct kevq *q, uint32_t count)
{
	int err = kevq_map_(q, count);

	if (err)
		return err;
	q->shift = (uint32_t)__builtin_ctz(count);
	kevq_resynchronise_(q);
	return 0;
}

/* Copies all of an event but the value; it means something once the word was claimed. */
static inline void kevq_copy_(struct kevq_event *event, const struct kevent_slot *slot)
{
	memcpy(event, &slot->user_data, offsetof(struct kevq_event, value));
}

/*
 * Exchanges *@word for @claimed.
 *
 * Release: the payload was read before the kernel may use the slot again.  If it fails,
 * more was merged into the event, or somebody was faster; *@word is what is there.
 */
static inline int kevq_exchange_(struct kevent_slot *slot, kevq_word_ *word, uint64_t claimed)
{
	return __atomic_compare_exchange_n((kevq_word_ *)(void *)&slot->word, word, claimed, 0,
					   __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/*
 * Looks at the slot of the cursor, and claims what is there: 1 if that is an event, 0 if
 * it is none but the next position is worth a look, -1 if what the cursor looks for is not
 * posted yet.
 */
static inline int kevq_look_(struct kevq *q, struct kevq_event *event)
{
	struct kevent_slot *slot = kevq_slot_(q, q->cursor);
	uint32_t gen = (uint32_t)(q->cursor >> q->shift) + 1;
	kevq_word_ word = kevq_load_(slot);

	for (;;) {
		/* Laps that the slot is ahead of the cursor, modulo 2^31 */
		uint32_t ahead = (KEVENT_WORD_GEN(word) - gen) & KEVENT_WORD_GEN_MASK;
		int behind = ahead > KEVENT_WORD_GEN_MASK / 2;

		if (ahead && !behind) {
			/*
			 * The cursor is stale.  The kernel posts in order: when it came to
			 * this slot again, everything that is a lap or more before that was
			 * gone.  What is here is younger than all in between, and its turn
			 * comes.
			 */
			q->cursor += ((uint64_t)(ahead - 1) << q->shift) + 1;
			return 0;
		}
		if (!(word & KEVENT_WORD_READY)) {
			if (behind)
				return -1;
			q->cursor++;
			return 0;
		}
		kevq_copy_(event, slot);
		event->value = KEVENT_WORD_VALUE(word);
		if (kevq_exchange_(slot, &word, KEVENT_WORD_CLAIMED(word))) {
			/*
			 * An event of an earlier lap, which somebody skipped, is as good as
			 * any; but the cursor's own is still to come.
			 */
			if (!behind)
				q->cursor++;
			/* Zero: it was cancelled. */
			return event->value != 0;
		}
	}
}

/*
 * Claims ready events of the cursor's lap, one after the other, up to @max: what most
 * events are, in few instructions.  Ends where anything else is.
 */
static inline unsigned int kevq_run_(struct kevq *q, struct kevq_event *events, unsigned int max)
{
	uint32_t ready = ((uint32_t)(q->cursor >> q->shift) + 1) << 1 | KEVENT_WORD_READY;
	unsigned char *at = (unsigned char *)kevq_slot_(q, q->cursor);
	size_t left = q->count - ((size_t)q->cursor & (q->count - 1));
	struct kevq_event *end = events + (max < left ? max : left);
	struct kevq_event *event = events;

	while (event < end) {
		struct kevent_slot *slot = (struct kevent_slot *)(void *)at;
		kevq_word_ word = kevq_load_(slot);
		uint32_t value = KEVENT_WORD_VALUE(word);

		if ((uint32_t)word != ready || !value)
			break;
		kevq_copy_(event, slot);
		event->value = value;
		if (!kevq_exchange_(slot, &word, ready ^ KEVENT_WORD_READY))
			break;
		at += q->slot_size;
		event++;
	}
	q->cursor += (uint64_t)(event - events);
	return (unsigned int)(event - events);
}

/*
 * Claims what is in this set, up to @max.  *@empty tells whether there is nothing left.
 */
static inline unsigned int kevq_drain_(struct kevq *q, struct kevq_event *events,
				       unsigned int max, int *empty)
{
	/*
	 * Two laps catch up with everything.  In a ring that this program has scribbled
	 * over it could go on for ever.
	 */
	uint64_t skips = (uint64_t)4 << q->shift;
	unsigned int n = 0;
	int found;

	*empty = 0;
	for (;;) {
		n += kevq_run_(q, events + n, max - n);
		if (n == max)
			return n;
		found = kevq_look_(q, events + n);
		if (found > 0) {
			n++;
		} else if (found < 0) {
			*empty = 1;
			return n;
		} else if (!skips--) {
			return n;
		}
	}
}

/**
 * kevq_claim() - claim events from the ring, without a system call
 * @q: the consumer
 * @events: where to put them
 * @max: how many there is room for
 *
 * When it finds nothing, the caller owes the kernel a kevq_wait() for one event sooner
 * or later; and what is level-triggered is never in the ring.  kevq_poll() sees to both.
 *
 * Return: how many there were
 */
static inline unsigned int kevq_claim(struct kevq *q, struct kevq_event *events,
				      unsigned int max)
{
	unsigned int n = 0;

	if (kevq_incompat_(q) & ~KEVQ_KNOWN_)
		return 0;
	for (;;) {
		/*
		 * Whoever has seen a larger set before a look at all of this one has seen
		 * the last event of this one.
		 */
		uint32_t larger = kevq_rings_(q) & ~(q->count | (q->count - 1));
		int empty;

		n += kevq_drain_(q, events + n, max - n, &empty);
		if (!empty || !larger)
			break;
		larger &= 0 - larger;
		/*
		 * If it is gone, all of its events were claimed.  If it is still there, it
		 * cannot be mapped, and kevq_poll() collects from it.
		 */
		if (kevq_go_(q, larger) && kevq_rings_(q) & larger)
			break;
	}
	/*
	 * The claims come before any look at the sources: the kernel either sees that the
	 * events were taken, and posts anew, or the caller sees what the source has to say.
	 * On x86, an exchange that succeeds is a full fence itself.
	 */
	if (n) {
#if defined(__x86_64__) || defined(__i386__)
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
#else
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
	}
	return n;
}

/**
 * kevq_wait() - wait until @min events can be collected, by anybody
 * @q: the queue
 * @min: how many
 * @timeout: nanoseconds; zero does not wait, KEVQ_FOREVER is for ever
 *
 * Return: how many there are, counting no further than @min; or -EINTR, if a signal was
 * caught
 */
static inline int kevq_wait(const struct kevq *q, unsigned int min, int64_t timeout)
{
	return kevq_getevents_(q, NULL, min, 0, timeout);
}

/* Collects through the kernel, and tells how many of the events were in the ring. */
static inline int kevq_collect_(const struct kevq *q, struct kevq_event *events, unsigned int max,
				unsigned int min, int64_t timeout, int *of_ring)
{
	struct ukevent raw[KEVQ_SPILL_];
	int i, n;

	*of_ring = 0;
	n = kevq_getevents_(q, raw, min, max < KEVQ_SPILL_ ? max : KEVQ_SPILL_, timeout);
	for (i = 0; i < n; i++) {
		events[i].user_data = raw[i].user_data;
		events[i].ident = raw[i].ident;
		events[i].source = raw[i].source;
		events[i].flags = 0;
		events[i].tag = raw[i].tag;
		events[i].value = raw[i].events;
		*of_ring += !(raw[i].flags & KEVENT_LEVEL);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return n;
}

/**
 * kevq_poll() - collect events, and wait if there are none
 * @q: the consumer
 * @events: where to put them
 * @max: how many there is room for, at least one
 * @timeout: nanoseconds; zero does not wait, KEVQ_FOREVER is for ever
 *
 * Makes no system call as long as the ring has events and the header does not ask for
 * one.
 *
 * Return: how many there were: zero if the timeout is over, if another consumer was
 * faster, if what there was is so no longer, or if there was a kevq_wake(), so zero does
 * not mean that the timeout is over; or -EINTR, if a signal was caught or the process
 * went on after it was stopped
 */
static inline int kevq_poll(struct kevq *q, struct kevq_event *events, unsigned int max,
			    int64_t timeout)
{
	uint32_t flags = kevq_flags_(q);
	int n = 0, of_ring, ret;

	if (!max)
		return -EINVAL;
	if (max > INT32_MAX)
		max = INT32_MAX;
	/* A ring that has got features which are not known here is left alone. */
	if (kevq_incompat_(q) & ~KEVQ_KNOWN_)
		return kevq_collect_(q, events, max, 1, timeout, &of_ring);
	/*
	 * In the call, what is in the ring and what is not take turns, so that neither
	 * starves.
	 */
	if (flags & KEVENT_RING_LEVEL_READY) {
		n = kevq_collect_(q, events, max, 0, 0, &of_ring);
		if (n < 0)
			return n;
	}
	n += (int)kevq_claim(q, events + n, max - (unsigned int)n);
	if (n)
		return n;
	/* There are events, and they are let in as others are collected. */
	if (kevq_flags_(q) & KEVENT_RING_OVERFLOW)
		return kevq_collect_(q, events, max, 1, timeout, &of_ring);

	ret = kevq_wait(q, 1, timeout);
	if (ret <= 0)
		return ret;
	n = (int)kevq_claim(q, events, max);
	if (n)
		return n;
	/*
	 * There was something a moment ago, but not at the cursor.  It is level-triggered,
	 * or another consumer has got it, or it is at a position which this cursor has left
	 * behind: the kernel knows.
	 */
	n = kevq_collect_(q, events, max, 0, 0, &of_ring);
	if (of_ring)
		kevq_resynchronise_(q);
	return n;
}

#ifndef KEVQ_TEST_BACKEND
/**
 * kevq_close() - end a consumer
 * @q: the consumer
 *
 * Closes the queue, too, if kevq_open() has made it.
 */
static inline void kevq_close(struct kevq *q)
{
	if (q->slots)
		munmap(q->slots, q->count * q->slot_size);
	if (q->header)
		munmap((void *)q->header, sizeof(*q->header));
	if (q->owns_fd)
		close(q->fd);
	memset(q, 0, sizeof(*q));
	q->fd = -1;
}

/**
 * kevq_attach() - another consumer of a queue
 * @q: filled in
 * @fd: the queue: that of another consumer, or one that came from another process; it has
 *	to stay open until kevq_close() of @q
 *
 * Return: zero; -EOPNOTSUPP if the ring has features that are not known here; else what
 * the kernel said when the ring was mapped
 */
static inline int kevq_attach(struct kevq *q, int fd)
{
	uint32_t rings;
	void *header;
	int err;

	memset(q, 0, sizeof(*q));
	q->fd = fd;
	header = kevq_mmap_(fd, sizeof(*q->header), PROT_READ, KEVENT_OFF_HEADER);
	if (header == MAP_FAILED)
		return -errno;
	q->header = (const struct kevent_ring *)header;
	do {
		err = kevq_incompat_(q) & ~KEVQ_KNOWN_ ? -EOPNOTSUPP : 0;
		rings = kevq_rings_(q);
		/* The oldest set; if it is gone meanwhile, look again. */
		if (!err)
			err = kevq_go_(q, rings & (0 - rings));
	} while (err == -EINVAL && rings != kevq_rings_(q));
	if (err)
		kevq_close(q);
	return err;
}

/* Make a queue as @params say; zero, or a negated error number as of kevent_init(). */
static inline int kevq_open_params(struct kevq *q, struct kevent_params *params)
{
	int fd, err;

	memset(q, 0, sizeof(*q));
	q->fd = -1;
	fd = kevq_sys_init(params, sizeof(*params));
	if (fd < 0)
		return fd;
	err = kevq_attach(q, fd);
	if (err)
		close(fd);
	else
		q->owns_fd = 1;
	return err;
}

/**
 * kevq_open() - make a queue
 * @q: filled in
 * @slots: how many slots its ring has at least, which is also how many edge-triggered
 *	registrations there can be
 *
 * Return: zero; -ENOSYS if this kernel has no kevent; or another error
 */
static inline int kevq_open(struct kevq *q, unsigned int slots)
{
	struct kevent_params params;

	memset(&params, 0, sizeof(params));
	params.slots = slots;
	return kevq_open_params(q, &params);
}
#endif

#ifdef __cplusplus
}
#endif

#endif /* KEVQ_H */
