// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: many queues.  The memory of a ring is on the NUMA node that was asked
 * for; a registration moves from one queue to another with all that it is, and
 * each event is seen in one of them.
 */
#include "kevent_util.h"

/*
 * NUMA nodes
 */

#define NODES		1024
#define LONG_BITS	(8 * sizeof(unsigned long))
#define NODE_SLOTS	1024	/* some pages of them */

/* For <numaif.h>, which is not part of the C library */
#ifndef MPOL_F_MEMS_ALLOWED
#define MPOL_F_MEMS_ALLOWED 4
#endif

FIXTURE(node) {
	struct kq q;
	/* Those with memory */
	unsigned long mask[NODES / LONG_BITS];
	int nr;
};

static bool has_node(const unsigned long *mask, int node)
{
	return mask[node / LONG_BITS] >> node % LONG_BITS & 1;
}

FIXTURE_SETUP(node)
{
	self->q.fd = -1;
	if (syscall(__NR_get_mempolicy, NULL, self->mask, (unsigned long)NODES,
		    NULL, (unsigned long)MPOL_F_MEMS_ALLOWED))
		self->mask[0] = 1;
	for (int node = 0; node < NODES; node++)
		self->nr += has_node(self->mask, node);
	/* So that a kernel without kevent is found out here */
	kq_setup(_metadata, &self->q, 1);
}

FIXTURE_TEARDOWN(node)
{
	kq_close(&self->q);
}

/* The node of a page; a negated error number if there is no saying. */
static int node_of(void *page)
{
	int status = -ENODATA;

	/* Who has not touched it does not have it. */
	__atomic_load_n((unsigned char *)page, __ATOMIC_RELAXED);
	if (syscall(__NR_move_pages, 0, 1UL, &page, NULL, &status, 0))
		return -errno;
	return status;
}

static void want_node(struct __test_metadata *_metadata, const struct kq *q,
		      int node)
{
	size_t page = sysconf(_SC_PAGESIZE);

	for (size_t at = 0; at < q->map.header_size; at += page) {
		ASSERT_EQ(node, node_of((unsigned char *)q->map.ring + at))
			TH_LOG("header, byte %zu", at);
	}
	for (size_t at = 0; at < q->map.slots_size; at += page) {
		ASSERT_EQ(node, node_of(q->map.slots + at))
			TH_LOG("slots, byte %zu", at);
	}
}

TEST_F(node, has_the_memory_of_the_ring)
{
	if (self->nr < 2)
		SKIP(return, "there is one NUMA node only");
	if (node_of(self) < 0)
		SKIP(return, "move_pages() does not tell where a page is");

	for (int node = 0; node < NODES; node++) {
		struct kq q;

		if (!has_node(self->mask, node))
			continue;
		ASSERT_EQ(0, kq_open_flags(&q, NODE_SLOTS, KEVENT_INIT_NODE,
					   node))
			TH_LOG("node %d", node);
		want_node(_metadata, &q, node);
		kq_close(&q);
	}
}

TEST_F(node, has_the_memory_of_the_ring_when_it_has_grown)
{
	if (self->nr < 2)
		SKIP(return, "there is one NUMA node only");
	if (node_of(self) < 0)
		SKIP(return, "move_pages() does not tell where a page is");

	for (int node = 0; node < NODES; node++) {
		struct kq q, late;

		if (!has_node(self->mask, node))
			continue;
		ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_NODE |
					   KEVENT_INIT_OVERCOMMIT, node));
		ASSERT_EQ(1, kq_grow(&q, NODE_SLOTS));
		for (int i = 0; i < 100 &&
		     kevent_ring_rings(&q.map) != NODE_SLOTS; i++)
			kq_getevents(&q, NULL, 0, 0, 0);
		ASSERT_EQ(0, kq_attach(&late, &q));
		ASSERT_EQ(NODE_SLOTS, late.map.nr_slots);
		want_node(_metadata, &late, node);
		kq_unmap(&late);
		kq_close(&q);
	}
}

TEST_F(node, works_as_any_other)
{
	for (int node = 0; node < NODES; node++) {
		struct kq q;

		if (!has_node(self->mask, node))
			continue;
		ASSERT_EQ(0, kq_open_flags(&q, 4, KEVENT_INIT_NODE, node));
		EXPECT_EQ(4, q.params.slots);
		EXPECT_EQ(node, q.params.node);
		ASSERT_EQ(1, kq_add_user(&q, 1, KEVENT_USER_COUNT, 0, 2));
		ASSERT_EQ(1, kq_trigger(&q, 1, 3, 0));
		want_value(&q, BY_RING, KEVENT_SOURCE_USER, 1, 3, 2);
		kq_close(&q);
	}
}

TEST_F(node, that_cannot_be_is_refused)
{
	static const __u32 bad[] = {
		/* No kernel has as many. */
		NODES, 4096, 1U << 20, 1U << 31,
		/* What the kernel calls no node */
		0xffffffff, 0xfffffffe,
	};
	struct kq q;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, kq_open_flags(&q, 1, KEVENT_INIT_NODE,
						 bad[i]))
			TH_LOG("node %#x", bad[i]);
		EXPECT_EQ(-EINVAL, kq_open_flags(&q, 1, 0, bad[i]))
			TH_LOG("node %#x", bad[i]);
	}
	/* Without the flag it is not asked for. */
	EXPECT_EQ(-EINVAL, kq_open_flags(&q, 1, 0, 1));
	EXPECT_EQ(-EINVAL, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 1));
}

/*
 * Moving
 */

#define SLOTS 8
/* User events have that and their number as user data. */
#define UDATA 0x1000000000000ULL

FIXTURE(move) {
	struct kq from;
	struct kq to;
	enum collect_by by;
};

FIXTURE_VARIANT(move) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(move, ring) { BY_RING };
FIXTURE_VARIANT_ADD(move, call) { BY_SYSCALL };

FIXTURE_SETUP(move)
{
	self->by = variant->by;
	self->to.fd = -1;
	if (!kq_setup(_metadata, &self->from, SLOTS))
		return;
	ASSERT_EQ(0, kq_open(&self->to, SLOTS));
}

FIXTURE_TEARDOWN(move)
{
	kq_close(&self->from);
	kq_close(&self->to);
}

static int add_count(const struct kq *q, __u64 ident, __u32 mode)
{
	return kq_add_user(q, ident, KEVENT_USER_COUNT, mode, UDATA + ident);
}

static int count(const struct kq *q, __u64 ident, __u64 n)
{
	return kq_trigger(q, ident, n, 0);
}

static int user_op(const struct kq *q, __u16 op, __u64 ident)
{
	return kq_op(q, KEVENT_SOURCE_USER, op, ident, 0);
}

static int move_user(const struct kq *from, const struct kq *to, __u64 ident)
{
	return kq_move(from, to, KEVENT_SOURCE_USER, ident, 0);
}

static int move_fd(const struct kq *from, const struct kq *to, int fd)
{
	return kq_move(from, to, KEVENT_SOURCE_FD, fd, 0);
}

static int move_timer(const struct kq *from, const struct kq *to, __u64 ident)
{
	return kq_move(from, to, KEVENT_SOURCE_TIMER, ident, 0);
}

static void __want_count(struct __test_metadata *_metadata, int line,
			 struct kq *q, enum collect_by by, __u64 ident, __u32 n)
{
	__want_value(_metadata, line, q, by, KEVENT_SOURCE_USER, ident, n,
		     UDATA + ident);
}

#define want_count(q, ident, n) \
	__want_count(_metadata, __LINE__, q, self->by, ident, n)
#define want_fd(q, fd, udata) \
	want_event(q, self->by, fd, EPOLLIN, EPOLLIN, udata)

static void __want_empty(struct __test_metadata *_metadata, int line,
			 struct kq *q)
{
	__want_none(_metadata, line, q, BY_RING);
	__want_none(_metadata, line, q, BY_SYSCALL);
}

#define want_empty(q) __want_empty(_metadata, __LINE__, q)

/* As many registrations fit in the queue as it has slots: nothing is left. */
static void want_all_free(struct __test_metadata *_metadata, struct kq *q)
{
	want_empty(q);
	for (__u32 i = 0; i < q->params.slots; i++) {
		ASSERT_EQ(1, add_count(q, 1000 + i, 0))
			TH_LOG("number %u", i);
	}
	EXPECT_EQ(-ENOSPC, add_count(q, 999, 0));
	for (__u32 i = 0; i < q->params.slots; i++)
		ASSERT_EQ(1, user_op(q, KEVENT_OP_DEL, 1000 + i));
}

/* The name is free in the old queue, and means the same in the new. */
TEST_F(move, takes_the_registration_along)
{
	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	EXPECT_EQ(-ENOENT, count(&self->from, 1, 1));
	EXPECT_EQ(-ENOENT, user_op(&self->from, KEVENT_OP_DEL, 1));
	want_empty(&self->from);
	want_empty(&self->to);
	ASSERT_EQ(1, count(&self->to, 1, 5));
	want_count(&self->to, 1, 5);
	EXPECT_EQ(-EEXIST, add_count(&self->to, 1, 0));

	/* Another of that name, which comes back to meet the first */
	ASSERT_EQ(1, kq_add_user(&self->from, 1, KEVENT_USER_COUNT, 0, 7));
	EXPECT_EQ(-EEXIST, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, count(&self->from, 1, 2));
	ASSERT_EQ(1, count(&self->to, 1, 3));
	want_value(&self->from, self->by, KEVENT_SOURCE_USER, 1, 2, 7);
	want_count(&self->to, 1, 3);
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_DEL, 1));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, count(&self->to, 1, 4));
	want_value(&self->to, self->by, KEVENT_SOURCE_USER, 1, 4, 7);
	want_empty(&self->from);
}

TEST_F(move, takes_the_unclaimed_event_along)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, add_count(&self->from, 2, 0));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	ASSERT_EQ(1, count(&self->from, 2, 1));
	signal_eventfd(fd);
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	/* More is added to it where it is now. */
	ASSERT_EQ(1, count(&self->to, 1, 4));
	want_count(&self->to, 1, 7);
	want_fd(&self->to, fd, 3);
	want_empty(&self->to);
	want_count(&self->from, 2, 1);
	want_empty(&self->from);
}

TEST_F(move, does_not_bring_claimed_events_back)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	signal_eventfd(fd);
	want_count(&self->from, 1, 3);
	want_fd(&self->from, fd, 3);
	/* The eventfd is readable still, but that was said. */
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	want_empty(&self->to);
	want_empty(&self->from);
	ASSERT_EQ(1, count(&self->to, 1, 1));
	signal_eventfd(fd);
	want_count(&self->to, 1, 1);
	want_fd(&self->to, fd, 3);
	want_empty(&self->from);
}

TEST_F(move, takes_tag_mask_and_mode_along)
{
	struct ukevent ev, change;
	unsigned int seen = 0;
	int s[2];

	ASSERT_EQ(0, sync_open(s));
	for (__u32 tag = 0; tag < 3; tag++) {
		change = kq_mode_change(KEVENT_OP_ADD, s[0], EPOLLIN,
					KEVENT_EDGE |
					(tag == 1 ? KEVENT_DISPATCH : 0),
					100 + tag);
		change.tag = tag;
		ASSERT_EQ(1, kq_apply(&self->from, change));
	}
	ASSERT_EQ(1, kq_move(&self->from, &self->to, KEVENT_SOURCE_FD, s[0], 1));
	EXPECT_EQ(-ENOENT, kq_move(&self->from, &self->to, KEVENT_SOURCE_FD,
				   s[0], 1));
	EXPECT_EQ(-ENOENT, kq_move(&self->from, &self->to, KEVENT_SOURCE_FD,
				   s[0], 3));
	want_empty(&self->to);
	sync_post(s[1]);
	ASSERT_EQ(1, kq_next(&self->to, self->by, &ev));
	EXPECT_EQ(s[0], ev.ident);
	EXPECT_EQ(1, ev.tag);
	EXPECT_EQ(101, ev.user_data);
	/* It is writable, too, but that is not the question. */
	EXPECT_EQ(EPOLLIN, ev.events);
	EXPECT_EQ(self->by == BY_RING ? 0 : KEVENT_EDGE | KEVENT_DISPATCH,
		  ev.flags);
	/* In the order in which the socket wakes them, whatever it is */
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, kq_next(&self->from, self->by, &ev));
		EXPECT_EQ(100 + ev.tag, ev.user_data);
		seen |= 1U << ev.tag;
	}
	EXPECT_EQ(1 << 0 | 1 << 2, seen);
	/* It waits to be enabled now. */
	sync_post(s[1]);
	want_empty(&self->to);
	ASSERT_EQ(1, kq_op(&self->to, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE, s[0],
			   1));
	ASSERT_EQ(1, kq_next(&self->to, self->by, &ev));
	EXPECT_EQ(101, ev.user_data);
}

TEST_F(move, takes_the_flags_of_a_user_event_along)
{
	ASSERT_EQ(1, kq_add_user(&self->from, 1, KEVENT_USER_FLAGS, 0, 2));
	ASSERT_EQ(1, kq_trigger(&self->from, 1, 0, KEVENT_NOTE_FFOR | 3));
	want_empty(&self->from);
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	want_empty(&self->to);
	ASSERT_EQ(1, kq_trigger(&self->to, 1, 0, KEVENT_NOTE_FFOR |
				KEVENT_NOTE_TRIGGER | 4));
	ASSERT_EQ(1, move_user(&self->to, &self->from, 1));
	want_value(&self->from, self->by, KEVENT_SOURCE_USER, 1,
		   KEVENT_NOTE_TRIGGER | 7, 2);
	want_empty(&self->to);
}

TEST_F(move, takes_a_level_source_along)
{
	int fd = open_eventfd();
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_mode(&self->from, fd, EPOLLIN, KEVENT_LEVEL, 3));
	EXPECT_EQ(0, kq_getevents(&self->from, &ev, 0, 1, 0));
	/* Not ready */
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	EXPECT_EQ(0, kq_getevents(&self->to, &ev, 0, 1, 0));
	EXPECT_EQ(0, kevent_ring_flags(&self->to.map));
	signal_eventfd(fd);
	EXPECT_EQ(KEVENT_RING_LEVEL_READY, kevent_ring_flags(&self->to.map));
	want_mode(&self->to, BY_SYSCALL, fd, EPOLLIN, EPOLLIN, KEVENT_LEVEL, 3);
	want_empty(&self->from);
	EXPECT_EQ(0, kevent_ring_flags(&self->from.map));

	/* Ready */
	ASSERT_EQ(1, move_fd(&self->to, &self->from, fd));
	EXPECT_EQ(KEVENT_RING_LEVEL_READY, kevent_ring_flags(&self->from.map));
	for (int i = 0; i < 2; i++)
		want_mode(&self->from, BY_SYSCALL, fd, EPOLLIN, EPOLLIN,
			  KEVENT_LEVEL, 3);
	want_empty(&self->to);
	EXPECT_EQ(0, kevent_ring_flags(&self->to.map));
	drain_eventfd(fd);
	want_empty(&self->from);
	EXPECT_EQ(0, kevent_ring_flags(&self->from.map));
}

TEST_F(move, takes_a_waiting_event_along)
{
	struct kq small;

	ASSERT_EQ(0, kq_open_flags(&small, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(1, add_count(&small, i, 0));
		ASSERT_EQ(1, count(&small, i, 1 + i));
	}
	ASSERT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&small.map));
	for (int i = 1; i < 4; i++)
		ASSERT_EQ(1, move_user(&small, &self->to, i));
	EXPECT_EQ(0, kevent_ring_flags(&small.map));
	EXPECT_EQ(0, kevent_ring_flags(&self->to.map));
	ASSERT_EQ(1, count(&self->to, 2, 10));
	want_count(&self->to, 1, 2);
	want_count(&self->to, 2, 13);
	want_count(&self->to, 3, 4);
	want_empty(&self->to);

	/* And back, where they have to wait as before */
	for (int i = 1; i < 4; i++) {
		ASSERT_EQ(1, count(&self->to, i, 1 + i));
		ASSERT_EQ(1, move_user(&self->to, &small, i));
	}
	want_empty(&self->to);
	EXPECT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&small.map));
	for (int i = 0; i < 4; i++)
		want_value(&small, BY_SYSCALL, KEVENT_SOURCE_USER, i, 1 + i,
			   UDATA + i);
	want_empty(&small);
	EXPECT_EQ(0, kevent_ring_flags(&small.map));
	kq_close(&small);
}

TEST_F(move, leaves_disabled_what_is_disabled)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	signal_eventfd(fd);
	ASSERT_EQ(1, user_op(&self->from, KEVENT_OP_DISABLE, 1));
	ASSERT_EQ(1, kq_op(&self->from, KEVENT_SOURCE_FD, KEVENT_OP_DISABLE, fd,
			   0));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	ASSERT_EQ(1, count(&self->to, 1, 4));
	signal_eventfd(fd);
	want_empty(&self->to);
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_ENABLE, 1));
	want_count(&self->to, 1, 7);
	ASSERT_EQ(1, kq_op(&self->to, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE, fd,
			   0));
	want_fd(&self->to, fd, 3);
	want_empty(&self->to);
	want_empty(&self->from);
}

/* A claim that the kernel was not told of has disabled it. */
TEST_F(move, leaves_disabled_what_was_claimed)
{
	ASSERT_EQ(1, add_count(&self->from, 1, KEVENT_DISPATCH));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	want_count(&self->from, 1, 3);
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, count(&self->to, 1, 4));
	want_empty(&self->to);
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_ENABLE, 1));
	want_count(&self->to, 1, 4);
}

TEST_F(move, takes_a_one_shot_along_until_it_is_claimed)
{
	ASSERT_EQ(1, add_count(&self->from, 1, KEVENT_ONESHOT));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, count(&self->to, 1, 1));
	ASSERT_EQ(1, move_user(&self->to, &self->from, 1));
	ASSERT_EQ(1, count(&self->from, 1, 1));
	want_count(&self->from, 1, 2);
	/* It has ended, so there is nothing to move. */
	EXPECT_EQ(-ENOENT, move_user(&self->from, &self->to, 1));
	EXPECT_EQ(-ENOENT, count(&self->from, 1, 1));
	EXPECT_EQ(-ENOENT, count(&self->to, 1, 1));
	/* One that has ended is not in the way of another of its name. */
	ASSERT_EQ(1, add_count(&self->to, 1, KEVENT_ONESHOT));
	ASSERT_EQ(1, count(&self->to, 1, 1));
	want_count(&self->to, 1, 1);
	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_DEL, 1));
	want_all_free(_metadata, &self->from);
	want_all_free(_metadata, &self->to);
}

/*
 * Slots are reserved in the new queue.  In the old one, the cancelled event
 * takes its slot until it is claimed.
 */
TEST_F(move, takes_the_reservation_along)
{
	for (int i = 0; i < SLOTS; i++)
		ASSERT_EQ(1, add_count(&self->from, i, 0));
	EXPECT_EQ(-ENOSPC, add_count(&self->from, 20, 0));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 0));
	EXPECT_EQ(1, add_count(&self->from, 20, 0));
	EXPECT_EQ(-ENOSPC, add_count(&self->from, 21, 0));
	ASSERT_EQ(1, count(&self->from, 1, 2));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	EXPECT_EQ(-ENOSPC, add_count(&self->from, 21, 0));
	want_empty(&self->from);
	EXPECT_EQ(1, add_count(&self->from, 21, 0));

	for (int i = 2; i < SLOTS; i++)
		ASSERT_EQ(1, add_count(&self->to, 30 + i, 0));
	EXPECT_EQ(-ENOSPC, add_count(&self->to, 40, 0));
	/* All have their slot: none overflows. */
	ASSERT_EQ(1, count(&self->to, 0, 1));
	for (int i = 2; i < SLOTS; i++)
		ASSERT_EQ(1, count(&self->to, 30 + i, 1));
	EXPECT_EQ(0, kevent_ring_flags(&self->to.map));
	want_count(&self->to, 1, 2);
	want_count(&self->to, 0, 1);
	for (int i = 2; i < SLOTS; i++)
		want_count(&self->to, 30 + i, 1);
	want_empty(&self->to);
}

static struct ukevent move_change(__u16 source, __u64 ident, __u64 to)
{
	struct ukevent change = kq_change(source, KEVENT_OP_MOVE, ident, 0);

	change.data = to;
	return change;
}

/* All that a refused move must not have touched */
TEST_F(move, that_is_refused_changes_nothing)
{
	const struct ukevent good = move_change(KEVENT_SOURCE_USER, 1,
						self->to.fd);
	int efd = open_eventfd(), fd = open_eventfd();
	int same = dup(self->from.fd);
	int closed = dup(self->to.fd);
	struct {
		struct ukevent change;
		int error;
	} bad[] = {
		/* What is to be moved */
		{ move_change(KEVENT_SOURCE_USER, 2, self->to.fd), -ENOENT },
		{ move_change(KEVENT_SOURCE_TIMER, 1, self->to.fd), -ENOENT },
		{ move_change(KEVENT_SOURCE_FD, efd, self->to.fd), -ENOENT },
		{ move_change(KEVENT_SOURCE_FD, closed, self->to.fd), -EBADF },
		{ move_change(KEVENT_SOURCE_QUEUE, 0, self->to.fd), -EINVAL },
		{ move_change(KEVENT_SOURCE_QUEUE, 1, self->to.fd), -EINVAL },
		{ move_change(77, 1, self->to.fd), -EINVAL },
		/* Where it is to be moved */
		{ move_change(KEVENT_SOURCE_USER, 1, closed), -EBADF },
		{ move_change(KEVENT_SOURCE_USER, 1, ~0ULL), -EBADF },
		{ move_change(KEVENT_SOURCE_USER, 1, 0xffffffff), -EBADF },
		{ move_change(KEVENT_SOURCE_USER, 1,
			      1ULL << 32 | self->to.fd), -EBADF },
		{ move_change(KEVENT_SOURCE_USER, 1, efd), -EINVAL },
		{ move_change(KEVENT_SOURCE_USER, 1, self->from.fd), -EINVAL },
		{ move_change(KEVENT_SOURCE_USER, 1, same), -EINVAL },
		/* And the other fields */
		{ good, -EINVAL }, { good, -EINVAL }, { good, -EINVAL },
		{ good, -EINVAL }, { good, -EINVAL }, { good, -EINVAL },
	};
	const size_t nr = ARRAY_SIZE(bad);

	close(closed);
	bad[nr - 1].change.flags = KEVENT_EDGE;
	bad[nr - 2].change.events = KEVENT_USER_COUNT;
	bad[nr - 3].change.user_data = 1;
	bad[nr - 4].change.fflags = 1;
	bad[nr - 5].change.interval = 1;
	bad[nr - 6].change.resv = 1;

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 5));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	signal_eventfd(fd);
	for (size_t i = 0; i < nr; i++) {
		EXPECT_EQ(bad[i].error, kq_apply(&self->from, bad[i].change))
			TH_LOG("number %zu", i);
	}
	/* The name is taken. */
	ASSERT_EQ(1, kq_add_user(&self->to, 1, KEVENT_USER_COUNT, 0, 9));
	EXPECT_EQ(-EEXIST, kq_apply(&self->from, good));
	want_empty(&self->to);
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_DEL, 1));
	/* There is no room. */
	for (int i = 10; i < 10 + SLOTS; i++)
		ASSERT_EQ(1, add_count(&self->to, i, 0));
	EXPECT_EQ(-ENOSPC, kq_apply(&self->from, good));
	EXPECT_EQ(-ENOSPC, move_fd(&self->from, &self->to, fd));
	want_empty(&self->to);

	ASSERT_EQ(1, count(&self->from, 1, 4));
	want_count(&self->from, 1, 7);
	want_fd(&self->from, fd, 5);
	want_empty(&self->from);
	signal_eventfd(fd);
	want_fd(&self->from, fd, 5);
	/* No slot was lost. */
	for (int i = 30; i < 30 + SLOTS - 2; i++)
		ASSERT_EQ(1, add_count(&self->from, i, 0));
	EXPECT_EQ(-ENOSPC, add_count(&self->from, 40, 0));

	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_DEL, 10));
	EXPECT_EQ(1, kq_apply(&self->from, good));
}

/* A level source needs no slot, a waiting one has none. */
TEST_F(move, needs_no_more_room_than_an_addition)
{
	int fd = open_eventfd();
	struct kq small;

	for (int i = 10; i < 10 + SLOTS; i++)
		ASSERT_EQ(1, add_count(&self->to, i, 0));
	ASSERT_EQ(1, kq_add_mode(&self->from, fd, EPOLLIN, KEVENT_LEVEL, 3));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	signal_eventfd(fd);
	want_mode(&self->to, BY_SYSCALL, fd, EPOLLIN, EPOLLIN, KEVENT_LEVEL, 3);

	ASSERT_EQ(0, kq_open_flags(&small, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 10; i < 10 + SLOTS; i++)
		ASSERT_EQ(1, move_user(&self->to, &small, i));
	kq_close(&small);
}

/* The other queue has a waiter and a poller, who are told. */
TEST_F(move, wakes_who_waits_for_the_event)
{
	struct pollfd pfd = { .fd = self->to.fd, .events = POLLIN };
	struct waiter w = { };
	struct ukevent ev;

	for (int i = 0; i < 2; i++)
		ASSERT_EQ(1, add_count(&self->from, i, 0));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	ASSERT_EQ(0, waiter_start(&w, &self->to, 1, 1));
	/* With nothing to say, it wakes nobody. */
	ASSERT_EQ(1, move_user(&self->from, &self->to, 0));
	EXPECT_EQ(0, poll(&pfd, 1, SETTLE_MS));
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(1, w.evs[0].ident);
	EXPECT_EQ(3, w.evs[0].events);

	ASSERT_EQ(1, count(&self->to, 0, 1));
	ASSERT_EQ(1, poll(&pfd, 1, 0));
	ASSERT_EQ(1, move_user(&self->to, &self->from, 0));
	EXPECT_EQ(0, poll(&pfd, 1, 0));
	EXPECT_EQ(0, kq_getevents(&self->to, &ev, 0, 1, 0));
	pfd.fd = self->from.fd;
	EXPECT_EQ(1, poll(&pfd, 1, 0));
}

/*
 * Until a thread sleeps.  Who is told depends on it here, so this has to be right,
 * unlike wait_until_asleep().
 */
static bool sleeps_at(struct waiter *w, const struct kq *q, enum collect_by by)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	char path[64];

	w->wait_only = by == BY_RING;
	if (waiter_start(w, q, 1, 1))
		return false;
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", w->tid);
	while (!waiter_done(w) && now_ns() < end) {
		if (task_state(path) == 'S')
			return true;
		sched_yield();
	}
	return false;
}

/* Joins a waiter that has to have been told, and sees to its event. */
static void want_told(struct __test_metadata *_metadata, struct waiter *w,
		      struct kq *q, int fd, __u32 mode, __u64 udata)
{
	ASSERT_TRUE(waiter_join(w));
	ASSERT_EQ(1, w->ret);
	if (w->wait_only) {
		want_mode(q, BY_RING, fd, EPOLLIN, EPOLLIN, mode, udata);
		return;
	}
	EXPECT_EQ(fd, w->evs[0].ident);
	EXPECT_EQ(EPOLLIN, w->evs[0].events);
	EXPECT_EQ(udata, w->evs[0].user_data);
}

/* It keeps its place among them; what counts is who waits at the new queue. */
TEST_F(move, leaves_an_exclusive_registration_before_those_behind_it)
{
	static const __u32 modes[] = {
		KEVENT_EDGE | KEVENT_EXCLUSIVE, KEVENT_LEVEL | KEVENT_EXCLUSIVE,
	};

	for (int n = 0; n < (self->by == BY_RING ? 1 : 2); n++) {
		struct waiter w = { }, other = { };
		int fd = open_eventfd();
		struct kq behind;

		ASSERT_EQ(0, kq_open(&behind, SLOTS));
		ASSERT_EQ(1, kq_add_mode(&self->from, fd, EPOLLIN, modes[n], 1));
		ASSERT_EQ(1, kq_add_mode(&behind, fd, EPOLLIN, modes[n], 2));
		ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
		ASSERT_TRUE(sleeps_at(&other, &behind, self->by));
		for (int i = 0; i < 3; i++) {
			ASSERT_TRUE(sleeps_at(&w, &self->to, self->by));
			signal_eventfd(fd);
			want_told(_metadata, &w, &self->to, fd, modes[n], 1);
			sleep_ms(SETTLE_MS);
			EXPECT_FALSE(waiter_done(&other));
			want_none(&behind, BY_RING);
			drain_eventfd(fd);
		}
		/* Who waits at the old queue keeps nobody from it. */
		ASSERT_TRUE(sleeps_at(&w, &self->from, self->by));
		signal_eventfd(fd);
		want_told(_metadata, &other, &behind, fd, modes[n], 2);
		EXPECT_FALSE(waiter_done(&w));
		want_none(&self->from, BY_RING);
		want_mode(&self->to, self->by, fd, EPOLLIN, EPOLLIN, modes[n], 1);
		ASSERT_EQ(1, kq_wake(&self->from));
		ASSERT_TRUE(waiter_join(&w));
		EXPECT_EQ(0, w.ret);
		close(fd);
		kq_close(&behind);
	}
}

/* It is the descriptor that a registration belongs to, not the queue. */
TEST_F(move, does_not_outlive_the_descriptor)
{
	int fd = open_eventfd();
	int copy = dup(fd);

	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 1));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	signal_eventfd(copy);
	close(fd);
	want_empty(&self->to);
	signal_eventfd(copy);
	want_all_free(_metadata, &self->from);
	want_all_free(_metadata, &self->to);
}

TEST_F(move, outlives_the_old_queue)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, kq_add_timer(&self->from, 2, CLOCK_MONOTONIC,
				  20 * NSEC_PER_MSEC, 0, 2));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, move_timer(&self->from, &self->to, 2));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	kq_close(&self->from);
	want_count(&self->to, 1, 3);
	want_value(&self->to, self->by, KEVENT_SOURCE_TIMER, 2, 1, 2);
	signal_eventfd(fd);
	want_fd(&self->to, fd, 3);
	ASSERT_EQ(1, count(&self->to, 1, 1));
	want_count(&self->to, 1, 1);
}

TEST_F(move, does_not_outlive_the_new_queue)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, kq_add_timer(&self->from, 2, CLOCK_MONOTONIC,
				  NSEC_PER_MSEC, NSEC_PER_MSEC, 2));
	ASSERT_EQ(1, move_user(&self->from, &self->to, 1));
	ASSERT_EQ(1, move_fd(&self->from, &self->to, fd));
	ASSERT_EQ(1, move_timer(&self->from, &self->to, 2));
	kq_close(&self->to);
	signal_eventfd(fd);
	sleep_ms(5);
	want_empty(&self->from);
	EXPECT_EQ(-ENOENT, kq_del(&self->from, fd));
	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	want_fd(&self->from, fd, 3);
}

/* A timer goes on as it was. */
TEST_F(move, lets_a_timer_run_on)
{
	__s64 after = 30 * NSEC_PER_MSEC, start = now_ns();
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_timer(&self->from, 1, CLOCK_MONOTONIC, after, 0, 2));
	ASSERT_EQ(1, move_timer(&self->from, &self->to, 1));
	ASSERT_EQ(1, kq_next(&self->to, self->by, &ev));
	EXPECT_LE(after, now_ns() - start);
	EXPECT_EQ(KEVENT_SOURCE_TIMER, ev.source);
	EXPECT_EQ(1, ev.events);
	EXPECT_EQ(2, ev.user_data);
	/* It has expired, and is registered. */
	ASSERT_EQ(1, move_timer(&self->to, &self->from, 1));
	want_empty(&self->from);
	start = now_ns();
	ASSERT_EQ(1, kq_mod_timer(&self->from, 1, CLOCK_MONOTONIC, after, 0, 3));
	sleep_ms(40);
	/* With an expiry that was not claimed */
	ASSERT_EQ(1, move_timer(&self->from, &self->to, 1));
	want_value(&self->to, self->by, KEVENT_SOURCE_TIMER, 1, 1, 3);
	EXPECT_LE(after, now_ns() - start);
	want_empty(&self->from);
}

/* What a periodic timer may have counted by now, and must have some day */
static __u64 expiries(__s64 first, __s64 interval)
{
	__s64 now = now_ns();

	return now < first ? 0 : (now - first) / interval + 1;
}

TEST_F(move, keeps_every_count_of_a_periodic_timer)
{
	const __s64 interval = 2 * NSEC_PER_MSEC;
	struct kq *q[2] = { &self->from, &self->to };
	__s64 first = now_ns() + interval;
	__u64 sum = 0, least;
	struct ukevent ev;
	int at = 0;

	ASSERT_EQ(1, kq_add_timer(q[0], 1, CLOCK_MONOTONIC | KEVENT_TIMER_ABS,
				  first, interval, 2));
	for (int i = 0; i < 200; i++) {
		ASSERT_EQ(1, move_timer(q[at], q[!at], 1));
		at = !at;
		/* Some are claimed at once, others wait for the next move. */
		if (i % 3 && kq_collect(q[at], self->by, &ev, 1))
			sum += ev.events;
		EXPECT_LE(sum, expiries(first, interval));
		want_none(q[!at], self->by);
		if (i % 10 == 0)
			sleep_ms(1);
	}
	least = expiries(first, interval);
	/* If one had been counted twice, the sum would be ahead of time. */
	for (int i = 0; i < 20 || sum < least; i++) {
		ASSERT_EQ(1, kq_next(q[at], self->by, &ev));
		sum += ev.events;
		ASSERT_LE(sum, expiries(first, interval));
	}
	ASSERT_EQ(1, kq_op(q[at], KEVENT_SOURCE_TIMER, KEVENT_OP_DEL, 1, 0));
	want_empty(&self->from);
	want_empty(&self->to);
}

TEST_F(move, back_and_forth_loses_nothing)
{
	struct kq *q[2] = { &self->from, &self->to };
	__u64 counted = 0, told = 0;
	__u64 seed = random_seed();
	int fd = open_eventfd();
	__u64 written = 0, read = 0;
	int at = 0;

	ASSERT_EQ(1, add_count(q[0], 1, 0));
	ASSERT_EQ(1, kq_add(q[0], fd, EPOLLIN, 3));
	for (int i = 0; i < 1000; i++) {
		__u64 rnd = next_random(&seed) >> 20;
		struct ukevent ev;

		if (rnd & 1) {
			ASSERT_EQ(1, count(q[at], 1, 1 + i % 7));
			counted += 1 + i % 7;
		}
		if (rnd & 2) {
			signal_eventfd(fd);
			written++;
		}
		ASSERT_EQ(1, move_user(q[at], q[!at], 1));
		ASSERT_EQ(1, move_fd(q[at], q[!at], fd));
		at = !at;
		/* This claims the cancelled ones, too. */
		want_none(q[!at], self->by);
		while (rnd & 4 && kq_collect(q[at], self->by, &ev, 1)) {
			if (ev.source == KEVENT_SOURCE_USER)
				told += ev.events;
			else
				read += drain_eventfd(fd);
		}
		if (rnd & 4) {
			ASSERT_EQ(counted, told);
			ASSERT_EQ(written, read);
		}
	}
	EXPECT_LT(0, told);
}

/*
 * The number of registrations of a user
 */

#define LIMIT_FILE "/proc/sys/fs/kevent/max_user_registrations"

FIXTURE(quota) {
	struct kq from;
	enum collect_by by;
	char limit[32];		/* what it was */
};

FIXTURE_VARIANT(quota) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(quota, ring) { BY_RING };
FIXTURE_VARIANT_ADD(quota, call) { BY_SYSCALL };

static bool read_limit(char *value, size_t size)
{
	int fd = open(LIMIT_FILE, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd >= 0 ? read(fd, value, size - 1) : -1;

	if (fd >= 0)
		close(fd);
	value[len > 0 ? len : 0] = 0;
	return len > 0;
}

FIXTURE_SETUP(quota)
{
	self->by = variant->by;
	if (!kq_setup(_metadata, &self->from, SLOTS))
		return;
	if (!read_limit(self->limit, sizeof(self->limit)))
		SKIP(return, "no limit of registrations to be seen");
	if (!write_file(LIMIT_FILE, self->limit))
		SKIP(return, "cannot set the limit of registrations");
}

/* In the parent, so that the limit is right even after a crash */
FIXTURE_TEARDOWN_PARENT(quota)
{
	write_file(LIMIT_FILE, self->limit);
}

/* Who made the new queue has to have room for one more. */
TEST_F(quota, counts_for_the_user_of_the_new_queue)
{
	const uid_t uid = 54321;
	struct kq theirs;
	int err;

	if (setresuid(uid, uid, 0))
		SKIP(return, "cannot become another user");
	err = kq_open(&theirs, SLOTS);
	ASSERT_EQ(0, setresuid(0, 0, 0));
	ASSERT_EQ(0, err);
	for (int i = 1; i < 4; i++)
		ASSERT_EQ(1, add_count(&self->from, i, 0));
	ASSERT_EQ(1, count(&self->from, 1, 3));

	ASSERT_TRUE(write_file(LIMIT_FILE, "2"));
	EXPECT_EQ(1, add_count(&theirs, 10, 0));
	EXPECT_EQ(1, move_user(&self->from, &theirs, 2));
	EXPECT_EQ(-EDQUOT, add_count(&theirs, 11, 0));
	EXPECT_EQ(-EDQUOT, move_user(&self->from, &theirs, 1));
	want_empty(&theirs);
	EXPECT_EQ(1, user_op(&theirs, KEVENT_OP_DEL, 10));
	EXPECT_EQ(1, move_user(&self->from, &theirs, 1));
	EXPECT_EQ(-EDQUOT, move_user(&self->from, &theirs, 3));
	/* Who moves away makes room. */
	ASSERT_TRUE(write_file(LIMIT_FILE, "100"));
	EXPECT_EQ(1, move_user(&theirs, &self->from, 2));
	ASSERT_TRUE(write_file(LIMIT_FILE, "2"));
	EXPECT_EQ(1, move_user(&self->from, &theirs, 3));
	want_count(&theirs, 1, 3);
	want_empty(&theirs);
	want_empty(&self->from);
	kq_close(&theirs);
}

/*
 * The new queue is in the hands of another process.
 */

struct hands {
	struct kq from;
	struct kq to;
	int fd;
	__u64 told;	/* by user events, in the other process */
	__u64 read;	/* from the eventfd, there */
	int wrong;
};

#define LAST_IDENT 77

/* Consumes what comes, until it is told that it was all. */
static void other_hands(struct hands *h)
{
	struct ukevent ev;

	for (;;) {
		if (kq_next(&h->to, BY_RING, &ev) != 1) {
			h->wrong++;
			return;
		}
		if (ev.source == KEVENT_SOURCE_USER && ev.ident == LAST_IDENT)
			return;
		if (ev.source == KEVENT_SOURCE_USER)
			h->told += ev.events;
		else
			h->read += drain_eventfd(h->fd);
	}
}

TEST_F(move, to_a_queue_of_another_process_loses_nothing)
{
	__u64 counted = 0, told = 0, written = 0, read = 0;
	struct ukevent ev;
	struct hands *h;
	pid_t pid;

	h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, h);
	/* There must be room for what was cancelled until it is claimed. */
	ASSERT_EQ(0, kq_open(&h->from, 2048));
	ASSERT_EQ(0, kq_open(&h->to, 2048));
	h->fd = open_eventfd();
	ASSERT_EQ(1, add_count(&h->from, 1, 0));
	ASSERT_EQ(1, add_count(&h->to, LAST_IDENT, 0));
	ASSERT_EQ(1, kq_add(&h->from, h->fd, EPOLLIN, 3));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(h->from.fd);
		other_hands(h);
		_exit(0);
	}
	for (int i = 0; i < 500; i++) {
		const struct kq *at = i % 2 ? &h->to : &h->from;
		const struct kq *then = i % 2 ? &h->from : &h->to;

		ASSERT_EQ(1, count(at, 1, 1 + i % 5));
		counted += 1 + i % 5;
		signal_eventfd(h->fd);
		written++;
		ASSERT_EQ(1, move_user(at, then, 1));
		ASSERT_EQ(1, move_fd(at, then, h->fd));
		while (kq_collect(&h->from, self->by, &ev, 1)) {
			if (ev.source == KEVENT_SOURCE_FD)
				read += drain_eventfd(h->fd);
			else
				told += ev.events;
		}
		/* Let the other be in time, once in a while. */
		if (i % 32 == 31)
			sleep_ms(1);
	}
	/* What is not claimed there yet comes before that. */
	ASSERT_EQ(1, count(&h->to, LAST_IDENT, 1));
	EXPECT_EQ(0, reap(pid));
	while (kq_collect(&h->from, self->by, &ev, 1)) {
		if (ev.source == KEVENT_SOURCE_FD)
			read += drain_eventfd(h->fd);
		else
			told += ev.events;
	}
	EXPECT_EQ(0, h->wrong);
	EXPECT_EQ(counted, told + h->told);
	EXPECT_EQ(written, read + h->read);
	want_empty(&h->from);
	want_empty(&h->to);
	kq_close(&h->from);
	kq_close(&h->to);
}

/* Who has both, as a child does, moves, and closes its own descriptors only. */
TEST_F(move, can_be_done_by_another_process)
{
	int fd = open_eventfd();
	pid_t pid;

	ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
	ASSERT_EQ(1, add_count(&self->from, 1, 0));
	ASSERT_EQ(1, count(&self->from, 1, 3));
	signal_eventfd(fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (move_fd(&self->from, &self->to, fd) != 1 ||
		    move_user(&self->from, &self->to, 1) != 1)
			_exit(1);
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	want_fd(&self->to, fd, 3);
	want_count(&self->to, 1, 3);
	signal_eventfd(fd);
	want_fd(&self->to, fd, 3);
	want_empty(&self->from);
	/* It is the parent's descriptor. */
	close(fd);
	want_empty(&self->to);
	ASSERT_EQ(1, user_op(&self->to, KEVENT_OP_DEL, 1));
	want_all_free(_metadata, &self->to);
	want_all_free(_metadata, &self->from);
}

/*
 * Races.  In each round a thread moves a registration to and fro, while
 * something ends it.
 */

#define ROUNDS 200
#define MOVES_PER_ROUND 6

struct rounds {
	struct kq q[2];
	__u16 source;
	__u64 ident;	/* what is to be moved in this round */
	int moves;
	bool over;
	int ret;	/* of the last move */
	int wrong;
	int moved;
	int tried;	/* moves in this round, so far */
	pthread_barrier_t start;
	pthread_barrier_t end;
	pthread_t thread;
};

static void *move_in_rounds(void *arg)
{
	struct rounds *r = arg;

	for (;;) {
		r->tried = 0;
		pthread_barrier_wait(&r->start);
		if (r->over)
			return NULL;
		for (int i = 0; i < r->moves; i++) {
			r->ret = kq_move(&r->q[i % 2], &r->q[!(i % 2)],
					 r->source, r->ident, 0);
			r->moved += r->ret == 1;
			if (r->ret != 1 && r->ret != -ENOENT &&
			    r->ret != -EBADF)
				r->wrong++;
			__atomic_fetch_add(&r->tried, 1, __ATOMIC_SEQ_CST);
		}
		pthread_barrier_wait(&r->end);
	}
}

static int start_rounds(struct rounds *r, const struct kq *a,
			const struct kq *b, __u16 source, int moves)
{
	memset(r, 0, sizeof(*r));
	r->q[0] = *a;
	r->q[1] = *b;
	r->source = source;
	r->moves = moves;
	pthread_barrier_init(&r->start, NULL, 2);
	pthread_barrier_init(&r->end, NULL, 2);
	return -pthread_create(&r->thread, NULL, move_in_rounds, r);
}

static void end_rounds(struct rounds *r)
{
	r->over = true;
	pthread_barrier_wait(&r->start);
	pthread_join(r->thread, NULL);
}

/*
 * Lets the mover get somewhere, now here, now there; and once in a while, for
 * sure, beyond the first move.
 */
static void dawdle(const struct rounds *r, int round)
{
	for (int i = 0; i < round % 16; i++)
		sched_yield();
	if (round % 16 < 15)
		return;
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (__atomic_load_n(&r->tried, __ATOMIC_SEQ_CST))
			return;
		sleep_ms(1);
	}
}

TEST_F(move, races_with_close_of_the_source)
{
	struct rounds r;

	ASSERT_EQ(0, start_rounds(&r, &self->from, &self->to, KEVENT_SOURCE_FD,
				  MOVES_PER_ROUND));
	for (int round = 0; round < ROUNDS; round++) {
		int fd = open_eventfd();
		int copy = dup(fd);

		ASSERT_EQ(1, kq_add_mode(&self->from, fd, EPOLLIN, round % 4 ?
					 KEVENT_EDGE : KEVENT_LEVEL, round));
		if (round % 2)
			signal_eventfd(fd);
		r.ident = fd;
		pthread_barrier_wait(&r.start);
		dawdle(&r, round);
		signal_eventfd(copy);
		close(fd);
		pthread_barrier_wait(&r.end);
		/* No ghost, in neither of the two */
		signal_eventfd(copy);
		want_none(&self->from, self->by);
		want_none(&self->to, self->by);
		want_none(&self->from, BY_SYSCALL);
		want_none(&self->to, BY_SYSCALL);
		close(copy);
	}
	end_rounds(&r);
	EXPECT_EQ(0, r.wrong);
	EXPECT_LT(0, r.moved);
	want_all_free(_metadata, &self->from);
	want_all_free(_metadata, &self->to);
}

/*
 * As soon as it is in the new queue somebody else moves it on.  What counts for
 * those who report it is where it is then.  An event that it takes along wakes
 * many there, which makes the first move take longer.
 */
#define WATCHERS 200

TEST_F_TIMEOUT(move, races_with_the_next_move, 60)
{
	struct epoll_event in = { .events = EPOLLIN | EPOLLET };
	int fd = open_eventfd();
	int ep[WATCHERS];
	struct rounds r;

	for (int i = 0; i < WATCHERS; i++) {
		ep[i] = epoll_create1(EPOLL_CLOEXEC);
		ASSERT_EQ(0, epoll_ctl(ep[i], EPOLL_CTL_ADD, self->to.fd, &in));
	}
	ASSERT_EQ(1, kq_add_mode(&self->from, fd, EPOLLIN, KEVENT_EDGE, 1));
	ASSERT_EQ(0, start_rounds(&r, &self->from, &self->to, KEVENT_SOURCE_FD,
				  1));
	r.ident = fd;
	for (int round = 0; round < 10 * ROUNDS; round++) {
		int ret = -ENOENT;

		signal_eventfd(fd);
		pthread_barrier_wait(&r.start);
		for (int i = 0; ret == -ENOENT && i < 1000000; i++)
			ret = kq_move(&self->to, &self->from, KEVENT_SOURCE_FD,
				      fd, 0);
		pthread_barrier_wait(&r.end);
		ASSERT_EQ(1, ret);
		ASSERT_EQ(1, r.ret);
		want_fd(&self->from, fd, 1);
		signal_eventfd(fd);
		want_fd(&self->from, fd, 1);
		want_none(&self->to, self->by);
	}
	end_rounds(&r);
	close(fd);
	for (int i = 0; i < WATCHERS; i++)
		close(ep[i]);
	want_all_free(_metadata, &self->from);
	want_all_free(_metadata, &self->to);
}

TEST_F(move, races_with_deletion)
{
	struct rounds r;

	ASSERT_EQ(0, start_rounds(&r, &self->from, &self->to,
				  KEVENT_SOURCE_USER, MOVES_PER_ROUND));
	for (int round = 0; round < ROUNDS; round++) {
		int ret = 0;

		r.ident = round;
		ASSERT_EQ(1, add_count(&self->from, round, 0));
		if (round % 2)
			ASSERT_EQ(1, count(&self->from, round, 1));
		pthread_barrier_wait(&r.start);
		dawdle(&r, round);
		/* It is in one of the two, if only one knew in which. */
		for (int i = 0; ret != 1 && i < 10000; i++) {
			ret = user_op(i % 2 ? &self->from : &self->to,
				      KEVENT_OP_DEL, round);
			EXPECT_TRUE(ret == 1 || ret == -ENOENT);
		}
		ASSERT_EQ(1, ret);
		want_none(&self->from, self->by);
		want_none(&self->to, self->by);
		EXPECT_EQ(-ENOENT, count(&self->from, round, 1));
		EXPECT_EQ(-ENOENT, count(&self->to, round, 1));
		pthread_barrier_wait(&r.end);
		want_none(&self->from, BY_SYSCALL);
		want_none(&self->to, BY_SYSCALL);
	}
	end_rounds(&r);
	EXPECT_EQ(0, r.wrong);
	EXPECT_LT(0, r.moved);
	want_all_free(_metadata, &self->from);
	want_all_free(_metadata, &self->to);
}

/* Either it was moved, and ended with the queue, or it is where it was. */
TEST_F(move, races_with_close_of_the_new_queue)
{
	int fd = open_eventfd();
	struct rounds r;

	ASSERT_EQ(0, start_rounds(&r, &self->from, &self->to, 0, 1));
	for (int round = 0; round < ROUNDS; round++) {
		bool user = round % 2;
		struct kq theirs;

		ASSERT_EQ(0, kq_open(&theirs, 2));
		kq_unmap(&theirs);
		if (user) {
			ASSERT_EQ(1, add_count(&self->from, 1, 0));
			ASSERT_EQ(1, count(&self->from, 1, 3));
		} else {
			ASSERT_EQ(1, kq_add(&self->from, fd, EPOLLIN, 3));
			signal_eventfd(fd);
		}
		r.q[1] = theirs;
		r.source = user ? KEVENT_SOURCE_USER : KEVENT_SOURCE_FD;
		r.ident = user ? 1 : fd;
		pthread_barrier_wait(&r.start);
		dawdle(&r, round / 2);
		close(theirs.fd);
		pthread_barrier_wait(&r.end);
		if (r.ret == 1) {
			want_none(&self->from, self->by);
			want_none(&self->from, BY_SYSCALL);
		} else if (user) {
			want_count(&self->from, 1, 3);
		} else {
			want_fd(&self->from, fd, 3);
		}
		EXPECT_EQ(r.ret == 1 ? -ENOENT : 1,
			  kq_op(&self->from, r.source, KEVENT_OP_DEL, r.ident,
				0));
		drain_eventfd(fd);
	}
	end_rounds(&r);
	EXPECT_EQ(0, r.wrong);
	EXPECT_LT(0, r.moved);
	want_all_free(_metadata, &self->from);
}

/* Either it was moved, and is alive, or it has ended with its queue. */
TEST_F(move, races_with_close_of_the_old_queue)
{
	int fd = open_eventfd();
	struct rounds r;

	ASSERT_EQ(0, start_rounds(&r, &self->from, &self->to, 0, 1));
	for (int round = 0; round < ROUNDS; round++) {
		bool user = round % 2;
		struct kq ours;

		ASSERT_EQ(0, kq_open(&ours, 2));
		kq_unmap(&ours);
		if (user) {
			ASSERT_EQ(1, add_count(&ours, 1, 0));
			ASSERT_EQ(1, count(&ours, 1, 3));
		} else {
			ASSERT_EQ(1, kq_add(&ours, fd, EPOLLIN, 3));
			signal_eventfd(fd);
		}
		r.q[0] = ours;
		r.source = user ? KEVENT_SOURCE_USER : KEVENT_SOURCE_FD;
		r.ident = user ? 1 : fd;
		pthread_barrier_wait(&r.start);
		dawdle(&r, round / 2);
		close(ours.fd);
		pthread_barrier_wait(&r.end);
		if (r.ret == 1 && user)
			want_count(&self->to, 1, 3);
		else if (r.ret == 1)
			want_fd(&self->to, fd, 3);
		want_none(&self->to, self->by);
		want_none(&self->to, BY_SYSCALL);
		EXPECT_EQ(r.ret == 1 ? 1 : -ENOENT,
			  kq_op(&self->to, r.source, KEVENT_OP_DEL, r.ident,
				0));
		drain_eventfd(fd);
	}
	end_rounds(&r);
	EXPECT_EQ(0, r.wrong);
	EXPECT_LT(0, r.moved);
	want_all_free(_metadata, &self->to);
}

/*
 * Under fire: sources of all kinds are moved between several queues, in every
 * direction at once, while producers trigger them, and while each queue has a
 * consumer.  Each count is seen once, and after the last write to an eventfd,
 * it is reported.
 */

#define QUEUES		4
#define USERS		8
#define EDGES		6
#define LEVELS		3
#define FDS		(EDGES + LEVELS)
#define TIMERS		400
#define PRODUCERS	2
#define MOVERS		2
#define FIRE_OPS	6000	/* of all producers together */
#define FIRE_SLOTS	256
#define FIRE_BATCH	4

/* Nothing for so long, and there will be nothing. */
#define IDLE_MS		50
#define IDLE_ROUNDS	60

struct fire {
	struct kq q[QUEUES];
	int queues;
	int fd[FDS];
	__u64 seed;
	int producing;
	int moving;
	int wrong;
	int moves;
	int timers;		/* started so far */
	__u64 produced;
	__u64 consumed;
	__u64 counted[USERS];
	__u64 written[FDS];
	__u64 told[USERS];
	__u64 read[FDS];
	int expired[TIMERS];
};

struct fire_thread {
	struct fire *f;
	int number;
	pthread_t thread;
};

FIXTURE(fire) {
	struct fire *f;
};

FIXTURE_VARIANT(fire) {
	int queues;
	__u32 init_flags;
	__u32 slots;
};

FIXTURE_VARIANT_ADD(fire, two_queues) { 2, 0, FIRE_SLOTS };
FIXTURE_VARIANT_ADD(fire, three_queues) { 3, 0, FIRE_SLOTS };
FIXTURE_VARIANT_ADD(fire, four_queues) { 4, 0, FIRE_SLOTS };
FIXTURE_VARIANT_ADD(fire, two_queues_that_overflow) {
	2, KEVENT_INIT_OVERCOMMIT, 2
};

FIXTURE_VARIANT_ADD(fire, four_queues_that_overflow) {
	4, KEVENT_INIT_OVERCOMMIT, 1
};

FIXTURE_SETUP(fire)
{
	struct fire *f = calloc(1, sizeof(*f));

	ASSERT_NE(NULL, f);
	self->f = f;
	for (int i = 0; i < QUEUES; i++)
		f->q[i].fd = -1;
	if (!kq_setup_flags(_metadata, &f->q[0], variant->slots,
			    variant->init_flags))
		return;
	f->queues = variant->queues;
	for (int i = 1; i < f->queues; i++)
		ASSERT_EQ(0, kq_open_flags(&f->q[i], variant->slots,
					   variant->init_flags, 0));
	for (int i = 0; i < USERS; i++)
		ASSERT_EQ(1, kq_add_user(&f->q[i % f->queues], i,
					 KEVENT_USER_COUNT, 0, i));
	for (int i = 0; i < FDS; i++) {
		f->fd[i] = open_eventfd();
		ASSERT_LE(0, f->fd[i]);
		ASSERT_EQ(1, kq_add_mode(&f->q[i % f->queues], f->fd[i],
					 EPOLLIN, i < EDGES ? KEVENT_EDGE :
					 KEVENT_LEVEL, i));
	}
	f->producing = PRODUCERS;
	f->moving = MOVERS;
	f->seed = random_seed();
}

FIXTURE_TEARDOWN(fire)
{
	for (int i = 0; i < QUEUES; i++)
		kq_close(&self->f->q[i]);
}

static void fire_wrong(struct fire *f)
{
	__atomic_fetch_add(&f->wrong, 1, __ATOMIC_RELAXED);
}

static void fire_add(__u64 *sum, __u64 n)
{
	__atomic_fetch_add(sum, n, __ATOMIC_RELAXED);
}

/*
 * Triggers the user event wherever it is.  It can have gone there where one has
 * looked before, but not for ever.
 */
static void fire_count(struct fire *f, __u64 ident, __u64 n, int at)
{
	for (int tries = 0; tries < 100000; tries++) {
		int ret = count(&f->q[(at + tries) % f->queues], ident, n);

		if (ret == 1)
			return;
		if (ret != -ENOENT)
			break;
		if (tries > 100)
			sched_yield();
	}
	fire_wrong(f);
}

/* A timer that ends when it was seen */
static void fire_timer(struct fire *f, __u64 rnd)
{
	int n = __atomic_fetch_add(&f->timers, 1, __ATOMIC_RELAXED);
	struct ukevent add;

	if (n >= TIMERS) {
		__atomic_fetch_sub(&f->timers, 1, __ATOMIC_RELAXED);
		return;
	}
	fire_add(&f->produced, 1);
	add = kq_timer_change(KEVENT_OP_ADD, n, CLOCK_MONOTONIC,
			      rnd % (2 * NSEC_PER_MSEC), 0, KEVENT_ONESHOT, n);
	for (int tries = 0; tries < PATIENCE_MS; tries++) {
		int ret = kq_apply(&f->q[(rnd + tries) % f->queues], add);

		if (ret == 1)
			return;
		if (ret != -ENOSPC)
			break;
		sleep_ms(1);
	}
	fire_wrong(f);
}

static void *fire_produce(void *arg)
{
	struct fire_thread *t = arg;
	struct fire *f = t->f;
	__u64 rnd = f->seed + t->number;

	for (int i = 0; i < FIRE_OPS / PRODUCERS; i++) {
		__u64 what = next_random(&rnd) >> 20;
		unsigned int s = what % (USERS + FDS + 2);
		__u64 n = 1 + (what >> 8) % 5;

		if (s < USERS) {
			fire_add(&f->produced, n);
			fire_add(&f->counted[s], n);
			fire_count(f, s, n, what >> 16 & 3);
		} else if (s < USERS + FDS) {
			s -= USERS;
			fire_add(&f->produced, n);
			fire_add(&f->written[s], n);
			if (write(f->fd[s], &n, sizeof(n)) != sizeof(n))
				fire_wrong(f);
		} else {
			fire_timer(f, what >> 16);
		}
	}
	__atomic_fetch_sub(&f->producing, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *fire_move(void *arg)
{
	struct fire_thread *t = arg;
	struct fire *f = t->f;
	__u64 rnd = f->seed + 100 + t->number;

	while (__atomic_load_n(&f->producing, __ATOMIC_ACQUIRE)) {
		__u64 what = next_random(&rnd) >> 20;
		unsigned int from = (what >> 8) % f->queues;
		unsigned int to = (from + 1 + (what >> 12) %
				   (f->queues - 1)) % f->queues;
		unsigned int s = what % (USERS + FDS + 2);
		int ret;

		if (s < USERS) {
			ret = move_user(&f->q[from], &f->q[to], s);
		} else if (s < USERS + FDS) {
			ret = move_fd(&f->q[from], &f->q[to],
				      f->fd[s - USERS]);
		} else {
			int last = __atomic_load_n(&f->timers,
						   __ATOMIC_RELAXED);

			/* One of those that were started last */
			ret = move_timer(&f->q[from], &f->q[to],
					 last > 8 ? last - (what >> 16) % 8 : 0);
		}
		if (ret == 1)
			__atomic_fetch_add(&f->moves, 1, __ATOMIC_RELAXED);
		else if (ret != -ENOENT && ret != -ENOSPC)
			fire_wrong(f);
	}
	__atomic_fetch_sub(&f->moving, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void fire_take(struct fire *f, const struct ukevent *ev)
{
	__u64 i = ev->user_data;
	__u64 n = 0;

	if (ev->source == KEVENT_SOURCE_USER && i < USERS && ev->ident == i) {
		n = ev->events;
		fire_add(&f->told[i], n);
	} else if (ev->source == KEVENT_SOURCE_TIMER && i < TIMERS &&
		   ev->ident == i && ev->events == 1) {
		n = 1;
		__atomic_fetch_add(&f->expired[i], 1, __ATOMIC_RELAXED);
	} else if (ev->source == KEVENT_SOURCE_FD && i < FDS &&
		   ev->ident == (__u64)f->fd[i] &&
		   fd_value_ok(ev->events, EPOLLIN, EPOLLIN)) {
		__u64 val;

		while ((val = drain_eventfd(f->fd[i])))
			n += val;
		fire_add(&f->read[i], n);
	} else {
		fire_wrong(f);
	}
	fire_add(&f->consumed, n);
}

/* Every other consumer looks at the ring first. */
static int fire_collect(struct kq *q, bool by_ring, struct ukevent *evs)
{
	int nr = 0;

	if (!by_ring)
		return kq_getevents(q, evs, 1, FIRE_BATCH, IDLE_MS);

	while (nr < FIRE_BATCH && kevent_ring_claim(&q->map, &evs[nr]))
		nr++;
	kevent_ring_fence();
	if (nr)
		return nr;
	/* Waiting and level-triggered events are not in the ring. */
	if (kevent_ring_flags(&q->map))
		return kq_getevents(q, evs, 0, FIRE_BATCH, 0);
	nr = kq_getevents(q, NULL, 1, 0, IDLE_MS);
	return nr < 0 ? nr : 0;
}

static void *fire_consume(void *arg)
{
	struct fire_thread *t = arg;
	struct fire *f = t->f;
	struct kq q = f->q[t->number];
	struct ukevent evs[FIRE_BATCH];
	int idle = 0;

	while (idle < IDLE_ROUNDS) {
		bool over = !__atomic_load_n(&f->producing, __ATOMIC_ACQUIRE) &&
			    !__atomic_load_n(&f->moving, __ATOMIC_ACQUIRE);
		int nr;

		if (over && __atomic_load_n(&f->consumed, __ATOMIC_RELAXED) ==
		    __atomic_load_n(&f->produced, __ATOMIC_RELAXED))
			break;
		nr = fire_collect(&q, t->number % 2, evs);
		if (nr < 0) {
			fire_wrong(f);
			break;
		}
		idle = nr || !over ? 0 : idle + 1;
		for (int i = 0; i < nr; i++)
			fire_take(f, &evs[i]);
	}
	return NULL;
}

TEST_F_TIMEOUT(fire, loses_nothing_and_doubles_nothing, 60)
{
	struct fire_thread cons[QUEUES], prod[PRODUCERS], mover[MOVERS];
	struct fire *f = self->f;
	struct ukevent ev;

	for (int i = 0; i < f->queues; i++) {
		cons[i] = (struct fire_thread) { .f = f, .number = i };
		ASSERT_EQ(0, pthread_create(&cons[i].thread, NULL, fire_consume,
					    &cons[i]));
	}
	for (int i = 0; i < MOVERS; i++) {
		mover[i] = (struct fire_thread) { .f = f, .number = i };
		ASSERT_EQ(0, pthread_create(&mover[i].thread, NULL, fire_move,
					    &mover[i]));
	}
	for (int i = 0; i < PRODUCERS; i++) {
		prod[i] = (struct fire_thread) { .f = f, .number = i };
		ASSERT_EQ(0, pthread_create(&prod[i].thread, NULL, fire_produce,
					    &prod[i]));
	}
	for (int i = 0; i < PRODUCERS; i++)
		pthread_join(prod[i].thread, NULL);
	for (int i = 0; i < MOVERS; i++)
		pthread_join(mover[i].thread, NULL);
	for (int i = 0; i < f->queues; i++)
		pthread_join(cons[i].thread, NULL);

	EXPECT_EQ(0, f->wrong);
	EXPECT_LT(0, f->moves);
	for (int i = 0; i < USERS; i++) {
		EXPECT_EQ(f->counted[i], f->told[i])
			TH_LOG("user event %d", i);
	}
	for (int i = 0; i < FDS; i++) {
		EXPECT_EQ(f->written[i], f->read[i])
			TH_LOG("eventfd %d", i);
	}
	EXPECT_LT(0, f->timers);
	for (int i = 0; i < f->timers; i++) {
		EXPECT_EQ(1, f->expired[i])
			TH_LOG("timer %d", i);
	}

	for (int i = 0; i < f->queues; i++) {
		/* What is left tells of what was read already. */
		while (kq_getevents(&f->q[i], &ev, 0, 1, 0) > 0) {
			EXPECT_EQ(KEVENT_SOURCE_FD, ev.source);
			EXPECT_EQ(0, drain_eventfd(ev.ident));
		}
		EXPECT_EQ(0, kevent_ring_flags(&f->q[i].map));
	}
	/* Each is in one of the queues. */
	for (int i = 0; i < USERS + FDS; i++) {
		int found = 0;

		for (int n = 0; n < f->queues; n++) {
			int ret = i < USERS ?
				user_op(&f->q[n], KEVENT_OP_DEL, i) :
				kq_del(&f->q[n], f->fd[i - USERS]);

			found += ret == 1;
		}
		EXPECT_EQ(1, found)
			TH_LOG("source %d", i);
	}
	for (int i = 0; i < f->queues; i++) {
		if (!variant->init_flags)
			want_all_free(_metadata, &f->q[i]);
	}
}

TEST_HARNESS_MAIN
