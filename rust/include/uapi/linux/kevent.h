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
 * @flags: in: must be zero
 * @slots: in: how many ring slots are wanted, 1 to KEVENT_MAX_SLOTS;
 *	out: how many there are, @slots rounded up to a power of two
 * @header_size: out: bytes to map at offset KEVENT_OFF_HEADER
 * @slots_size: out: bytes to map at offset KEVENT_OFF_SLOTS
 * @resv: must be zero
 *
 * Each edge-triggered registration reserves a slot, so @slots is also the
 * limit of such registrations.
 */
struct kevent_params {
	__u32 flags;
	__u32 slots;
	__u64 header_size;
	__u64 slots_size;
	__u64 resv[3];
};

#define KEVENT_PARAMS_SIZE_VER0	48

#define KEVENT_MAX_SLOTS	(1U << 16)

/*
 * Where mmap() finds the two parts of the ring.  Both want MAP_SHARED and at
 * most the size that kevent_init() gave.  The header can only be mapped
 * readable.
 */
#define KEVENT_OFF_HEADER	0ULL
#define KEVENT_OFF_SLOTS	0x10000000ULL

/**
 * struct kevent_ring - the header of the ring; the kernel alone writes it
 * @compat: features that a consumer may ignore
 * @incompat: features; a consumer that does not know one must not use the ring
 * @slots: number of slots, a power of two
 * @slot_size: bytes from one slot to the next, at least sizeof(struct
 *	kevent_slot)
 * @flags: KEVENT_RING_*, written on transitions only
 * @resv: zero
 */
struct kevent_ring {
	__u32 compat;
	__u32 incompat;
	__u32 slots;
	__u32 slot_size;
	__u32 flags;
	__u32 resv[11];
};

/*
 * In kevent_ring.flags: the ring is full and an event waits behind it.  Claim
 * what there is, then call kevent_getevents() to let it in.
 */
#define KEVENT_RING_OVERFLOW	(1U << 0)

/**
 * struct kevent_slot - an event in the ring
 * @word: owner, generation and value; all of it changes at once
 * @user_data: as given at registration
 * @ident: as given at registration
 * @source: KEVENT_SOURCE_*
 * @flags: zero
 * @data: zero
 *
 * The bits of @word are value:32 | generation:31 | owner:1, from the highest
 * to the lowest.  Owner is 1 when the slot holds an event.  The slot with index
 * i is used for the positions i, i + slots, i + 2 * slots and so on, counted
 * from 0; the generation of position p is p / slots + 1, modulo 2^31.
 *
 * To consume:
 *
 * 1. Read @word with acquire semantics.  If KEVENT_WORD_READY is clear, the
 *    slot is empty: the generation tells whether the position the consumer
 *    looks for was claimed by somebody else (it is the position's own, or a
 *    later one) or not posted yet (it is an earlier one).
 * 2. Read the other fields.
 * 3. Compare-and-exchange @word, from what was read to KEVENT_WORD_CLAIMED()
 *    of it, with acquire and release semantics.  If that fails, the kernel
 *    has merged more into the value or somebody else was first: start anew.
 * 4. If the value is zero, the event was cancelled: it is none.
 *
 * After the last claim of a batch, and before the first look at any of the
 * sources, a consumer must execute one full memory fence.  Without it the
 * kernel may take the event for unclaimed while the consumer misses what the
 * source had to say.
 */
struct kevent_slot {
	__u64 word;
	__u64 user_data;
	__u64 ident;
	__u16 source;
	__u16 flags;
	__u32 data;
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

/*
 * Readiness of a file.  @ident is the file descriptor, @events a mask of EPOLL*
 * bits; EPOLLERR and EPOLLHUP are always reported.  The registration belongs to
 * that descriptor: closing it ends the registration, even while duplicates of
 * the descriptor are open.
 */
#define KEVENT_SOURCE_FD	1

/*
 * In the value of a KEVENT_SOURCE_FD event: the source was woken without
 * saying why, so the value is all that was asked for, but EPOLLERR and EPOLLHUP,
 * and any of it, or one of these two, may be so.
 */
#define KEVENT_FD_HINT		(1U << 31)

/**
 * struct ukevent - a change for kevent_ctl(), an event of kevent_getevents()
 * @ident: what of the source, for example a file descriptor
 * @source: KEVENT_SOURCE_*
 * @op: change: KEVENT_OP_*; event: zero
 * @flags: change: KEVENT_* mode flags; event: those of the registration
 * @events: change: what to report; event: the value
 * @result: change: in: zero, out: see KEVENT_CTL_RESULTS; event: zero
 * @user_data: handed back with each event, in the ring too
 * @data: zero
 * @fflags: zero
 * @resv32: must be zero
 * @resv: must be zero
 *
 * A registration is named by @source and @ident, and for KEVENT_SOURCE_FD also
 * by the open file that the descriptor refers to.
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
	__u32 resv32;
	__u64 resv[2];
};

/*
 * kevent_ctl()
 *
 * Changes are applied in order.  The number of changes that were applied is
 * returned; the first that fails ends the call.  If that is the very first, its
 * error is returned.
 */

/* Register.  EEXIST if it is registered, ENOSPC if no slot can be reserved. */
#define KEVENT_OP_ADD		1
/* Replace the mask, the flags and the user data.  ENOENT if not registered. */
#define KEVENT_OP_MOD		2
/*
 * Unregister; @flags, @events and @user_data must be zero.  No event of the
 * registration can be claimed once the call has returned.  ENOENT if not
 * registered.
 */
#define KEVENT_OP_DEL		3

/* Mode: report changes, through the ring.  Needed; no other mode exists yet. */
#define KEVENT_EDGE		(1U << 0)

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
 * many events are in the ring, counting no further than @min_events.
 *
 * @opts must be NULL.
 */
struct kevent_getopts;

#endif /* _UAPI_LINUX_KEVENT_H */
