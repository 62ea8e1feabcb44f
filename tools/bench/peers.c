// SPDX-License-Identifier: MIT
/*
 * The back-ends: kevent's ring, its system call edge- and level-triggered, epoll
 * level- and edge-triggered, multishot polls of io_uring in its default mode and
 * with deferred task work, and polls of Linux AIO.  All of them by the system
 * calls themselves, so that no library is measured.
 *
 * A function that collects exists twice, from one text: as it is, and with the
 * instructions around each system call counted.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/kevent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"


u32 collected[COLLECT_MAX];
struct spent spent;

/* Counts the instructions of @call, if @split. */
#define COUNTED(split, call) ({					\
	u32 start_ = (split) ? now() : 0;			\
	long ret_ = (call);					\
								\
	if (split) {						\
		spent.kernel += now() - start_;			\
		spent.calls++;					\
	}							\
	ret_;							\
})

#define COLLECTORS(name)						\
	static void name(unsigned int want) { name##_(want, false); }	\
	static void name##_split(unsigned int want) { name##_(want, true); }

static void *map(int fd, size_t size, off_t offset, int prot)
{
	void *at = mmap(NULL, size, prot, MAP_SHARED | MAP_POPULATE, fd, offset);

	must(at != MAP_FAILED, "mmap", errno);
	return at;
}

/*
 * kevent
 */

static struct {
	int fd;
	const volatile struct kevent_ring *header;
	struct kevent_slot *slots;
	size_t header_size, slots_size;
	u32 count;
	/* Where the next event will be, and the lower half of its word */
	struct kevent_slot *next;
	u32 ready;
	struct ukevent *changes;
	struct ukevent events[COLLECT_MAX];
} kv;

static bool kevent_open_with(unsigned int max, unsigned int slots)
{
	struct kevent_params params = {
		.slots = slots,
		.flags = max > slots ? KEVENT_INIT_OVERCOMMIT : 0,
	};
	long fd = call3(__NR_kevent_init, (long)&params, sizeof(params), 0);

	if (fd == -ENOSYS)
		return false;
	must(fd >= 0, "kevent_init", fd);
	kv.fd = fd;
	kv.header_size = params.header_size;
	kv.slots_size = params.slots_size;
	kv.header = map(fd, params.header_size, KEVENT_OFF_HEADER, PROT_READ);
	kv.slots = map(fd, params.slots_size, KEVENT_OFF_SLOTS(params.slots),
		       PROT_READ | PROT_WRITE);
	must(kv.header->slot_size == sizeof(struct kevent_slot), "slot_size", 0);
	kv.count = params.slots;
	kv.next = kv.slots;
	kv.ready = 1 << KEVENT_WORD_GEN_SHIFT | KEVENT_WORD_READY;
	kv.changes = calloc(max, sizeof(*kv.changes));
	must(kv.changes, "calloc", 0);
	/* So that no page is touched for the first time later on. */
	memset(kv.changes, 1, max * sizeof(*kv.changes));
	memset(kv.changes, 0, max * sizeof(*kv.changes));
	return true;
}

static bool kevent_open(unsigned int max)
{
	/* Overcommit, as far as more slots than that cannot be had. */
	return kevent_open_with(max, max < KEVENT_MAX_SLOTS ? max : KEVENT_MAX_SLOTS);
}

static bool kevent_open_level(unsigned int max)
{
	return kevent_open_with(max, max < 64 ? max : 64);
}

static void kevent_close(void)
{
	munmap((void *)kv.header, kv.header_size);
	munmap(kv.slots, kv.slots_size);
	close(kv.fd);
	free(kv.changes);
}

static __always_inline long kevent_ctl_(struct ukevent *changes, unsigned int nr)
{
	return call4(__NR_kevent_ctl, kv.fd, (long)changes, nr, 0);
}

int kevent_queue(void)
{
	return kv.fd;
}

long kevent_ctl(void *changes, unsigned int nr)
{
	return kevent_ctl_(changes, nr);
}

static __always_inline void kevent_change(unsigned int first, unsigned int n, u16 op, u32 flags)
{
	for (unsigned int i = 0; i < n; i++) {
		struct ukevent *change = &kv.changes[i];

		change->ident = sources[first + i].r;
		change->source = KEVENT_SOURCE_FD;
		change->op = op;
		change->flags = flags;
		change->events = op == KEVENT_OP_DEL ? 0 : EPOLLIN;
		change->user_data = op == KEVENT_OP_DEL ? 0 : first + i;
	}
	long done = kevent_ctl_(kv.changes, n);

	must(done == n, "kevent_ctl", done);
}

static void kevent_add_edge(unsigned int first, unsigned int n)
{
	kevent_change(first, n, KEVENT_OP_ADD, KEVENT_EDGE);
}

static void kevent_add_level(unsigned int first, unsigned int n)
{
	kevent_change(first, n, KEVENT_OP_ADD, KEVENT_LEVEL);
}

static void kevent_modify_edge(unsigned int first, unsigned int n)
{
	kevent_change(first, n, KEVENT_OP_MOD, KEVENT_EDGE);
}

static void kevent_modify_level(unsigned int first, unsigned int n)
{
	kevent_change(first, n, KEVENT_OP_MOD, KEVENT_LEVEL);
}

static void kevent_del(unsigned int first, unsigned int n)
{
	kevent_change(first, n, KEVENT_OP_DEL, 0);
}

/*
 * As the header has it, for one consumer whose cursor is always right.  The flags
 * are looked at once a batch, as a loop has to.  Within a lap, the lower half of a
 * word that is ready is always the same, and so is what a claim leaves.
 */
static __always_inline unsigned int kevent_claim(unsigned int max)
{
	struct kevent_slot *slot = kv.next, *end = kv.slots + kv.count;
	u32 ready = kv.ready, *to = collected, *full = to + max;
	u64 claimed = KEVENT_WORD_CLAIMED((u64)ready);

	must(!kv.header->flags, "flags of the ring", kv.header->flags);
	do {
		u64 word = __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE), old = word;
		u64 user_data;

		if ((u32)word != ready)
			break;
		user_data = slot->user_data;
		if (!__atomic_compare_exchange_n(&slot->word, &old, claimed, false,
						 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		if (KEVENT_WORD_VALUE(word))
			*to++ = user_data;
		if (++slot == end) {
			slot = kv.slots;
			ready += 1 << KEVENT_WORD_GEN_SHIFT;
			claimed = KEVENT_WORD_CLAIMED((u64)ready);
		}
	} while (to < full);
	kv.next = slot;
	kv.ready = ready;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return to - collected;
}

static unsigned int kevent_ring_look(unsigned int max)
{
	return kevent_claim(max);
}

static __always_inline void kevent_ring_collect_(unsigned int want, bool split)
{
	unsigned int n = kevent_claim(want);

	must(n == want, "events in the ring", n);
}

COLLECTORS(kevent_ring_collect)

static __always_inline unsigned int kevent_get(unsigned int max, bool split)
{
	static const struct { long long sec, nsec; } zero;
	long n;

	do {
		n = COUNTED(split, call6(__NR_kevent_getevents, kv.fd, (long)kv.events, 0, max,
					 (long)&zero, 0));
	} while (n == -EINTR);
	for (long i = 0; i < n; i++)
		collected[i] = kv.events[i].user_data;
	must(n >= 0, "kevent_getevents", n);
	return n;
}

static __always_inline void kevent_call_collect_(unsigned int want, bool split)
{
	unsigned int n = kevent_get(want, split);

	must(n == want, "events of kevent_getevents", n);
}

COLLECTORS(kevent_call_collect)

static unsigned int kevent_call_look(unsigned int max)
{
	return kevent_get(max, false);
}

const struct peer kevent_ring = {
	.name = "kevent",
	.open = kevent_open,
	.close = kevent_close,
	.add = kevent_add_edge,
	.modify = kevent_modify_edge,
	.del = kevent_del,
	.collect = kevent_ring_collect,
	.collect_split = kevent_ring_collect_split,
	.look = kevent_ring_look,
};

const struct peer kevent_call = {
	.name = "kevent syscall",
	.open = kevent_open,
	.close = kevent_close,
	.add = kevent_add_edge,
	.modify = kevent_modify_edge,
	.del = kevent_del,
	.collect = kevent_call_collect,
	.collect_split = kevent_call_collect_split,
	.look = kevent_call_look,
};

const struct peer kevent_level = {
	.name = "kevent level",
	.open = kevent_open_level,
	.close = kevent_close,
	.add = kevent_add_level,
	.modify = kevent_modify_level,
	.del = kevent_del,
	.collect = kevent_call_collect,
	.collect_split = kevent_call_collect_split,
	.look = kevent_call_look,
};

/*
 * epoll
 */

static struct {
	int fd;
	struct epoll_event events[COLLECT_MAX];
} ep;

static bool epoll_open(unsigned int max)
{
	long fd = call3(SYS_epoll_create1, 0, 0, 0);

	must(fd >= 0, "epoll_create1", fd);
	ep.fd = fd;
	memset(ep.events, 1, sizeof(ep.events));
	return true;
}

static void epoll_close(void)
{
	close(ep.fd);
}

static __always_inline void epoll_change(unsigned int first, unsigned int n, int op, u32 events)
{
	for (unsigned int i = first; i < first + n; i++) {
		struct epoll_event event = { .events = events, .data.u64 = i };
		long ret = call4(SYS_epoll_ctl, ep.fd, op, sources[i].r, (long)&event);

		must(!ret, "epoll_ctl", ret);
	}
}

static void epoll_add_level(unsigned int first, unsigned int n)
{
	epoll_change(first, n, EPOLL_CTL_ADD, EPOLLIN);
}

static void epoll_add_edge(unsigned int first, unsigned int n)
{
	epoll_change(first, n, EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
}

static void epoll_modify_level(unsigned int first, unsigned int n)
{
	epoll_change(first, n, EPOLL_CTL_MOD, EPOLLIN);
}

static void epoll_modify_edge(unsigned int first, unsigned int n)
{
	epoll_change(first, n, EPOLL_CTL_MOD, EPOLLIN | EPOLLET);
}

static void epoll_del(unsigned int first, unsigned int n)
{
	epoll_change(first, n, EPOLL_CTL_DEL, 0);
}

static __always_inline unsigned int epoll_get(unsigned int max, bool split)
{
	long n = COUNTED(split, call4(SYS_epoll_wait, ep.fd, (long)ep.events, max, 0));

	for (long i = 0; i < n; i++)
		collected[i] = ep.events[i].data.u64;
	must(n >= 0, "epoll_wait", n);
	return n;
}

static __always_inline void epoll_collect_(unsigned int want, bool split)
{
	unsigned int n = epoll_get(want, split);

	must(n == want, "events of epoll_wait", n);
}

COLLECTORS(epoll_collect)

static unsigned int epoll_look(unsigned int max)
{
	return epoll_get(max, false);
}

const struct peer epoll_level = {
	.name = "epoll level",
	.open = epoll_open,
	.close = epoll_close,
	.add = epoll_add_level,
	.modify = epoll_modify_level,
	.del = epoll_del,
	.collect = epoll_collect,
	.collect_split = epoll_collect_split,
	.look = epoll_look,
};

const struct peer epoll_edge = {
	.name = "epoll edge",
	.open = epoll_open,
	.close = epoll_close,
	.add = epoll_add_edge,
	.modify = epoll_modify_edge,
	.del = epoll_del,
	.collect = epoll_collect,
	.collect_split = epoll_collect_split,
	.look = epoll_look,
};

/*
 * io_uring
 */

#define URING_ENTRIES 1024

static struct {
	int fd;
	char *rings;
	size_t rings_size;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	u32 *sq_tail, *sq_array, *cq_head, *cq_tail;
	u32 sq_mask, cq_mask;
	/* The tail that the kernel has not been told of yet. */
	u32 tail, submitted;
} ur;

static bool uring_open_with(unsigned int max, u32 flags)
{
	struct io_uring_params params = {
		.flags = flags | IORING_SETUP_CQSIZE,
		.cq_entries = 4 * URING_ENTRIES,
	};
	long fd = call3(SYS_io_uring_setup, URING_ENTRIES, (long)&params, 0);

	if (fd == -ENOSYS)
		return false;
	must(fd >= 0, "io_uring_setup", fd);
	must(params.features & IORING_FEAT_SINGLE_MMAP, "IORING_FEAT_SINGLE_MMAP", 0);
	ur.fd = fd;
	ur.rings_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	if (ur.rings_size < params.sq_off.array + params.sq_entries * sizeof(u32))
		ur.rings_size = params.sq_off.array + params.sq_entries * sizeof(u32);
	ur.rings = map(fd, ur.rings_size, IORING_OFF_SQ_RING, PROT_READ | PROT_WRITE);
	ur.sqes = map(fd, params.sq_entries * sizeof(*ur.sqes), IORING_OFF_SQES,
		      PROT_READ | PROT_WRITE);
	ur.cqes = (void *)(ur.rings + params.cq_off.cqes);
	ur.sq_tail = (void *)(ur.rings + params.sq_off.tail);
	ur.sq_array = (void *)(ur.rings + params.sq_off.array);
	ur.cq_head = (void *)(ur.rings + params.cq_off.head);
	ur.cq_tail = (void *)(ur.rings + params.cq_off.tail);
	ur.sq_mask = params.sq_entries - 1;
	ur.cq_mask = params.cq_entries - 1;
	for (u32 i = 0; i < params.sq_entries; i++)
		ur.sq_array[i] = i;
	ur.tail = ur.submitted = 0;
	return true;
}

static bool uring_open_default(unsigned int max)
{
	return uring_open_with(max, 0);
}

static bool uring_open_defer(unsigned int max)
{
	return uring_open_with(max, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
}

static void uring_close(void)
{
	munmap(ur.rings, ur.rings_size);
	munmap(ur.sqes, (ur.sq_mask + 1) * sizeof(*ur.sqes));
	close(ur.fd);
}

static __always_inline struct io_uring_sqe *uring_sqe_(void)
{
	struct io_uring_sqe *sqe = &ur.sqes[ur.tail++ & ur.sq_mask];

	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

struct io_uring_sqe *uring_sqe(void)
{
	return uring_sqe_();
}

static __always_inline void uring_submit_(void)
{
	u32 n = ur.tail - ur.submitted;
	long ret;

	__atomic_store_n(ur.sq_tail, ur.tail, __ATOMIC_RELEASE);
	ret = call6(SYS_io_uring_enter, ur.fd, n, 0, 0, 0, 0);
	must(ret == n, "io_uring_enter", ret);
	ur.submitted = ur.tail;
}

void uring_submit(void)
{
	uring_submit_();
}

static void uring_add(unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++) {
		struct io_uring_sqe *sqe = uring_sqe_();

		sqe->opcode = IORING_OP_POLL_ADD;
		sqe->fd = sources[i].r;
		sqe->len = IORING_POLL_ADD_MULTI;
		sqe->poll32_events = EPOLLIN;
		sqe->user_data = i;
		if (ur.tail - ur.submitted > ur.sq_mask)
			uring_submit_();
	}
	if (ur.tail != ur.submitted)
		uring_submit_();
}

static __always_inline void uring_change(unsigned int first, unsigned int n, u32 flags)
{
	for (unsigned int i = first; i < first + n; i++) {
		struct io_uring_sqe *sqe = uring_sqe_();

		sqe->opcode = IORING_OP_POLL_REMOVE;
		sqe->addr = i;
		sqe->len = flags;
		sqe->poll32_events = flags ? EPOLLIN : 0;
		sqe->user_data = i;
		/* No answer, unless it fails */
		sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
	}
	uring_submit_();
}

static void uring_modify(unsigned int first, unsigned int n)
{
	uring_change(first, n, IORING_POLL_UPDATE_EVENTS | IORING_POLL_ADD_MULTI);
}

static void uring_del(unsigned int first, unsigned int n)
{
	uring_change(first, n, 0);
}

/* Takes up to @max events out of the ring, and puts them behind @had others. */
static __always_inline unsigned int uring_reap(unsigned int had, unsigned int max)
{
	u32 head = *ur.cq_head, tail = __atomic_load_n(ur.cq_tail, __ATOMIC_ACQUIRE);
	u32 *to = collected + had, *full = collected + max;

	for (; head != tail && to < full; head++) {
		struct io_uring_cqe *cqe = &ur.cqes[head & ur.cq_mask];

		/* If it is negative, it is the end of a poll that was removed. */
		if (cqe->res >= 0)
			*to++ = cqe->user_data;
	}
	__atomic_store_n(ur.cq_head, head, __ATOMIC_RELEASE);
	return to - collected;
}

static __always_inline void uring_default_collect_(unsigned int want, bool split)
{
	unsigned int n = uring_reap(0, want);

	must(n == want, "completions", n);
}

COLLECTORS(uring_default_collect)

/* As a loop does that does not know how many there are: it waits for one. */
static __always_inline void uring_defer_collect_(unsigned int want, bool split)
{
	unsigned int n = 0;

	do {
		long ret = COUNTED(split, call6(SYS_io_uring_enter, ur.fd, 0, 1,
						IORING_ENTER_GETEVENTS, 0, 0));

		must(ret >= 0 || ret == -EINTR, "io_uring_enter", ret);
		n = uring_reap(n, want);
	} while (n < want);
}

COLLECTORS(uring_defer_collect)

static unsigned int uring_default_look(unsigned int max)
{
	return uring_reap(0, max);
}

static unsigned int uring_defer_look(unsigned int max)
{
	call6(SYS_io_uring_enter, ur.fd, 0, 0, IORING_ENTER_GETEVENTS, 0, 0);
	return uring_reap(0, max);
}

const struct peer uring_default = {
	.name = "io_uring",
	.open = uring_open_default,
	.close = uring_close,
	.add = uring_add,
	.modify = uring_modify,
	.del = uring_del,
	.collect = uring_default_collect,
	.collect_split = uring_default_collect_split,
	.look = uring_default_look,
};

const struct peer uring_defer = {
	.name = "io_uring deferred",
	.open = uring_open_defer,
	.close = uring_close,
	.add = uring_add,
	.modify = uring_modify,
	.del = uring_del,
	.collect = uring_defer_collect,
	.collect_split = uring_defer_collect_split,
	.look = uring_defer_look,
};

/*
 * Linux AIO.  A poll is for one event.
 */

static struct {
	aio_context_t context;
	struct iocb *iocbs;
	struct iocb **pointers;
	/* Of which the events, which a worker posts, have not been seen. */
	unsigned int cancelled;
	struct io_event events[COLLECT_MAX];
} aio;

static bool aio_open(unsigned int max)
{
	long ret;

	aio.context = 0;
	aio.cancelled = 0;
	ret = call3(SYS_io_setup, max, (long)&aio.context, 0);
	if (ret == -ENOSYS)
		return false;
	must(!ret, "io_setup", ret);
	aio.iocbs = calloc(max, sizeof(*aio.iocbs));
	aio.pointers = calloc(max, sizeof(*aio.pointers));
	must(aio.iocbs && aio.pointers, "calloc", 0);
	for (unsigned int i = 0; i < max; i++) {
		aio.iocbs[i].aio_lio_opcode = IOCB_CMD_POLL;
		aio.iocbs[i].aio_buf = EPOLLIN;
		aio.iocbs[i].aio_data = i;
		aio.pointers[i] = &aio.iocbs[i];
	}
	return true;
}

static void aio_close(void)
{
	call3(SYS_io_destroy, aio.context, 0, 0);
	free(aio.iocbs);
	free(aio.pointers);
}

static void aio_add(unsigned int first, unsigned int n)
{
	long ret;

	for (unsigned int i = 0; i < n; i++) {
		struct iocb *iocb = &aio.iocbs[first + i];

		iocb->aio_fildes = sources[first + i].r;
		aio.pointers[i] = iocb;
	}
	ret = call3(SYS_io_submit, aio.context, n, (long)aio.pointers);
	must(ret == n, "io_submit", ret);
}

static void aio_del(unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++) {
		struct io_event event;
		long ret = call3(SYS_io_cancel, aio.context, (long)&aio.iocbs[i], (long)&event);

		must(ret == -EINPROGRESS, "io_cancel", ret);
	}
	aio.cancelled += n;
}

static __always_inline unsigned int aio_get(unsigned int max, bool split)
{
	static const struct timespec_ { long sec, nsec; } zero;
	long n;

	/* What is left of an io_uring that was closed can interrupt it. */
	do {
		n = COUNTED(split, call6(SYS_io_getevents, aio.context, 0, max, (long)aio.events,
					 (long)&zero, 0));
	} while (n == -EINTR);
	for (long i = 0; i < n; i++)
		collected[i] = aio.events[i].data;
	must(n >= 0, "io_getevents", n);
	return n;
}

static __always_inline void aio_collect_(unsigned int want, bool split)
{
	unsigned int n = aio_get(want, split);

	must(n == want, "events of io_getevents", n);
}

COLLECTORS(aio_collect)

static unsigned int aio_look(unsigned int max)
{
	unsigned int n = aio_get(max, false);

	while (aio.cancelled) {
		aio.cancelled -= n < aio.cancelled ? n : aio.cancelled;
		if (aio.cancelled)
			call3(SYS_sched_yield, 0, 0, 0);
		n = aio_get(max, false);
	}
	return n;
}

const struct peer aio_poll = {
	.name = "aio",
	.one_shot = true,
	.open = aio_open,
	.close = aio_close,
	.add = aio_add,
	.del = aio_del,
	.collect = aio_collect,
	.collect_split = aio_collect_split,
	.look = aio_look,
};
