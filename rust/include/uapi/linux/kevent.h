/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef _UAPI_LINUX_KEVENT_H
#define _UAPI_LINUX_KEVENT_H
/*
 * kevent: an event queue whose events can be collected from shared memory.
 *
 *	int kevent_init(struct kevent_params *params, size_t size);
 *	int kevent_ctl(int kfd, struct ukevent *changes, unsigned int nr,
 *		       unsigned int flags);
 *	int kevent_getevents(int kfd, struct ukevent *events,
 *			     unsigned int min_events, unsigned int max_events,
 *			     const struct __kernel_timespec *timeout,
 *			     const struct kevent_getopts *opts);
 *
 * All structures have the same layout in 32-bit and 64-bit programs and no
 * holes.  Unknown flags, and reserved fields that are not zero, are refused
 * with EINVAL.
 *
 * Documentation/userspace-api/kevent.rst is the contract.
 */

#include <linux/types.h>

/*
 * kevent_init()
 *
 * The file descriptor that is returned is close-on-exec.
 */

/**
 * struct kevent_params - argument of kevent_init(), extensible by its size
 * @flags: in: KEVENT_INIT_*
 * @slots: in: how many ring slots are wanted, 1 to KEVENT_MAX_SLOTS;
 *	out: how many there are, @slots rounded up to a power of two
 * @header_size: out: bytes to map at offset KEVENT_OFF_HEADER
 * @slots_size: out: bytes to map at offset KEVENT_OFF_SLOTS(slots)
 * @node: in: with KEVENT_INIT_NODE, the NUMA node of the ring's memory; zero
 *	otherwise
 * @resv32: must be zero
 * @resv: must be zero
 *
 * Each edge-triggered registration reserves a slot, so unless
 * KEVENT_INIT_OVERCOMMIT is set @slots is also the limit of such registrations.
 */
struct kevent_params {
	__u32 flags;
	__u32 slots;
	__u64 header_size;
	__u64 slots_size;
	__u32 node;
	__u32 resv32;
	__u64 resv[2];
};

/*
 * Slots are not reserved: there can be more registrations than slots.  An event
 * that finds the ring full waits in its registration; see KEVENT_RING_OVERFLOW.
 */
#define KEVENT_INIT_OVERCOMMIT	(1U << 0)
/*
 * The ring's memory comes from @node as long as that has some.  EINVAL if the
 * node has none at all.
 */
#define KEVENT_INIT_NODE	(1U << 1)
/*
 * Of the threads that wait in kevent_getevents(), wake the one that came last:
 * its caches are warm.  Otherwise they take turns.
 */
#define KEVENT_INIT_LIFO	(1U << 2)

#define KEVENT_PARAMS_SIZE_VER0	48

#define KEVENT_MAX_SLOTS	(1U << 16)

/*
 * Where mmap() finds the parts of the ring.  All want MAP_SHARED and at most the
 * size of the part.  The header can only be mapped readable.  The slots have a
 * place for each number of slots, so that a ring that has grown is mapped beside
 * what it was.
 */
#define KEVENT_OFF_HEADER	0ULL
#define KEVENT_OFF_SLOTS(slots)	(0x10000ULL * (slots))

/**
 * struct kevent_ring - the header of the ring; the kernel alone writes it
 * @compat: features that a consumer may ignore
 * @incompat: KEVENT_RING_INCOMPAT_*, which can be set while the ring is in use: a
 *	consumer reads it before each batch, and if there is a bit that it does
 *	not know, leaves the slots alone and calls kevent_getevents()
 * @slots: number of slots, a power of two
 * @slot_size: bytes from one slot to the next, at least sizeof(struct
 *	kevent_slot)
 * @flags: KEVENT_RING_*, written when one of them may have changed
 * @rings: the sets of slots that can hold events: the sum of their numbers of
 *	slots
 * @resv: zero
 */
struct kevent_ring {
	__u32 compat;
	__u32 incompat;
	__u32 slots;
	__u32 slot_size;
	__u32 flags;
	__u32 rings;
	__u32 resv[10];
};

/*
 * In kevent_ring.flags: the ring is full and an event waits behind it.  Claim
 * what there is, then call kevent_getevents() to let it in.
 */
#define KEVENT_RING_OVERFLOW	(1U << 0)
/*
 * In kevent_ring.flags: there may be level-triggered events.  They are not in
 * the ring: call kevent_getevents() to collect them.
 */
#define KEVENT_RING_LEVEL_READY	(1U << 1)

/*
 * In kevent_ring.incompat: the ring has grown, see KEVENT_OP_GROW.  @rings has
 * one bit for each set of slots that can hold events; the bit's value is its
 * number of slots.  Events are posted to the largest set only.  A consumer
 * that finds its set empty reads @rings with acquire semantics; if there is a
 * larger set, it looks at its own once more, for what was posted there in the
 * meantime, and goes on to the next larger one if that is still empty.  If that
 * cannot be mapped any more, it looks at the header again.  One that joins
 * others begins with the smallest set.
 */
#define KEVENT_RING_INCOMPAT_GROWN	(1U << 0)

/**
 * struct kevent_slot - an event in the ring
 * @word: owner, generation and value; all of it changes at once
 * @user_data: as given at registration
 * @ident: as given at registration
 * @source: KEVENT_SOURCE_*
 * @flags: zero
 * @tag: as given at registration
 *
 * The bits of @word are value:32 | generation:31 | owner:1, from the highest
 * to the lowest.  Owner is 1 when the slot holds an event.  The slot with index
 * i is used for the positions i, i + slots, i + 2 * slots and so on, counted
 * from 0; the generation of position p is p / slots + 1, modulo 2^31.
 *
 * To consume what is at a position:
 *
 * 1. Read @word with acquire semantics, and compare its generation with that of
 *    the position, modulo 2^31.  If it is later, the consumer is behind: what
 *    was at this position is gone, so go on to the next one.  If it is the same
 *    and KEVENT_WORD_READY is clear, somebody else has claimed the event: go on
 *    as well.  If it is earlier and KEVENT_WORD_READY is clear, nothing was
 *    posted here yet, nor after it: there are no more events.
 * 2. KEVENT_WORD_READY is set: read the other fields.
 * 3. Compare-and-exchange @word, from what was read to KEVENT_WORD_CLAIMED()
 *    of it, with acquire and release semantics.  If that fails, the kernel
 *    has merged more into the value or somebody else was first: start again at
 *    step 1.
 * 4. If the value is zero, the event was cancelled: there is none.
 * 5. If the generation was that of the position, go on to the next one.  If it
 *    was an earlier one, somebody had passed over that event, and this
 *    position's own is still to come: look at the slot again.
 *
 * After the last claim of a batch, and before the first look at any of the
 * sources, a consumer must execute one full memory fence.  Without it the
 * kernel may take the event for unclaimed while the consumer misses what the
 * source had to say.
 *
 * Nothing depends on a consumer's position but how soon it finds an event.  One
 * that does not know it, as when it joins others, takes the generation of slot 0
 * and begins at slot 1 of the lap before that; what is older is gone, or was
 * passed over.  If kevent_getevents() says that there are events, and none is
 * found at the position, then another consumer has got them, or they are
 * level-triggered, or this one has passed over them: collect once by
 * kevent_getevents(), and begin in that way again, unless all that it gave is
 * level-triggered.
 */
struct kevent_slot {
	__u64 word;
	__u64 user_data;
	__u64 ident;
	__u16 source;
	__u16 flags;
	__u32 tag;
};

#define KEVENT_WORD_READY	1ULL
#define KEVENT_WORD_GEN_SHIFT	1
#define KEVENT_WORD_GEN_MASK	0x7fffffffU
#define KEVENT_WORD_VALUE_SHIFT	32

#define KEVENT_WORD_VALUE(word)	((__u32)((word) >> KEVENT_WORD_VALUE_SHIFT))
#define KEVENT_WORD_GEN(word) \
	((__u32)((word) >> KEVENT_WORD_GEN_SHIFT) & KEVENT_WORD_GEN_MASK)
#define KEVENT_WORD_CLAIMED(word) \
	((word) & ((__u64)KEVENT_WORD_GEN_MASK << KEVENT_WORD_GEN_SHIFT))

/*
 * Sources: what an event can be about
 */

/* In a change that is about the queue: KEVENT_OP_GROW, KEVENT_OP_WAKE */
#define KEVENT_SOURCE_QUEUE	0

/*
 * Readiness of a file.  @ident is the file descriptor, @events a mask of EPOLL*
 * bits; EPOLLERR and EPOLLHUP are always reported.  The registration belongs to
 * that descriptor: closing it ends the registration, even while duplicates of
 * the descriptor are open.
 */
#define KEVENT_SOURCE_FD	1

/*
 * In the value of a KEVENT_SOURCE_FD event: the file did not say what happened.
 * The other bits are those that were asked for, without EPOLLERR and EPOLLHUP.
 * Any of them, or of these two, may be true.
 */
#define KEVENT_FD_HINT		(1U << 31)

/*
 * A timer.  @ident is any number, @data when it expires first and @interval the
 * time from one expiry to the next, zero for none, in nanoseconds; @fflags
 * KEVENT_TIMER_* and a clock; @events is zero.  The value counts the expiries
 * since the last event was claimed; it stops at KEVENT_COUNT_MAX.  Intervals of
 * less than 100 microseconds are counted several at a time.
 *
 * A time after the year 2262 is never reached: the timer does not expire.
 */
#define KEVENT_SOURCE_TIMER	2

/* In @fflags: one of CLOCK_MONOTONIC, _REALTIME, _BOOTTIME and _TAI */
#define KEVENT_TIMER_CLOCK	0xffU
/* In @fflags: @data is a time of the clock, not the time from now. */
#define KEVENT_TIMER_ABS	(1U << 8)
/*
 * In @fflags, with CLOCK_REALTIME and KEVENT_TIMER_ABS: when the clock is set
 * the timer ends, with an event that has KEVENT_TIMER_CANCELED in its value.
 * KEVENT_OP_MOD and KEVENT_OP_ENABLE start it again.
 */
#define KEVENT_TIMER_CANCEL_ON_SET (1U << 9)
/* In the value of a KEVENT_SOURCE_TIMER event */
#define KEVENT_TIMER_CANCELED	(1U << 31)

/*
 * An event that programs trigger by KEVENT_OP_TRIGGER.  @ident is any number.
 * @events is one of KEVENT_USER_*, what the value is.
 */
#define KEVENT_SOURCE_USER	3

/*
 * The value is the sum of the @data of the triggers since the last event was
 * claimed; it stops at KEVENT_COUNT_MAX.  @fflags is zero.
 */
#define KEVENT_USER_COUNT	(1U << 0)
/*
 * The value is KEVENT_NOTE_TRIGGER and 24 flags.  The flags are kept by the
 * registration: @fflags is their first value for KEVENT_OP_ADD, and changes them
 * for KEVENT_OP_TRIGGER, as for EVFILT_USER of kqueue.
 */
#define KEVENT_USER_FLAGS	(1U << 1)

/* In @fflags: the flags, what to do with them, and whether to report them */
#define KEVENT_NOTE_FFLAGS	0x00ffffffU
#define KEVENT_NOTE_TRIGGER	0x01000000U
#define KEVENT_NOTE_FFNOP	0x00000000U
#define KEVENT_NOTE_FFAND	0x40000000U
#define KEVENT_NOTE_FFOR	0x80000000U
#define KEVENT_NOTE_FFCOPY	0xc0000000U
#define KEVENT_NOTE_FFCTRL	0xc0000000U

/* Where values that are counts stop */
#define KEVENT_COUNT_MAX	0x7fffffffU

/**
 * struct ukevent - a change for kevent_ctl(), an event of kevent_getevents()
 * @ident: what of the source, for example a file descriptor
 * @source: KEVENT_SOURCE_*
 * @op: change: KEVENT_OP_*; event: zero
 * @flags: change: KEVENT_* mode flags; event: those of the registration, but
 *	KEVENT_DISABLED
 * @events: change: what to report; event: the value
 * @result: change: in: zero, out: see KEVENT_CTL_RESULTS; event: zero
 * @user_data: handed back with each event, in the ring too
 * @data: change: of the source or the operation; event: zero
 * @fflags: change: of the source; event: zero
 * @tag: tells several registrations of one @source and @ident apart
 * @interval: change: of the source; event: zero
 * @resv: must be zero
 *
 * A registration is named by @source, @ident and @tag, and for
 * KEVENT_SOURCE_FD also by the open file that the descriptor refers to.  Fields
 * that a source or an operation does not use must be zero.
 */
struct ukevent {
	__u64 ident;
	__u16 source;
	__u16 op;
	__u32 flags;
	__u32 events;
	__s32 result;
	__u64 user_data;
	__u64 data;
	__u32 fflags;
	__u32 tag;
	__u64 interval;
	__u64 resv;
};

/*
 * kevent_ctl()
 *
 * Changes are applied in order.  The number of changes that were applied is
 * returned; the first that fails ends the call.  If that is the very first, its
 * error is returned.
 */

/*
 * Register.  EEXIST if it is registered, ENOSPC if no slot can be reserved,
 * EDQUOT if the user has too many registrations.
 */
#define KEVENT_OP_ADD		1
/* Replace everything but the name.  ENOENT if not registered. */
#define KEVENT_OP_MOD		2
/*
 * Unregister; only the name is used.  No event of the registration can be
 * claimed once the call has returned.  ENOENT if not registered.
 */
#define KEVENT_OP_DEL		3
/* KEVENT_OP_MOD if it is registered, KEVENT_OP_ADD if not */
#define KEVENT_OP_SET		4
/*
 * Report again, and look at the source: a condition that holds already is
 * reported at once.  Only the name is used.
 */
#define KEVENT_OP_ENABLE	5
/*
 * Report nothing until enabled; an event that was not claimed is taken back.
 * Timers keep running and counts keep accumulating.  Only the name is used.
 */
#define KEVENT_OP_DISABLE	6
/* KEVENT_SOURCE_USER: trigger; @data or @fflags as the kind of the source says */
#define KEVENT_OP_TRIGGER	7
/*
 * Move the registration, with its event if that was not claimed, to the queue
 * whose descriptor is @data.  Each event is seen in one of the two.
 */
#define KEVENT_OP_MOVE		8
/*
 * KEVENT_SOURCE_QUEUE: let the ring have at least @data slots, rounded up to a
 * power of two, at most KEVENT_MAX_SLOTS.  No event is lost, moved or repeated:
 * those in the old slots stay there until they are claimed, later ones go to the
 * new.
 */
#define KEVENT_OP_GROW		9
/*
 * KEVENT_SOURCE_QUEUE: every thread that waits in kevent_getevents() returns,
 * with the events that there are, possibly none.  This is not remembered for
 * those that call later; KEVENT_OP_TRIGGER is.
 */
#define KEVENT_OP_WAKE		10

/*
 * Mode flags
 */

/*
 * Report changes, through the ring: what was reported and is still so is not
 * reported again.  Timers and user events are of this mode.
 */
#define KEVENT_EDGE		(1U << 0)
/*
 * Report the state of the source, each time kevent_getevents() is called, and
 * only there.  Such a registration needs no slot.
 */
#define KEVENT_LEVEL		(1U << 1)
/* The registration ends when its event is claimed. */
#define KEVENT_ONESHOT		(1U << 2)
/* The registration is disabled when its event is claimed. */
#define KEVENT_DISPATCH		(1U << 3)
/* KEVENT_OP_ADD, _MOD, _SET: the registration begins disabled. */
#define KEVENT_DISABLED		(1U << 4)
/*
 * KEVENT_SOURCE_FD, KEVENT_OP_ADD: when the file has something for one of several
 * queues, tell those that registered it with this flag one after the other, until
 * one has a thread, or a poller, waiting that it wakes.  Those before it keep the
 * event as well; if nobody waits, all have it.  What the file tells all its
 * waiters, such as a hang-up, comes to all.  @events must be a subset of EPOLLIN,
 * EPOLLOUT, EPOLLERR and EPOLLHUP.  Cannot be modified.
 */
#define KEVENT_EXCLUSIVE	(1U << 5)
/* With KEVENT_EXCLUSIVE: the queues take turns. */
#define KEVENT_ROUND_ROBIN	(1U << 6)
/*
 * KEVENT_SOURCE_FD: a file that cannot be polled, as a regular file, is always
 * ready for reading and writing.  Otherwise it is refused with EPERM.
 */
#define KEVENT_ALWAYS_READY	(1U << 7)

/*
 * kevent_ctl() flag: go on after a change that fails, and write the @result of
 * each change: zero, or a negated error number.
 */
#define KEVENT_CTL_RESULTS	(1U << 0)

/*
 * kevent_getevents()
 *
 * Waits until @min_events can be collected, the timeout is over or a signal is
 * caught, then collects up to @max_events, and returns how many it collected.
 * If @events is NULL and @max_events zero, it collects nothing: it returns how
 * many events there are, counting no further than @min_events, and with those of
 * files that may be ready no longer.
 */

/**
 * struct kevent_getopts - options of kevent_getevents(), extensible by @size
 * @size: size of the structure
 * @flags: KEVENT_GET_*
 * @sigmask: address of the signal mask while waiting; zero: unchanged
 * @sigsetsize: size of the signal mask; zero if there is none
 * @clock: with KEVENT_GET_ABSTIME, one of CLOCK_MONOTONIC, _REALTIME, _BOOTTIME
 *	and _TAI; zero otherwise
 * @min_wait: if not zero, how many nanoseconds to wait for @min_events; after
 *	that, one event is enough
 * @changes: address of changes to apply first, as by kevent_ctl()
 * @nr_changes: how many
 * @change_flags: flags as of kevent_ctl()
 * @resv: must be zero
 *
 * If a change fails, and KEVENT_CTL_RESULTS is not set, or if one cannot be read
 * or its result not be written, the call fails with its error; those before it
 * were applied.  Whatever the call returns after that, EINTR included, all
 * changes were applied, or their results say why not.
 */
struct kevent_getopts {
	__u32 size;
	__u32 flags;
	__u64 sigmask;
	__u32 sigsetsize;
	__u32 clock;
	__u64 min_wait;
	__u64 changes;
	__u32 nr_changes;
	__u32 change_flags;
	__u64 resv[2];
};

#define KEVENT_GETOPTS_SIZE_VER0	64

/* The timeout is a time of @clock. */
#define KEVENT_GET_ABSTIME	(1U << 0)

#endif /* _UAPI_LINUX_KEVENT_H */
